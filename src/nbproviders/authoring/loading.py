"""How the residency loads what a provider describes: by its `setup`, or by its `load`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from nbproviders.authoring.adapted import adapt
from nbproviders.authoring.origins import free_former
from nbproviders.core.completion import Cost, Usage
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import Messages, Request
from nbproviders.core.spec import ModelSpec, ResourceKey
from nbproviders.errors import ProviderError
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import measuring
from nbproviders.runtimes.peaks import TellsPeaks
from nbproviders.runtimes.threads import Worker

if TYPE_CHECKING:
    from nbproviders.authoring.provider import ModelHandle, ModelProvider
    from nbproviders.authoring.resident import ResidentProvider


class ResourceLoader:
    """Loads by a provider's own `setup`, on the engine's loop; closing is its `teardown`."""

    def __init__(self, provider: ModelProvider, spec: ModelSpec, key: ResourceKey) -> None:
        self.provider, self.spec, self.key = provider, spec, key

    async def prepare(self) -> None:
        """Free what a former definition of the provider has loaded."""
        await free_former(self.key.origin)

    async def estimate(self) -> Mapping[str, int]:
        """Nothing is known of what an author's setup takes."""
        return {}

    async def load(self, progress: Progress) -> Model:
        """Call `setup` once and adapt what its handle holds."""
        from nbproviders.authoring.provider import ModelHandle, managed

        progress.phase = "setting up"
        token = managed.set(True)
        try:
            handle = await self.provider.setup(self.key.model, **self.key.values)
        finally:
            managed.reset(token)
        if not isinstance(handle, ModelHandle) and not (
            hasattr(handle, "model") and hasattr(handle, "teardown")
        ):
            raise ProviderError(
                f"{type(self.provider).__name__}.setup returned {type(handle).__name__}, not a "
                "ModelHandle.",
                hint="Return ModelHandle(resource_id, model, manager=self).",
            )
        try:
            return SetUpModel(adapt(handle.model, spec=self.spec.text), handle)
        except ProviderError:
            await _torn_down(handle)  # nothing usable in it: it is not left behind
            raise


class SetUpModel(Model):
    """A model that an author's `setup` made; closing it tears its handle down."""

    def __init__(self, inner: Model, handle: ModelHandle) -> None:
        self._inner, self._handle = inner, handle
        self.info: ModelInfo = inner.info

    def stream(self, request: str | Messages | Request) -> Stream:
        """The inner model's."""
        return self._inner.stream(request)

    def cost(self, usage: Usage) -> Cost:
        """The inner model's."""
        return self._inner.cost(usage)

    @property
    def raw(self) -> object:
        """The inner model's object."""
        return self._inner.raw

    async def call(
        self, path: tuple[str, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """The inner model's."""
        return await self._inner.call(path, arguments, named)

    async def aclose(self) -> None:
        """Tear the handle down, once."""
        try:
            await _torn_down(self._handle)
        finally:
            await self._inner.aclose()


async def _torn_down(handle: ModelHandle) -> None:
    from nbproviders.authoring.provider import managed

    token = managed.set(True)
    try:
        await handle.teardown()
    finally:
        managed.reset(token)


class ResidentLoader:
    """Loads by a provider's `load`: on a thread that the model keeps, or awaited on the engine's loop."""

    def __init__(self, provider: ResidentProvider, spec: ModelSpec, key: ResourceKey) -> None:
        self.provider, self.spec, self.key = provider, spec, key
        self._told: Estimate | None = None

    @property
    def remote(self) -> bool:
        """As the provider says, before anything is loaded."""
        return self.provider.remote(self.key)

    async def prepare(self) -> None:
        """Free what a former definition of the provider has loaded."""
        await free_former(self.key.origin)

    async def estimate(self) -> Mapping[str, int]:
        """Ask the provider, off the loop: headers are read and libraries imported."""
        self._told = await asyncio.to_thread(self._estimated)
        return self._told

    def _estimated(self) -> Estimate:
        return measuring.corrected(Estimate.of(self.provider.estimate(self.key)))

    @property
    def download(self) -> Callable[[Progress], Awaitable[None]] | None:
        """What has the provider bring the files that are not here; None if it never does."""
        return self._download if _fetches(type(self.provider)) else None

    async def _download(self, progress: Progress) -> None:
        """Cancelled, it stops at its next report."""
        fetch: Any = self.provider.fetch_files
        if inspect.iscoroutinefunction(fetch):
            await fetch(self.key, progress)
        else:
            await self._on_thread(fetch, self.key, progress)

    async def prefetch(self, progress: Progress) -> None:
        """Have the provider read ahead, on a thread; it stops when `progress` is cancelled."""
        await self._on_thread(self.provider.prefetch, self.key, progress)

    async def load(self, progress: Progress) -> Model:
        """Run `load`. Cancelled, one on a thread stops at its next report and leaves nothing."""
        model = await self._loaded(progress)
        if self._told is not None and self._told.architecture:
            remember = partial(
                measuring.remember, self.spec.text, self._told, dict(model.info.memory_bytes)
            )
            if isinstance(model, TellsPeaks):
                model.on_peak(remember)
            # Not waited for: cancelled here, a model that has loaded would belong to nobody.
            asyncio.get_running_loop().run_in_executor(None, remember)
        return model

    async def _loaded(self, progress: Progress) -> Model:
        if inspect.iscoroutinefunction(self.provider.load):
            return await self.provider.open_spec(self.spec, self.key, progress)
        model: Model = await self._on_thread(self.provider.load_spec, self.spec, self.key, progress)
        return model

    async def _on_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on a thread, which what it loads may keep; a `Progress` is its last argument."""
        worker = Worker(self.spec.model.rpartition("/")[2])
        work = asyncio.ensure_future(worker.run(function, *arguments))
        stays = False
        try:
            done = await asyncio.shield(work)
            stays = worker.claimed
        except asyncio.CancelledError:
            stays = True  # until it has wound down
            arguments[-1].cancel()
            # A task of its own: a second cancellation ends this waiting, not the clearing up.
            winding = asyncio.ensure_future(_wound_down(work, worker))
            _winding.add(winding)
            winding.add_done_callback(_winding.discard)
            await asyncio.shield(winding)
            raise
        finally:
            if not stays:
                await worker.close()
        return done


def _fetches(kind: type) -> bool:
    """Whether files are fetched for a class; not where a derived class has changed what is loaded."""
    from nbproviders.authoring.resident import ResidentProvider

    order = kind.__mro__
    fetches, loads = (
        next(place for place, one in enumerate(order) if name in vars(one))
        for name in ("fetch_files", "load")
    )
    return order[fetches] is not ResidentProvider and fetches <= loads


_winding: set[asyncio.Future[None]] = set()  # the loop itself keeps tasks by weak references only


async def _wound_down(work: asyncio.Future[Any], worker: Worker) -> None:
    """Close what a cancelled load may still have loaded, and end its thread."""
    try:
        await _ended(work)
    finally:
        await worker.close()


async def _ended(work: asyncio.Future[Any]) -> None:
    """Wait for a thread that was told to stop; close what it loaded all the same, if anything."""
    done, _ = await asyncio.wait({work})
    for future in done:
        if not future.cancelled() and future.exception() is None and future.result() is not None:
            await future.result().aclose()
