"""The grid of a comparison: models and prompts as users write them, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nbproviders import registry
from nbproviders.authoring.adapted import Adapted
from nbproviders.authoring.opening import ModelContext
from nbproviders.authoring.provider import ModelHandle
from nbproviders.core.client import Client, SyncClient
from nbproviders.core.model import Model
from nbproviders.core.params import Message, as_request
from nbproviders.core.spec import ModelSpec
from nbproviders.errors import ConfigurationError, InvalidRequestError, ProviderError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of the grid.

    Attributes
    ----------
    place
        Its number, from 0, or the ``prompt_id`` that came with it.
    prompt
        Text or messages.
    expected
        The right answer, for scorers; None if there is none.
    extra
        Further fields that came with it, such as ``task``.
    """

    place: object
    prompt: str | tuple[Message, ...]
    expected: object = None
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """One model of the grid.

    Attributes
    ----------
    spec
        Its reference.
    context
        How to open it; None if it is open already.
    model
        The open model; None if it is to be opened.
    error
        Why it cannot be used; its cells fail with this.
    label
        The name that was given to it.
    """

    spec: str
    context: ModelContext | None = None
    model: Model | None = None
    error: ProviderError | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """How rows name it: as it was labelled, else by its reference."""
        return self.label or self.spec

    @property
    def remote(self) -> bool:
        """Whether another machine computes, so that others can be asked at the same time."""
        if self.model is not None:
            return self.model.info.remote
        try:
            return self.context is not None and self.context.remote
        except ProviderError:  # its cells fail with it
            return False

    @property
    def provider_name(self) -> str:
        """What stands before the colon."""
        return self.spec.partition(":")[0]

    @property
    def model_name(self) -> str:
        """What stands behind it."""
        return self.spec.partition(":")[2] or self.spec


def contenders(models: Any) -> list[Contender]:
    """Return the models of a comparison: references, handles, clients, or anything with the waist.

    A mapping gives each a name of its own.

    Raises
    ------
    ConfigurationError
        For none, for one given twice, and for something that is no model.
    """
    if isinstance(models, (str, ModelSpec)) or not isinstance(models, Iterable):
        models = [models]
    if isinstance(models, Mapping):
        found = [replace(_contender(model), label=_label(name)) for name, model in models.items()]
    else:
        found = [_contender(model) for model in models]
    if not found:
        raise ConfigurationError(
            "A comparison needs at least one model.", hint='For example ["transformers:demo-m"].'
        )
    seen: set[str] = set()
    for one in found:
        if one.name in seen:
            raise ConfigurationError(
                f"The model {one.name!r} is given twice.",
                hint="To ask a model several times, write repeats=2. To tell two models apart that are "
                'called alike, name them: compare({"lab": one, "hosted": other}, …).',
            )
        seen.add(one.name)
    return found


def _label(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(
            f"A model cannot be named {name!r:.60} ({type(name).__name__}).",
            hint='Write {"a name": model, …}.',
        )
    return name


def _contender(model: Any) -> Contender:
    if isinstance(model, Contender):  # found already, by the blocking form
        return model
    if isinstance(model, ModelHandle):
        model = model.model
    if isinstance(model, (str, ModelSpec)):
        provider, spec = registry.find(model)
        try:
            return Contender(spec.text, context=provider.model(spec.name))
        except ConfigurationError:
            raise
        except ProviderError as error:
            return Contender(spec.text, error=error)
    if isinstance(model, ModelContext):
        return Contender(model.spec, context=model)
    if isinstance(model, (Client, SyncClient)):
        return Contender(model.spec, model=model.waist)
    if isinstance(model, Model):
        return Contender(model.info.spec, model=model)
    if callable(getattr(model, "generate", None)) or callable(getattr(model, "stream", None)):
        adapted = Adapted(model, f"object:{type(model).__name__}")
        return Contender(adapted.info.spec, model=adapted)
    raise ConfigurationError(
        f"{model!r:.60} ({type(model).__name__}) is no model.",
        hint="Give a reference such as 'transformers:demo-m', a client, or an object with generate().",
    )


def prompts(given: Any) -> list[Prompt]:
    """Return the prompts of a comparison.

    Parameters
    ----------
    given
        Strings; ``(prompt, expected)`` pairs; dicts or a DataFrame with ``prompt``, ``expected`` and
        any further fields; or lists of messages. One kind throughout.

    Raises
    ------
    InvalidRequestError
        For none, for mixed kinds, and for something that is no prompt, saying which.
    """
    if isinstance(given, str):
        raise InvalidRequestError(
            f"compare takes a list of prompts, not one str: {given!r:.60}", hint="Write [prompt]."
        )
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        given = [_without_missing(row) for row in given.to_dict("records")]
    if not isinstance(given, Iterable):
        raise InvalidRequestError(f"compare takes a list of prompts, not {type(given).__name__}.")
    items = list(given)
    if not items:
        raise InvalidRequestError(
            "An empty list of prompts has nothing to compare.", hint="Give at least one."
        )
    kinds = [_kind(item, i) for i, item in enumerate(items)]
    if len(set(kinds)) > 1:
        other = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
        raise InvalidRequestError(
            f"The prompts are mixed: number 0 is {kinds[0]}, number {other} is {kinds[other]}.",
            hint="Write all of one kind: strings, (prompt, expected) pairs, or dicts.",
        )
    return [_prompt(item, kinds[0], i) for i, item in enumerate(items)]


def _without_missing(row: dict[Any, Any]) -> dict[str, Any]:
    """Return a DataFrame's row with its missing values as None."""
    return {str(k): None if isinstance(v, float) and v != v else v for k, v in row.items()}


def _kind(item: Any, place: int) -> str:
    if isinstance(item, str):
        return "a string"
    if isinstance(item, Mapping) and "prompt" in item:
        return "a dict"
    if isinstance(item, Sequence) and item and all(isinstance(turn, Mapping) for turn in item):
        return "a list of messages"
    if isinstance(item, tuple) and len(item) == 2:
        return "a pair"
    raise InvalidRequestError(
        f"Prompt number {place} is no prompt: {item!r:.80}",
        hint="Write a string, a (prompt, expected) pair, or a dict with 'prompt' and 'expected'.",
    )


def _prompt(item: Any, kind: str, place: int) -> Prompt:
    if kind == "a dict":
        extra = {str(k): v for k, v in item.items() if k not in ("prompt", "expected", "prompt_id")}
        text, expected, name = item["prompt"], item.get("expected"), item.get("prompt_id", place)
    elif kind == "a pair":
        (text, expected), name, extra = item, place, {}
    else:
        text, expected, name, extra = item, None, place, {}
    try:
        checked = as_request(text).prompt
    except InvalidRequestError as error:
        raise InvalidRequestError(
            f"Prompt number {place}: {error.message}", hint=error.hint
        ) from None
    return Prompt(name, checked, expected, extra)
