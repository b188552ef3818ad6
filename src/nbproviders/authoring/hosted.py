"""`HostedProvider`: a `BaseProvider` over a `Wire`; what all services have in common and no protocol.

Its key is looked for anew at each request, so a corrected one counts at once. A key that the environment or
the keyring holds goes to the service's own address only, and one that the constructor was given only to the
constructor's: a reference in somebody's notebook that names another ``base_url`` gets none. Whatever loop
an instance is called from, it works on the engine's.
"""

from __future__ import annotations

import asyncio
import builtins
import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self, TypeVar

from nbproviders.authoring.opening import Opened
from nbproviders.authoring.options import Option, check
from nbproviders.authoring.service import (
    CONFIG_OPTIONS,
    LOCAL,
    BaseProvider,
    asking,
    served,
)
from nbproviders.catalog import keys
from nbproviders.catalog.services import Service
from nbproviders.core import engine
from nbproviders.core.completion import FREE, UNPRICED, Completion, Cost, Finish, Usage
from nbproviders.core.config import ProviderConfig, Secret
from nbproviders.core.model import answer
from nbproviders.core.params import GenerationParams, Messages, Request, as_request
from nbproviders.core.spec import ResourceKey
from nbproviders.core.streams import ClientStream
from nbproviders.errors import AuthenticationError, ConfigurationError, ProviderError
from nbproviders.runtimes.http import Wire
from nbproviders.runtimes.http.call import origin_of

T = TypeVar("T")

HEALTH_S = 5.0
_PARALLEL = Option((int,), 32, "Requests at once, at most 512; the others wait here.")
_STORED = "a place other than the environment"


