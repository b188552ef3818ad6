"""Promises of the base of models around models: what they do not say themselves is the inner one's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from nbproviders.core.completion import Finish, Usage, finish_of
from nbproviders.core.model import Model
from nbproviders.core.params import Request
from nbproviders.core.wrapping import Wrapping
from nbproviders.errors import UnsupportedError
from tests.scripted import PricedModel, ScriptedModel


class Shouting(Wrapping):
    async def _run(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        async with self._model.stream(request) as stream:
            async for chunk in stream:
                yield chunk.upper()
            yield finish_of(stream.completion)


async def test_what_it_does_not_say_is_the_inner_models() -> None:
    """Facts, object and calls pass through, now and after they change; closing it closes nothing."""
    inner = ScriptedModel()
    outer: Model = Shouting(inner)
    assert outer.info is inner.info
    inner.info = replace(inner.info, parallel=7)
    assert outer.info.parallel == 7
    outer.info = replace(outer.info, spec="other:name")
    assert inner.info.spec == "other:name"
    assert outer.raw is inner.raw
    with pytest.raises(UnsupportedError, match="has no method 'a.b'"):
        await outer.call(("a", "b"), (), {})
    await outer.aclose()
    assert not inner.closed


async def test_its_own_way_to_stream_is_that_of_whole_answers_too() -> None:
    """One method is enough: generate reads the stream, and usage is the inner model's."""
    completion = await Shouting(ScriptedModel()).generate("one two")
    assert completion == "ONE TWO"
    assert completion.usage == Usage(2, 2)


def test_prices_are_the_inner_models() -> None:
    """What asking costs is nobody else's to say."""
    inner = PricedModel()
    assert Shouting(inner).cost(Usage(1, 1)) == inner.cost(Usage(1, 1))
