"""Promises of origins: who shares what he loads, and what a class defined anew leaves in memory."""

from __future__ import annotations

import functools
import gc
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring import origins
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.core import engine
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey
from nbproviders.providers.echo import EchoModel
from nbproviders.residency import residency
from nbproviders.residency.progress import Progress

CLASS = """
class Mine(Base):
    pass
"""


class Resources:
    """An object with setup and teardown, and no base class."""

    made = 0

    def __init__(self, colour: str = "blue") -> None:
        self.colour = colour

    async def setup(self, resource_spec: str, **config: Any) -> nbp.ModelHandle:
        type(self).made += 1
        return nbp.ModelHandle(resource_spec, EchoModel(0.0, 0.0, 0), self)

    async def teardown(self, resource_id: str) -> None:
        pass

    def maker(self) -> Resources:
        return Resources(self.colour)


class Base(ResidentProvider):
    """What a cell's class does."""

    name = "mine"

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        return EchoModel(0.0, 0.0, 0)


def define() -> type[ResidentProvider]:
    """Run the cell that defines a provider."""
    names: dict[str, Any] = {"Base": Base, "__name__": "__main__"}
    exec(CLASS, names)
    found: type[ResidentProvider] = names["Mine"]
    return found


@pytest.fixture(autouse=True)
def counted() -> None:
    Resources.made = 0


def residents() -> list[tuple[str, int]]:
    return [(one.spec, one.handles) for one in nbp.residents()]


async def test_the_former_class_leaves_when_the_new_one_loads() -> None:
    """A cell that is run again leaves one model, though its old handle is still open and works."""
    former = await define()().model("a").open()
    new = await define()().model("a").open()
    assert residents() == [("mine:a", 1)]
    assert await new.generate("x") == await former.generate("x") == "x"
    assert len(residents()) == 2  # the old handle was used: it has loaded again
    newest = await define()().model("a").open()
    assert residents() == [("mine:a", 1)]
    for client in (former, new, newest):
        client.close()


async def test_to_ask_whether_the_new_one_fits_frees_nothing() -> None:
    """Only its load takes the former one's place."""
    async with define()().model("a"):
        loader = define()().model("a").loader
        await engine.default().call(lambda: residency.default().fit(loader))
        assert residents() == [("mine:a", 1)]


async def test_the_former_class_does_not_push_out_the_new_one() -> None:
    """What an old provider loads later frees nothing of the new class's."""
    old, new = define()(), define()()
    async with new.model("a"), old.model("b"):
        assert len(residents()) == 2


async def test_a_model_in_use_or_pinned_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What computes, and what a person wants to stay, is not taken away by a new definition."""
    async with define()().model("a") as former:
        stream = former.stream("x")
        pinned = next(iter(origins.residencies.default().entries()))
        pinned.pinned = True
        async with define()().model("a"):
            assert len(residents()) == 2
        pinned.pinned = False
        await stream.aclose()


async def test_classes_that_a_function_makes_live_side_by_side() -> None:
    """Two classes of one name that a function made are no former and new one."""

    def make() -> ResidentProvider:
        class Mine(Base):
            pass

        return Mine()

    async with make().model("a"), make().model("a"):
        assert len(residents()) == 2


@pytest.mark.parametrize("thing", [Resources, lambda: Resources(), Resources()])
async def test_registering_again_shares_the_weights(thing: Any) -> None:
    """The cell that registers a class, a function or an object may run again: nothing loads twice."""
    for _ in range(3):
        nbp.register_provider("resources", thing)
        async with nbp.model("resources:a") as m:
            assert await m.generate("x") == "x"
    assert Resources.made == 1
    assert len(residents()) == 1


async def test_what_is_not_built_alike_shares_nothing() -> None:
    """Another configuration, another object, and what an object or a partial makes is another origin."""
    one, other = Resources("red"), Resources("green")
    things = [one, other, one.maker, other.maker, functools.partial(Resources, "red"), Resources]
    for number, thing in enumerate(things):
        nbp.register_provider(f"thing{number}", thing)
        await (await nbp.create_provider(f"thing{number}").model("a").open()).generate("x")
    nbp.register_provider("resources", Resources)
    async with nbp.create_provider("resources", colour="red").model("a"):
        assert Resources.made == len(things) + 1
    async with nbp.create_provider("resources").model("a"):  # as the last of the things
        assert Resources.made == len(things) + 1


def test_an_origin_keeps_nothing_alive() -> None:
    """The number of an object that is gone is forgotten with it."""
    gc.collect()
    before = len(origins._numbers)
    one = Resources()
    assert origins.of_object(one) == origins.of_object(one)
    assert len(origins._numbers) == before + 1
    del one
    gc.collect()
    assert len(origins._numbers) == before
