"""`gigachat`: Sber's GigaChat. Chat completions, to which access tokens let in that live half an hour.

The protocol is that of https://developers.sber.ru/docs/ru/gigachat/api/reference/rest/gigachat-api.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.catalog.services import SERVICES, Service
from nbproviders.core.config import ProviderConfig, Secret
from nbproviders.core.params import Message, Request
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    ForeignError,
    InvalidRequestError,
    ProviderError,
    ServiceUnavailableError,
    fresh,
)
from nbproviders.providers.openai import OpenAIProvider
from nbproviders.runtimes.chat_completions import Dialect
from nbproviders.runtimes.http import Wire
from nbproviders.runtimes.http.call import origin_of
from nbproviders.runtimes.http.events import Event

AUTH_URL = "https://ngw.devices.sberbank.ru:9443/api/v2/oauth"
AUTH_URL_VARIABLE = "GIGACHAT_AUTH_URL"
SCOPE = "GIGACHAT_API_PERS"
SCOPE_VARIABLE = "GIGACHAT_SCOPE"
MARGIN_S = 60.0
# The service takes no 0; below 0.001 it is as deterministic as it can be.
_GREEDY = 0.0001
_SECONDS_BELOW = 1e11  # a time that is told in seconds; in milliseconds this was 1973
_TLS_HINT = (
    "GigaChat's certificates are signed by the Russian Trusted Root CA, which is in no usual store. Get it "
    "from https://www.gosuslugi.ru/crt and name its file: SSL_CERT_FILE=/path/russian_trusted_root_ca.pem. "
    "verify_ssl=False trusts anyone who answers, and shows them the key."
)
_SCOPE_HINT = (
    "The scope goes with the key: scope=GIGACHAT_API_PERS for private persons, GIGACHAT_API_B2B or "
    "GIGACHAT_API_CORP for companies."
)
_KEY_HINT = (
    "api_key (GIGACHAT_CREDENTIALS) is the authorization key of the project: one text in Base64, as the "
    "developers' site shows it; neither an access token nor the client's id."
)


class GigaChatProvider(OpenAIProvider):
    """Chat completions behind access tokens, which are fetched and renewed by themselves.

    Parameters
    ----------
    config
        ``api_key`` is the authorization key, ``scope`` what it is for: as given, else by the environment
        (GIGACHAT_SCOPE), else GIGACHAT_API_PERS.
    **settings
        ``parallel``, ``stream``, ``extra_body``, ``auth_url``.
    """

    name = "gigachat"
    home: ClassVar[Service] = SERVICES["gigachat"]
    settings: ClassVar[Mapping[str, Option]] = {
        **OpenAIProvider.settings,
        "parallel": Option(
            (int,), 1, "Requests at once; private persons' keys are mostly let in one."
        ),
        "auth_url": Option((str,), help="Where access tokens are given, if not at Sber's address."),
    }
    can = frozenset({"chat", "proxy"})

    def __init__(self, config: ProviderConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        _ = self._at_home  # which checks auth_url

    def _spoken(self) -> Dialect:
        # It has no field for a seed or for stop strings.
        return Dialect(seed="", stream_usage=False, refused={"stop"})

    @property
    def _auth_url(self) -> str:
        """Where tokens are given: as chosen, else by the environment, else Sber's own address."""
        return self.chosen["auth_url"] or os.environ.get(AUTH_URL_VARIABLE) or AUTH_URL

    @property
    def _at_home(self) -> bool:
        """Whether both are at home, the service and the place that gives tokens: both get secrets."""
        try:
            origin = origin_of(self._auth_url)
        except ValueError:  # not shown: it may be a key in the wrong place
            raise ConfigurationError(
                "auth_url must be a URL.", hint=f"Sber's own is {AUTH_URL}."
            ) from None
        usual = self.chosen["auth_url"] is None or origin == origin_of(AUTH_URL)
        return super()._at_home and usual

    def _route(self) -> tuple[object, ...]:
        return *super()._route(), self._auth_url, self.config.scope, os.environ.get(SCOPE_VARIABLE)

    def _made_wire(self) -> Wire:
        tokens = _Tokens(Wire(self._auth_url, **self._wiring), self)
        return _TokenWire(self.base_url, tokens, **self._wiring)

    def _leads_away(self, key: ResourceKey) -> bool:
        named = key.values.get("auth_url")
        return super()._leads_away(key) or (named is not None and named != self._auth_url)

    def _headers(self) -> Mapping[str, str]:
        """Check that there is a key. It is sent for tokens only, and the wire adds those."""
        self._secret()
        return {}

    def _within(self, request: Request) -> Request:
        """Return a request as the service takes it, with one system prompt, which stands first."""
        self._turns_only(request)
        params = request.params
        if params.temperature is not None and params.temperature < _GREEDY:
            request = replace(request, params=params.merged(temperature=_GREEDY))
        if isinstance(request.prompt, str):
            return request
        return replace(request, prompt=_one_system_prompt(request.prompt))


