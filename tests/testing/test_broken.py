"""For every clause a provider with the smallest defect that breaks it: that clause fails, and no other."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nbproviders.abc import Finish, ModelHandle, Option, Usage, as_request
from nbproviders.authoring.resident import ResidentHandle
from nbproviders.core import engine
from nbproviders.errors import ProviderError
from nbproviders.residency import residency as residencies
from nbproviders.testing import check_provider
from nbproviders.testing.clause import CLAUSES
from tests.services.keys import FAKE
from tests.testing.authors import PROMPT, REFUSED, Resident, Resource, Words

LONG_S = 0.03  # long enough to be stopped in the middle
BROKEN: dict[str, Callable[[], Any]] = {}


def breaks(clause: str) -> Callable[[Any], Any]:
    """Enter what makes a broken provider into the table."""

    def enter(make: Any) -> Any:
        assert clause not in BROKEN
        BROKEN[clause] = make
        return make

    return enter


# How it is made, set up and torn down


@breaks("construction")
class Shouting(Resident):
    name = "My:Provider"


@breaks("lazy")
class Eager(Resident):
    """Starts a thread when it is made, and ends it when it is dropped."""

    def __init__(self):
        self.over = threading.Event()
        threading.Thread(target=self.over.wait, args=(60,), name="eager", daemon=True).start()

    def __del__(self):
        self.over.set()


@breaks("lifecycle")
class Twice(Resident):
    """Its handles are torn down as often as they are told to."""

    class Handle(ResidentHandle):
        async def teardown(self):
            self._active = True
            await super().teardown()

    async def setup(self, resource_spec, **config):
        handle = await super().setup(resource_spec, **config)
        return self.Handle(handle.resource_id, handle.model, self)


@breaks("unknown_id")
class Strict(Resource):
    """Looks an id up as if it had to be there."""

    async def teardown(self, resource_id):
        del self.things[resource_id]


@breaks("teardown_all")
class Fragile(Resource):
    """Stops at the first failure."""

    async def teardown_all(self):
        for resource_id in list(self.things):
            await self.teardown(resource_id)
        await super().teardown_all()


# Who shares what


class Own(Resident):
    """Its setups hand out what it keeps itself, once they have seen that the model is there."""

    async def setup(self, resource_spec, **config):
        handle = await super().setup(resource_spec, **config)
        await handle.teardown()
        return ModelHandle(resource_spec, await self.kept(resource_spec), self)


@breaks("sharing")
class Anew(Own):
    """Who sets up at once shares; who comes later gets another."""

    def __init__(self):
        self.under_way: dict[Any, asyncio.Future[Any]] = {}

    async def kept(self, resource_spec):
        here = asyncio.get_running_loop()
        making = self.under_way.setdefault(here, asyncio.ensure_future(self.make()))
        made = await asyncio.shield(making)
        self.under_way.pop(here, None)
        return made

    async def make(self):
        await asyncio.sleep(0.01)
        return Words()


@breaks("leases")
class Greedy(Resident):
    """Whoever gives back frees it for all; but for other threads, which is another clause's to see."""

    async def setup(self, resource_spec, **config):
        self.__dict__.setdefault("setups", []).append(threading.get_ident())
        return await super().setup(resource_spec, **config)

    async def teardown(self, resource_id):
        await super().teardown(resource_id)
        if self.setups.count(threading.get_ident()) < 2:
            return
        residency = residencies.default()
        await engine.default().call(
            lambda: residency.unload(lambda entry: resource_id in entry.specs)
        )


@breaks("other_config")
class Undecided(Resident):
    """Declares that an option decides nothing, and it does."""

    options = {"width": Option((int,), 1, "How wide.", loads=False)}


@breaks("at_once")
class Racing(Own):
    """Looks whether it is there, and makes it if not, with an await between."""

    def __init__(self):
        self.cache: dict[str, Any] = {}

    async def kept(self, resource_spec):
        if resource_spec not in self.cache:
            await asyncio.sleep(LONG_S)
            self.cache[resource_spec] = Words()
        return self.cache[resource_spec]


@breaks("different_at_once")
class Busy(Resident):
    """Refuses a load while another is under way."""

    def __init__(self):
        self.busy = False

    async def load(self, key, progress):
        if self.busy:
            raise RuntimeError("busy")
        self.busy = True
        try:
            return await super().load(key, progress)
        finally:
            self.busy = False


class Numbered(Resident):
    def __init__(self, number):
        self.number = number


_numbers = itertools.count()


@breaks("built_alike")
def numbered():
    """What differs each time it is made."""
    return Numbered(next(_numbers))


# Who calls


@breaks("clients")
class AsyncOnly(Resident):
    """Opens models by a block for async code alone."""

    def model(self, spec, **config):
        context = super().model(spec, **config)

        @asynccontextmanager
        async def block():
            async with context as m:
                yield m

        return block()


class Bound(Resident):
    """Remembers the loop that first set up."""

    def __init__(self):
        self.loop: Any = None

    async def setup(self, resource_spec, **config):
        here = asyncio.get_running_loop()
        self.loop = self.loop or here
        self.refuse(here)
        return await super().setup(resource_spec, **config)


@breaks("threads_in_turn")
class Dead(Bound):
    """Fails when that loop is closed."""

    def refuse(self, here):
        if self.loop.is_closed():
            raise RuntimeError("Event loop is closed")


@breaks("threads_at_once")
class Attached(Bound):
    """Fails while that loop is open, in any other."""

    def refuse(self, here):
        if self.loop is not here and not self.loop.is_closed():
            raise RuntimeError("attached to a different loop")


