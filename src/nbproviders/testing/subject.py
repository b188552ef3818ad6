"""What is proved: how the provider is made, what to ask it, and the looks that clauses take at it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeGuard, TypeVar
from unittest import SkipTest

from nbproviders.authoring.provider import ModelProvider
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.authoring.wrapped import as_provider, construct
from nbproviders.core import engine
from nbproviders.core.completion import Completion
from nbproviders.core.params import Messages
from nbproviders.core.spec import ModelSpec, ResourceKey, split_options
from nbproviders.errors import ConfigurationError, ProviderError
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Entry
from nbproviders.residency.events import Event
from nbproviders.residency.residency import Residency

T = TypeVar("T")
GREEDY: Mapping[str, Any] = {"temperature": 0, "max_tokens": 16}
_LOOK_S = 0.002


class Breach(AssertionError):
    """A promise that was not kept.

    Parameters
    ----------
    came
        What came instead.
    todo
        What the provider's author can do.
    """

    def __init__(self, came: str, todo: str) -> None:
        super().__init__(f"{came}\n{todo}")
        self.came, self.todo = came, todo


def breach(came: str, todo: str) -> NoReturn:
    """Raise a `Breach`."""
    raise Breach(came, todo)


def expect(kept: object, came: str, todo: str) -> None:
    """Raise a `Breach` unless a promise was kept."""
    if not kept:
        breach(came, todo)


@contextmanager
def working(call: str, todo: str) -> Iterator[None]:
    """Raise a `Breach` if what a call of the provider does in the block raises anything."""
    try:
        yield
    except Exception as error:  # the provider's code, which is what is asked about: it is told
        breach(f"{call} raised {type(error).__name__}: {error}", todo)


@dataclass
class Subject:
    """A provider, what to ask it, and what clauses need again and again.

    Parameters
    ----------
    make
        Makes it: the provider, an object that is one in all but its base class, or a class or factory
        of either.
    model
        A model that exists.
    other
        Another model that exists, or the same with another option.
    missing
        What cannot be set up; None: any name can.
    prompt
        What the model answers; None: it is a resource that answers nothing.
    refused
        A prompt for which the model fails.
    params
        How it is asked, so that it answers twice alike.
    secrets
        Texts that the provider was given and must not show.
    tells_usage
        Whether its completions tell tokens.
    timeout_s
        Longest time for one clause.
    remade
        Whether `make` makes a new one each time.
    """

    make: Callable[[], object]
    model: str
    other: str | None = None
    missing: str | None = "no-such-model"
    prompt: str | Messages | None = "Say one word."
    refused: str | Messages | None = None
    params: Mapping[str, Any] = field(default_factory=lambda: GREEDY)
    secrets: Sequence[str] = ()
    tells_usage: bool = True
    timeout_s: float = 60.0
    remade: bool = True
    origins: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.secrets = _checked(self.secrets)

    # What there is to be asked

    def provider(self) -> ModelProvider:
        """Make the provider, of whatever `nbproviders.register_provider` takes."""
        thing = self.make()
        if makes(thing):
            thing = construct(thing, getattr(thing, "__name__", "provider").lower(), {})
        made = as_provider(thing, type(thing).__name__.lower())
        self.origins.add(made._origin)  # not itself: it may end with its last user
        return made

    def need(self, value: T | None, name: str, what: str) -> T:
        """Return what a clause needs, or skip it and tell why."""
        if value is None:
            raise SkipTest(f"{name} names no {what}.")
        return value

    def asked(self) -> str | Messages:
        """Return the prompt, or skip a clause about answers."""
        if self.prompt is None:
            raise SkipTest("prompt is None: it is a resource that answers nothing.")
        return self.prompt

    async def answer(self, m: Any) -> Completion | None:
        """Ask a client, if the model answers."""
        if self.prompt is None:
            return None
        found: Completion = await m.generate(self.prompt, **self.params)
        return found

    # What is in memory

    @property
    def residency(self) -> Residency:
        """Where its models are."""
        return residencies.default()

    def entry(self, key: ResourceKey) -> Entry | None:
        """Return what is in memory for a key, or on its way there."""
        return self.residency.find(key)

    async def free(self, key: ResourceKey) -> None:
        """Unload one model, as `nbproviders.unload` does."""
        residency = self.residency
        await engine.default().call(lambda: residency.unload(lambda entry: entry.key == key))

    @property
    def patience_s(self) -> float:
        """How long what is ending may take."""
        return self.timeout_s / 4

    async def settled(self, true: Callable[[], object]) -> bool:
        """Wait until something is true; False if it does not come."""
        until_s = time.monotonic() + self.patience_s
        while not true():
            if time.monotonic() > until_s:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def clear(self) -> None:
        """Free all that a clause left, whatever is running."""
        origins, residency = frozenset(self.origins), self.residency
        self.origins.clear()
        # A closing that fails is told by the clause that is about closing.
        with contextlib.suppress(ProviderError):
            engine.default().wait(
                lambda: residency.unload(lambda entry: entry.key.origin in origins, force=True),
                self.timeout_s,
            )


def _checked(secrets: object) -> tuple[str, ...]:
    """Return the texts to look for, or tell why they are none, but not what they are."""
    told = type(secrets).__name__
    if isinstance(secrets, Iterable) and not isinstance(secrets, (str, bytes)):
        found = tuple(secrets)
        if all(isinstance(one, str) and one.strip() for one in found):
            return found
        told = "one with an entry that is empty or no text"
    raise ConfigurationError(
        f"secrets must be a tuple of texts, not {told}.",
        hint="Write secrets=(KEY,), with what the provider was given; () if that is nothing.",
    )


def makes(thing: object) -> TypeGuard[Callable[..., Any]]:
    """Whether it makes a provider, as a class or factory does, and is none itself."""
    made = any(hasattr(thing, method) for method in ("setup", "load_model"))
    return isinstance(thing, type) or (callable(thing) and not made)


class Watch:
    """What happens to one model from now on, by the residency's events."""

    def __init__(self, subject: Subject, provider: ModelProvider, spec: str) -> None:
        self.reference = reference(provider, spec)
        self._residency = subject.residency
        self._from_s = time.time()

    def events(self) -> list[Event]:
        """Return them, oldest first."""
        found = self._residency.events()
        return [e for e in found if e.time_s >= self._from_s and e.spec == self.reference]

    def count(self, kind: str) -> int:
        """Return how often something happened."""
        return sum(event.kind == kind for event in self.events())

    @property
    def loads(self) -> int:
        """How often it was loaded."""
        return self.count("created")


def reference(provider: ModelProvider, spec: str) -> str:
    """Return the reference by which tables show a model."""
    model, options = split_options(spec)
    return ModelSpec.of(provider.name, model, options).text


def shares(provider: ModelProvider) -> bool:
    """Whether direct setups are promised to share, as `.model()` does."""
    return isinstance(provider, ResidentProvider)


async def raised(work: Awaitable[object]) -> BaseException | None:
    """Return what something raises, of whatever kind; a cancellation from outside goes on."""
    try:
        await work
    except BaseException as error:  # the border to the provider under test; the clause shows it
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        return error
    return None


def object_of(held: object) -> object:
    """Return the object underneath a client or model; anything else is that object itself."""
    return getattr(held, "raw", held)
