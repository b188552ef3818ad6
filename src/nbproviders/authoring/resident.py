"""`ResidentProvider`: write `load`, and have sharing, leases, eviction and threads done for you."""

from __future__ import annotations

import contextvars
import dataclasses
from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Awaitable, Mapping
from typing import Any

from nbproviders.authoring.loading import ResidentLoader
from nbproviders.authoring.provider import ModelHandle, ModelProvider, managed
from nbproviders.core import engine
from nbproviders.core.client import Client
from nbproviders.core.model import Model
from nbproviders.core.spec import ModelSpec, ResourceKey
from nbproviders.errors import ProviderError, setup_failed
from nbproviders.residency import residency as residencies
from nbproviders.residency.entry import Loader
from nbproviders.residency.progress import Progress

_returning: contextvars.ContextVar[Client | None] = contextvars.ContextVar(
    "returning", default=None
)


class ResidentProvider(ModelProvider):
    """A provider whose models live in memory. Write `load`; `estimate` helps it to find room.

    Direct `setup` and `teardown` share the residency with `model`: each setup takes a lease.
    """

    @abstractmethod
    def load(self, key: ResourceKey, progress: Progress) -> Model | Awaitable[Model]:
        """Load a model. A plain function runs on the thread that will be the model's own.

        An ``async def`` runs on the engine's loop: for what is reached and not computed here.

        Parameters
        ----------
        key
            ``key.model`` is the name after aliases; ``key.values`` are the load options.
        progress
            Report bytes here. It raises when the load is no longer wanted: let it.
        """

    def estimate(self, key: ResourceKey) -> Mapping[str, int]:
        """Return the bytes a model will take on each device; nothing if unknown."""
        return {}

    def fetch_files(self, key: ResourceKey, progress: Progress) -> Awaitable[None] | None:
        """Bring to this machine what `estimate` and `load` will read, unless it is here. Optional.

        Called before each load, before room is looked for, and while another model computes that is compared
        with this one: on a thread, or, if it is an ``async def``, on the engine's loop. A class that has a
        `load` of its own gets none of a class it derives from.

        Parameters
        ----------
        key
            As `load` will get it.
        progress
            Report bytes here. It raises when nobody wants the model any more: let it, and keep what has come.
        """
        return None

    def prefetch(self, key: ResourceKey, progress: Progress) -> None:
        """Bring what a load will read closer, such as files into the system's cache. Optional.

        Called on a thread while another model computes, after `fetch_files`. Take no memory that somebody
        might want.
        """

    def remote(self, key: ResourceKey) -> bool:
        """Return whether another machine computes; see `ModelInfo`."""
        return False

    def load_spec(self, spec: ModelSpec, key: ResourceKey, progress: Progress) -> Model:
        """Load, and have the model know its reference."""
        progress.phase = "loading"
        return self._known(self.load(key, progress), spec)

    async def open_spec(self, spec: ModelSpec, key: ResourceKey, progress: Progress) -> Model:
        """The same for a ``load`` that is awaited."""
        progress.phase = "connecting"
        loading: Any = self.load(key, progress)
        return self._known(await loading, spec)

    def _known(self, model: Any, spec: ModelSpec) -> Model:
        """Return what was loaded, with its reference."""
        if not isinstance(model, Model):
            raise ProviderError(
                f"{type(self).__name__}.load returned {type(model).__name__}, not a Model.",
                hint="Return a Model, or use nbproviders.abc.adapt(…).",
            )
        model.info = dataclasses.replace(model.info, spec=spec.text)
        return model

    async def setup(self, resource_spec: str, **config: Any) -> ModelHandle:
        """Return a handle of a model in memory, loading it once however many ask at once.

        Raises
        ------
        ProviderError
            ``Failed to setup resource '<spec>': <cause>``, and what to do.
        """
        try:
            opened = self._open(resource_spec, config)
        except ProviderError as error:
            raise setup_failed(resource_spec, error) from None
        client = await opened.client()
        handle = ResidentHandle(opened.loader.spec.text, client, self)
        if not managed.get():
            self._lent[handle.resource_id].append(client)
        return handle

    async def teardown(self, resource_id: str) -> None:
        """Give back the oldest lease that a direct `setup` took.

        With none left, free the model if no handle is open; else, and for an unknown id, do nothing.
        """
        lent = self._lent[resource_id]
        mine = _returning.get()
        if mine is not None:
            if mine in lent:  # else it went back by id already
                lent.remove(mine)
            mine.close()
        elif lent:
            lent.popleft().close()
        else:
            del self._lent[resource_id]
            await self._free_unheld(resource_id)

    async def _free_unheld(self, resource_id: str) -> None:
        residency = residencies.default()
        await engine.default().call(
            lambda: residency.unload(
                lambda entry: (
                    entry.key.origin == self._origin
                    and resource_id in entry.specs
                    and not residency.handles(entry.key)
                )
            )
        )

    async def teardown_all(self) -> None:
        """Give back every lease of direct setups and free all models of this provider."""
        for lent in self._lent.values():
            for client in lent:
                client.close()
        self._lent.clear()
        await super().teardown_all()

    @property
    def _lent(self) -> defaultdict[str, deque[Client]]:
        lent: defaultdict[str, deque[Client]] = self.__dict__.setdefault(
            "_lent_clients", defaultdict(deque)
        )
        return lent

    def _loader(self, spec: ModelSpec, key: ResourceKey) -> Loader:
        return ResidentLoader(self, spec, key)


class ResidentHandle(ModelHandle):
    """A handle that gives back its own lease, not just the oldest of its resource."""

    async def teardown(self) -> None:
        """Give the lease back, exactly once however often this is called."""
        token = _returning.set(self.model)
        try:
            await super().teardown()
        finally:
            _returning.reset(token)