def _one_system_prompt(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    if not system:
        return turns
    first = Message(role="system", content="\n\n".join(system))
    return (first, *(turn for turn in turns if turn["role"] != "system"))


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token, kept in memory only.

    Attributes
    ----------
    text
        As it is sent.
    key
        The authorization key it was given for.
    ends_s
        When it ends, as `time.time` tells it.
    """

    text: Secret
    key: Secret
    ends_s: float


class _Tokens:
    """The access token: fetched when it is needed, once for all who wait, and anew before it ends."""

    def __init__(self, giver: Wire, provider: GigaChatProvider) -> None:
        self._giver = giver
        self._provider = provider
        self._token: _Token | None = None
        self._fetching: asyncio.Task[_Token] | None = None

    async def get(self, refused: Secret | None = None) -> Secret | None:
        """Return a token that still lives, and is another than the service refused; None without a key."""
        key = self._provider._secret()
        if key is None:
            return None
        token = self._token
        lives = token is not None and time.time() < token.ends_s - MARGIN_S
        if token is None or not lives or token.key != key or token.text == refused:
            token = await self._fetched(key)
        return token.text

    async def aclose(self) -> None:
        """End what is under way, and the connections."""
        if self._fetching is not None:
            self._fetching.cancel()
        await self._giver.aclose()

    async def _fetched(self, key: Secret) -> _Token:
        """Wait for the one request that is under way for everybody; who waits no longer does not end it."""
        if self._fetching is None:
            self._fetching = asyncio.ensure_future(self._fetch(key))
            self._fetching.add_done_callback(self._done)
        fetching, waiting = self._fetching, asyncio.current_task()
        try:
            return await asyncio.shield(fetching)
        except ProviderError as error:
            raise fresh(error) from None
        except asyncio.CancelledError:
            if fetching.cancelled() and not (waiting and waiting.cancelling()):
                name = self._provider.config.name
                raise ClosedError(f"{name} was closed meanwhile.", hint="Open it anew.") from None
            raise

    def _done(self, task: asyncio.Task[_Token]) -> None:
        self._fetching = None
        if not task.cancelled() and task.exception() is None:
            self._token = task.result()

    async def _fetch(self, key: Secret) -> _Token:
        headers = {"Authorization": Secret(f"Basic {key}"), "RqUID": str(uuid.uuid4())}
        scope = self._provider.config.scope or os.environ.get(SCOPE_VARIABLE) or SCOPE
        try:
            told = await self._giver.json("POST", "", headers=headers, form={"scope": scope})
        except InvalidRequestError as error:
            if "Authorization" in error.message:  # no key at all would be written like this one
                raise AuthenticationError(error.message, hint=_KEY_HINT) from None
            if "scope" in error.message:
                error.hint = _SCOPE_HINT
            raise
        except AuthenticationError as error:
            error.hint = _KEY_HINT
            raise
        except ServiceUnavailableError as error:
            _explain(error)
            raise
        try:
            text, ends = told["access_token"], float(told["expires_at"])
            if not (isinstance(text, str) and text and math.isfinite(ends)):
                raise TypeError("no token")
        except (ArithmeticError, TypeError, LookupError, ValueError):
            raise ServiceUnavailableError(
                f"{self._provider.config.name}: the answer to the key holds no access token.",
                hint="Check auth_url: another service may answer there.",
            ) from None
        return _Token(Secret(text), key, ends if ends < _SECONDS_BELOW else ends / 1000)


class _TokenWire(Wire):
    """A wire whose requests carry an access token; one that is refused is replaced once."""

    def __init__(self, base_url: str, tokens: _Tokens, **told: Any) -> None:
        super().__init__(base_url, **told)
        self._tokens = tokens

    async def json(self, *arguments: Any, **named: Any) -> Any:
        """As a wire's own."""
        token = await self._tokens.get()
        try:
            return await self._asked(token, *arguments, **named)
        except AuthenticationError:
            other = await self._other(token)
            if other is None:
                raise
        return await self._asked(other, *arguments, **named)

    async def events(self, *arguments: Any, **named: Any) -> AsyncGenerator[Event, None]:
        """As a wire's own; a token can be refused before the first event only."""
        token, began = await self._tokens.get(), False
        try:
            async with aclosing(self._read(token, *arguments, **named)) as events:
                async for event in events:
                    began = True
                    yield event
        except AuthenticationError:
            other = None if began else await self._other(token)
            if other is None:
                raise
        else:
            return
        async with aclosing(self._read(other, *arguments, **named)) as events:
            async for event in events:
                yield event

    async def aclose(self) -> None:
        """Close the way to the tokens as well."""
        try:
            await self._tokens.aclose()
        finally:
            await super().aclose()

    async def _other(self, refused: Secret | None) -> Secret | None:
        return None if refused is None else await self._tokens.get(refused)

    async def _asked(self, token: Secret | None, *arguments: Any, **named: Any) -> Any:
        try:
            return await super().json(*arguments, **named, headers=_bearing(token))
        except ServiceUnavailableError as error:
            _explain(error)
            raise

    async def _read(
        self, token: Secret | None, *arguments: Any, **named: Any
    ) -> AsyncGenerator[Event, None]:
        try:
            parts = super().events(*arguments, **named, headers=_bearing(token))
            async with aclosing(parts) as events:
                async for event in events:
                    yield event
        except ServiceUnavailableError as error:
            _explain(error)
            raise


def _bearing(token: Secret | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": Secret(f"Bearer {token}")}


def _explain(error: ServiceUnavailableError) -> None:
    """Tell what to do about a certificate that nobody here vouches for."""
    cause = error.__cause__
    if isinstance(cause, ForeignError) and "Certificate" in cause.type_name:
        error.hint = _TLS_HINT