class HostedProvider(BaseProvider):
    """A service behind a `Wire`. Write `answer`, `list_models` and what the service is called.

    Parameters
    ----------
    config
        How it is reached.
    **settings
        Options of this provider; see ``settings``.

    Attributes
    ----------
    takes
        Parameters that the service honours; a completion tells those that were asked for besides.
    can
        What its models can, for `ModelInfo`.
    calls
        Calls that a model's client hands through: their names, and methods of this class.
    home
        Its row in the table of services, or one of its own.
    """

    settings: ClassVar[Mapping[str, Option]] = {"parallel": _PARALLEL}
    home: ClassVar[Service]
    takes: ClassVar[frozenset[str]] = frozenset(GenerationParams.model_fields)
    can: frozenset[str] = frozenset({"chat"})
    calls: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Declare the settings of its own as options of references."""
        super().__init_subclass__(**kwargs)
        # Without their defaults: what a reference does not say is as the constructor has it.
        own = {name: replace(option, default=None) for name, option in cls.settings.items()}
        cls.options = {**CONFIG_OPTIONS, **own}

    def __init__(self, config: ProviderConfig, **settings: Any) -> None:
        super().__init__(config)
        self.chosen = check(type(self).settings, settings, config.name)
        self.service = self._row(config.name)
        self._wired: tuple[tuple[object, ...], Wire] | None = None
        self._key_place = ""  # where the key of the last request was found: a variable, or _STORED
        self._withheld = False
        if not 1 <= self.parallel <= 512:
            raise ConfigurationError(f"parallel={self.parallel} must be from 1 to 512.")

    @property
    def parallel(self) -> int:
        """Requests at once."""
        told = self.chosen["parallel"]
        return int(_PARALLEL.default if told is None else told)

    def _row(self, name: str) -> Service:
        """Return the service that a provider of this name reaches."""
        return self.home

    # What a service's own class writes

    @abstractmethod
    def answer(self, request: Request) -> AsyncGenerator[str | Finish, None]:
        """Ask, and yield the text in pieces, then a `Finish`; all on the engine's loop."""

    @abstractmethod
    async def _list_models(self) -> list[str]:
        """Return the names of the service's models."""

    async def _probe(self) -> None:
        """Ask for something that costs nothing and takes the key; for `health_check`."""
        await self._list_models()

    def _headers(self) -> Mapping[str, str]:
        """Return what each request carries, the key among it."""
        key = self._secret()
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    # For its users, from any loop

    async def generate(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> Completion:
        """Return one completion of ``config.model``, asking again as ``config.max_retries`` says."""
        request = as_request(prompt, params, whole=True, **overrides)
        return await on_engine(lambda: answer(served(self), request))

    def stream(
        self,
        prompt: str | Messages | Request,
        params: GenerationParams | None = None,
        **overrides: Any,
    ) -> ClientStream:
        """Return a completion as it is written."""
        request = as_request(prompt, params, **overrides)
        return ClientStream(served(self), request, engine.default())

    async def list_models(self) -> list[str]:
        """Return the names of the models that the service offers to this key."""
        return await self._asked(self._list_models)

    async def health_check(self) -> bool:
        """Return whether the service answers and takes the key, within 5 s; the reason is logged."""
        try:
            async with asyncio.timeout(HEALTH_S):
                await self._asked(self._probe)
        except (ProviderError, builtins.TimeoutError) as error:
            reason = error if isinstance(error, ProviderError) else f"no answer in {HEALTH_S:g} s"
            self.logger.warning("%s is not healthy: %s", self.config.name, reason)
            return False
        return True

    async def aclose(self) -> None:
        """Close its connections; the next request opens them anew."""
        wired, self._wired = self._wired, None
        if wired is not None:
            await on_engine(wired[1].aclose)

    async def __aexit__(self, *_: object) -> None:
        """The same as `aclose`."""
        await self.aclose()

    def cost(self, usage: Usage) -> Cost:
        """Return the price of so many tokens: nothing on this machine, else by the price list."""
        if self._here:
            return FREE
        if not self._at_home or not self.config.model:
            return UNPRICED
        from nbproviders.catalog import prices

        cost = prices.price(self.service.name, self.config.model, usage)
        # What stands where the environment says may be a gateway with prices of its own.
        moved = self._place != origin_of(self.service.base_url)
        return replace(cost, kind="estimated") if moved and cost.usd is not None else cost

    # For its class

    @property
    def base_url(self) -> str:
        """Where it is: as configured, else by the environment, else the service's own address."""
        if self.config.base_url:
            return self.config.base_url
        named = os.environ.get(self.service.url_variable, "") if self.service.url_variable else ""
        return named.rstrip("/") or self.service.base_url

    @property
    def wire(self) -> Wire:
        """The way to the service, as it is configured now; used on the engine's loop.

        Another address since the last request is another wire: a key that is looked for now must not go
        where the last one went. What is under way on the old one goes on.
        """
        route = self._route()
        if self._wired is None or self._wired[0] != route:
            self._wired = route, self._made_wire()
        return self._wired[1]

    def _route(self) -> tuple[object, ...]:
        """Return all that a wire is made of."""
        config = self.config
        return self.base_url, config.timeout, config.verify_ssl, config.name, config.model

    def _made_wire(self) -> Wire:
        return Wire(self.base_url, headers=self._headers, **self._wiring)

    @property
    def _wiring(self) -> dict[str, Any]:
        """What the configuration says of any wire."""
        config = self.config
        what = self._what if config.model else config.name
        return {"timeout_s": config.timeout, "verify_ssl": config.verify_ssl, "what": what}

    @property
    def _what(self) -> str:
        """Who is asked, for errors."""
        return f"{self.config.name}:{self.config.model}"

    @property
    def _named(self) -> str:
        """The model's name.

        Raises
        ------
        ConfigurationError
            If there is none.
        """
        if not self.config.model:
            raise ConfigurationError(
                f"{self.config.name} was not told which model to ask.",
                hint=f"Write model=…, or {self.config.name}:model in a reference.",
            )
        return self.config.model

    @property
    def _place(self) -> tuple[str, str, int, bool]:
        """Where it is, as `origin_of` tells it."""
        try:
            return origin_of(self.base_url)
        except ValueError:  # not shown: it may be a key in the wrong place
            raise ConfigurationError(
                f"{self.service.url_variable or 'base_url'} must be a URL.",
                hint=f"Such as {self.service.base_url}.",
            ) from None

    @property
    def _here(self) -> bool:
        """Whether it runs on this machine."""
        return self._place[1] in LOCAL

    @property
    def elsewhere(self) -> bool:
        """Whether another machine computes: for a service the rule."""
        return not self._here

    @property
    def _at_home(self) -> bool:
        """Whether it is asked at its own address, or where the environment says."""
        if self.config.base_url is None:
            return True
        return origin_of(self.config.base_url) == origin_of(self.service.base_url)

    def _secret(self) -> Secret | None:
        """Return the key: as configured, else the environment's or the keyring's.

        Raises
        ------
        AuthenticationError
            If the service needs one and nobody knows it.
        """
        if self.config.api_key:
            return self.config.api_key
        variables = self.service.key_variables
        if not variables or not self._at_home:
            self._key_place = ""
            return None
        key = keys.find(variables)
        if key is None:
            raise AuthenticationError(
                f"{self.service.title} needs an API key, and none was found.",
                hint=f"Set {' or '.join(variables)} in the environment, store it in the keyring, or "
                f'pass it: nbp.create_provider("{self.config.name}", api_key=…). See docs/keys.md.',
            )
        set_ones = (name for name in variables if os.environ.get(name, "").strip())
        self._key_place = next(set_ones, _STORED)
        return key

    async def _asked(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what a coroutine function returns, run on the engine; all errors are ours."""
        with asking(self, self.config.name):
            return await on_engine(work)

    def _refused(self, error: AuthenticationError) -> None:
        """Say which key the service refused; forget a stored one, so that it is asked for again."""
        if "hint" not in vars(error):  # whoever raised it knew no better than its class
            if not self.config.api_key and not self._key_place:
                error.args = (f"{error.message} (No key was sent.)",)
            error.hint = self._key_hint()
        if not self.config.api_key and self._at_home:
            keys.forget(self.service.key_variables)

    def _key_hint(self) -> str:
        """Return what to do about the key of the last request, or about none."""
        service, variables = self.service, self.service.key_variables
        give = f'nbp.model("{self.config.name}:…", api_key=…)'
        if self.config.api_key:
            return "The key given as api_key=… was refused. Check it, and what it may be used for."
        if self._key_place == _STORED:
            return (
                "The key that was entered, or stored in the keyring, was refused and is forgotten. Run "
                "the cell that opens the model again, and you will be asked. To replace a stored one: "
                f"keyring set {keys.KEYRING_SERVICE} {variables[0]}"
            )
        if self._key_place:
            return (
                f"The key in the environment's {self._key_place} was refused. Check it, and what it may "
                f"be used for, or pass another: {give}."
            )
        if self._withheld:
            return f"The provider's own api_key goes to its own base_url only. Pass this one's: {give}."
        if not variables:
            return f"{service.title} by itself needs no key. Pass one if this one does: {give}."
        if self.config.name != service.name:
            return f"Keys of services are sent to no other address. Pass this one's: {give}."
        whose, further = f"{' or '.join(variables)} is sent to {service.title} itself only", ""
        if service.url_variable:
            whose += f", or where {service.url_variable} says"
            further = f", or set {service.url_variable} to it instead of base_url"
        return f"{whose}. Pass the key of this address: {give}{further}."

    def _ignored(self, request: Request) -> tuple[str, ...]:
        """Return the names of the parameters that were asked for and are not taken."""
        return tuple(name for name in request.params.given() if name not in self.takes)

    # How references become instances

    def _open(self, spec: str, config: Mapping[str, Any]) -> Opened:
        opened = super()._open(spec, config)
        given = opened.loader.key.values
        told = self.config.api_key or given.get("api_key") or given.get("base_url")
        if not told and self._at_home and self.service.key_variables:
            keys.ask(self.service.title, self.service.key_variables)
        return opened

    def _config_of(self, key: ResourceKey) -> ProviderConfig:
        """Return how a reference is reached; one that leads elsewhere does not take the key along."""
        made = super()._config_of(key)
        if key.values.get("api_key") is None and self._leads_away(key):
            return made.model_copy(update={"api_key": None})
        return made

    def _leads_away(self, key: ResourceKey) -> bool:
        """Whether a reference names an address that the key of this provider was not given for."""
        named = key.values.get("base_url")
        return named is not None and origin_of(named) != self._place

    def _instance(self, key: ResourceKey) -> Self:
        given = {name: key.values.get(name) for name in type(self).settings}
        own = {name: v for name, v in given.items() if v is not None}
        made = type(self)(self._config_of(key), **{**self.chosen, **own})
        made._withheld = bool(self.config.api_key and not made.config.api_key)
        return made

    async def __aenter__(self) -> Self:
        """Check that there is a key, before anything is asked."""
        self._headers()
        await asyncio.to_thread(self.cost, Usage(1, 1))  # reads the price list off the loop
        return self


async def on_engine(work: Callable[[], Awaitable[T]]) -> T:
    """Return what a coroutine function returns, run on the engine's loop."""

    async def run() -> T:
        return await work()

    return await engine.default().call(run)