# What fails


@breaks("failed_setup")
class Wordless(Resident):
    """Its error says nothing of what to do."""

    async def setup(self, resource_spec, **config):
        try:
            return await super().setup(resource_spec, **config)
        except ProviderError as error:
            error.hint = ""
            raise


@breaks("failed_setup_leaves_nothing")
class Leaving(Resident):
    """Starts something, fails, and leaves it running."""

    async def load(self, key, progress):
        task = asyncio.ensure_future(asyncio.sleep(30))
        self.__dict__.setdefault("tasks", []).append(task)
        try:
            model = await super().load(key, progress)
        except asyncio.CancelledError:
            task.cancel()
            raise
        task.cancel()
        return model


@breaks("failed_setup_is_each_ones_own")
class Keeping(Resident):
    """Keeps the first error and raises it again."""

    failure: ProviderError | None = None

    async def setup(self, resource_spec, **config):
        try:
            return await super().setup(resource_spec, **config)
        except ProviderError as error:
            self.failure = self.failure or error
            raise self.failure from None


class Fatal(BaseException):
    """What nobody catches."""


@breaks("errors")
class Fatally(Resident):
    class model_type(Words):
        def stream(self, request):
            if as_request(request).prompt == REFUSED:
                raise Fatal("caught by nobody")
            return super().stream(request)


# What is stopped


@breaks("cancelled_load")
class Spoiling(Resident):
    """Does not take its note back when a load is cancelled."""

    load_s = LONG_S

    def __init__(self):
        self.begun: set[str] = set()

    async def load(self, key, progress):
        if key.digest in self.begun:
            raise RuntimeError("begun already")
        self.begun.add(key.digest)
        try:
            model = await super().load(key, progress)
        except Exception:
            self.begun.remove(key.digest)
            raise
        self.begun.remove(key.digest)
        return model


class Spoilt(Words):
    """Is of no use any more once it was cancelled."""

    spoilt = False

    async def _run(self, request):
        if self.spoilt:
            raise RuntimeError("left in the middle")
        try:
            async for item in super()._run(request):
                yield item
                await asyncio.sleep(LONG_S / 3)
        except asyncio.CancelledError:
            self.spoilt = self.spoils(request)
            raise


@breaks("cancelled_generation")
class SpoiltWhole(Resident):
    class model_type(Spoilt):
        def spoils(self, request):
            return request.whole


@breaks("broken_off_stream")
class SpoiltStream(Resident):
    class model_type(Spoilt):
        def spoils(self, request):
            return not request.whole


# What is answered


@breaks("stream_equals_generate")
class Cut(Resident):
    class model_type(Words):
        async def _run(self, request):
            count = 0
            async for item in super()._run(request):
                count += 1
                if isinstance(item, Finish) or request.whole or count < 4:
                    yield item


@breaks("completions")
class Uncounted(Resident):
    class model_type(Words):
        async def _run(self, request):
            async for item in super()._run(request):
                yield dataclasses.replace(item, usage=Usage()) if isinstance(item, Finish) else item


@breaks("secrets")
class Telling(Resident):
    def __repr__(self):
        return f"<Telling {FAKE}>"


# What is freed


@breaks("loads_again")
class Once(Resident):
    """Loads a model once in its life."""

    load_s = LONG_S

    def __init__(self):
        self.loaded: set[str] = set()

    async def load(self, key, progress):
        if key.digest in self.loaded:
            raise RuntimeError("there is no second time")
        model = await super().load(key, progress)
        self.loaded.add(key.digest)
        return model


@breaks("frees_the_model")
class Hoarding(Resident):
    def __init__(self):
        self.models: list[Any] = []

    async def load(self, key, progress):
        self.models.append(await super().load(key, progress))
        return self.models[-1]


class Unending(Words):
    """Starts a thread that nobody ends."""

    over: threading.Event

    def __init__(self):
        super().__init__()
        threading.Thread(target=self.over.wait, args=(60,), name="unending", daemon=True).start()


@breaks("ends_what_it_started")
class Starting(Resident):
    model_type, load_s = Unending, LONG_S


@breaks("events")
class Weightless(Resident):
    """Says that it takes less than nothing."""

    class model_type(Words):
        def __init__(self):
            super().__init__(memory_bytes={"cpu": -1})


def test_every_clause_can_fail():
    """The table has a row for each clause, and none besides."""
    assert set(BROKEN) == set(CLAUSES)


@pytest.mark.parametrize("clause", CLAUSES)
def test_it_fails_that_clause_and_no_other(clause, monkeypatch):
    """The suite tells the defect by the one clause that it breaks, with what came and what to do."""
    over = threading.Event()
    monkeypatch.setattr(Unending, "over", over, raising=False)
    other = "tiny?width=2" if issubclass_of_resident(BROKEN[clause]) else "small"
    report = check_provider(
        BROKEN[clause],
        "tiny",
        other=other,
        prompt=PROMPT,
        refused=REFUSED,
        secrets=(FAKE,),
        tells_usage=issubclass_of_resident(BROKEN[clause]),
        timeout_s=5.0,
    )
    over.set()
    assert [row.clause for row in report.failures] == [clause], report.failures
    (row,) = report.failures
    assert row.promise
    assert row.came
    assert row.todo
    assert [row.clause for row in report.rows if row.outcome == "skipped"] == []


def issubclass_of_resident(make: Any) -> bool:
    return not (isinstance(make, type) and issubclass(make, Resource))
