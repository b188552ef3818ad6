"""The two ways to prove a provider: `ProviderContract` in tests, `check_provider` anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import SkipTest

from nbproviders.core.params import Messages
from nbproviders.errors import ConfigurationError
from nbproviders.testing.clause import CLAUSES, ask, promise
from nbproviders.testing.report import Report
from nbproviders.testing.subject import GREEDY, Subject, makes


class ProviderContract:
    """The promises of every provider, each a test of its own.

    Subclass it in a test module, name a model, and make the provider. A clause that cannot be kept on
    purpose is taken out by name: ``test_stream_equals_generate = None``.

    Attributes
    ----------
    model
        A model that exists, with its options.
    other
        Another that exists, or the same with another option; None leaves clauses about two models out.
    missing
        What cannot be set up; None if any name can.
    prompt
        What the model answers; None for a resource that answers nothing.
    refused
        A prompt for which the model fails; None if there is none.
    params
        How it is asked, so that it answers twice alike.
    secrets
        Texts that the provider was given and must not show.
    tells_usage
        Whether completions tell their tokens; False for a backend that counts none.
    timeout_s
        Longest time for one clause.
    """

    model: str
    other: str | None = None
    missing: str | None = "no-such-model"
    prompt: str | Messages | None = "Say one word."
    refused: str | Messages | None = None
    params: Mapping[str, Any] = GREEDY
    secrets: Sequence[str] = ()
    tells_usage: bool = True
    timeout_s: float = 60.0

    def provider(self) -> object:
        """Make the provider, alike each time: nothing of an earlier one is used again."""
        raise ConfigurationError(
            f"{type(self).__name__} does not say how its provider is made.",
            hint="Write: def provider(self): return MyProvider()",
        )


_ASKED = "model other missing prompt refused params secrets tells_usage timeout_s".split()


def _test(name: str) -> Callable[[ProviderContract], None]:
    def test(self: ProviderContract) -> None:
        __tracebackhide__ = True
        row = ask(name, Subject(self.provider, **{each: getattr(self, each) for each in _ASKED}))
        if row.outcome == "skipped":
            raise SkipTest(row.came)
        assert row.outcome == "ok", str(row)

    test.__name__, test.__doc__ = f"test_{name}", promise(name)
    test.__qualname__ = f"{ProviderContract.__qualname__}.{test.__name__}"
    return test


for _name in CLAUSES:
    setattr(ProviderContract, f"test_{_name}", _test(_name))


def check_provider(
    provider: object,
    model: str,
    *,
    other: str | None = None,
    missing: str | None = "no-such-model",
    prompt: str | Messages | None = "Say one word.",
    refused: str | Messages | None = None,
    params: Mapping[str, Any] = GREEDY,
    secrets: Sequence[str] = (),
    tells_usage: bool = True,
    timeout_s: float = 60.0,
) -> Report:
    """Ask all clauses of a provider, and return what became of each. Its models are unloaded.

    Parameters
    ----------
    provider
        A provider; better, what makes it (a class, a function without parameters): then it is also seen
        that two of them share.
    model, other, missing, prompt, refused, params, secrets, tells_usage, timeout_s
        As for `ProviderContract`.
    """
    remade = makes(provider)
    make: Any = provider if remade else lambda: provider
    subject = Subject(
        make,
        model,
        other,
        missing,
        prompt,
        refused,
        params,
        secrets,
        tells_usage,
        timeout_s,
        remade,
    )
    name = getattr(provider, "name", "") or getattr(provider, "__name__", type(provider).__name__)
    return Report(f"{name}:{model}", [ask(each, subject) for each in CLAUSES])
