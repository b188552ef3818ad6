"""Promises of objects that are providers in all but their base class."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nbproviders.abc import ModelHandle, ModelProvider
from nbproviders.authoring.weights import WrappedWeights
from nbproviders.authoring.wrapped import WrappedResource, as_provider, construct
from nbproviders.errors import ConfigurationError
from tests.scripted import ScriptedProvider
from tests.services.keys import FAKE


class Duck:
    """Has setup and teardown, and a friend."""

    friend = "goose"

    def __init__(self) -> None:
        self.log: list[str] = []

    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        self.log.append(f"setup {resource_spec} {config}")
        return ModelHandle(resource_spec, self, self)  # type: ignore[arg-type]

    async def teardown(self, resource_id: str) -> None:
        self.log.append(f"teardown {resource_id}")

    async def generate(self, prompt: str) -> str:
        return f"quack {prompt}"


async def test_an_object_with_setup_and_teardown() -> None:
    """It is a provider: set up once for all, torn down once, and its model generates."""
    duck = Duck()
    provider = as_provider(duck, "duck")
    assert isinstance(provider, ModelProvider)
    assert isinstance(provider, WrappedResource)
    async with provider.model("a", n=1) as m, provider.model("a?n=1") as n:
        assert await asyncio.gather(m.generate("x"), n.generate("y")) == ["quack x", "quack y"]
        assert m.spec == "duck:a?n=1"
    await provider.teardown_all()
    assert duck.log == ["setup a {'n': 1}", "teardown a"]


async def test_direct_calls_reach_the_object() -> None:
    """setup and teardown by hand are the object's own, and teardown_all knows them."""
    duck = Duck()
    provider = as_provider(duck, "duck")
    handle = await provider.setup("a")
    await provider.setup("b")
    await provider.teardown(handle.resource_id)
    await provider.teardown_all()
    assert duck.log[2:] == ["teardown a", "teardown b"]


def test_what_is_not_the_providers_is_the_objects() -> None:
    """`.wrapped` is the original, and its other attributes can be reached."""
    duck = Duck()
    provider = as_provider(duck, "duck")
    assert provider.wrapped is duck  # type: ignore[attr-defined]
    assert provider.friend == "goose"  # type: ignore[attr-defined]
    assert provider.name == "duck"
    with pytest.raises(AttributeError, match="enemy"):
        _ = provider.enemy  # type: ignore[attr-defined]


def test_a_provider_is_not_wrapped() -> None:
    """What has the base class stays itself."""

    class Lab(ScriptedProvider): ...

    lab = Lab()
    assert as_provider(lab, "other") is lab


def test_the_four_weights_methods_come_first() -> None:
    """An object with the weights methods is a weights provider, by the name it goes by here."""
    thing = type(
        "W",
        (),
        {
            "load_model": print,
            "load_tokenizer": print,
            "validate_model_access": print,
            "get_provider_name": lambda self: "Whatever",
        },
    )()
    provider = as_provider(thing, "mine")
    assert isinstance(provider, WrappedWeights)
    assert provider.name == "mine"


@pytest.mark.parametrize("thing", [object(), "text", 3])
def test_what_is_no_provider(thing: object) -> None:
    """It is refused by its type, with the methods it would need."""
    with pytest.raises(ConfigurationError, match="registered as 'x', is no provider") as caught:
        as_provider(thing, "x")
    assert "setup and teardown" in caught.value.hint


def test_a_key_of_a_wrong_type_is_not_shown() -> None:
    """The error of a plugin's constructor names the field, and masks what was given for it."""

    class Keyed(ScriptedProvider):
        def __init__(self, api_key: str) -> None:
            self.api_key = api_key

    with pytest.raises(ConfigurationError, match="api_key") as caught:
        construct(Keyed, "keyed", {"api_key": [FAKE]})
    assert FAKE not in str(caught.value)
