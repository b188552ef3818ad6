"""What went wrong, as one of our errors: a status, an error told in a body or stream, a broken connection.

No message holds a secret that was sent, nor a URL's query; none of the library's frames are kept.
"""

from __future__ import annotations

import builtins
import json
import math
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    ForeignError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
)
from nbproviders.runtimes.http.call import Call

SAID_CHARACTERS = 500
_BEGINNING = 80
_CAUSE = 300
_TEXT_BYTES = 8192
_REQUEST_ID = ("x-request-id", "request-id")

_STATUS: dict[int, type[ProviderError]] = {
    401: AuthenticationError,
    402: RateLimitError,
    403: AuthenticationError,
    407: ConfigurationError,
    408: TimeoutError,
    409: ServiceUnavailableError,  # a resource is busy
    425: ServiceUnavailableError,  # too early
    429: RateLimitError,
}

# The names that services give to errors, in one spelling; see `_named`.
_NAMES: dict[type[ProviderError], str] = {
    AuthenticationError: "authentication_error invalid_api_key invalid_authentication permission_error "
    "permission_denied permission_denied_error unauthenticated unauthorized forbidden invalid_client",
    RateLimitError: "rate_limit_error rate_limit_exceeded too_many_requests resource_exhausted requests "
    "tokens",
    InvalidRequestError: "invalid_request_error bad_request bad_request_error not_found not_found_error "
    "model_not_found request_too_large context_length_exceeded exceed_context_size_error "
    "invalid_argument unprocessable_entity_error validation_error",
    TimeoutError: "timeout timeout_error request_timeout deadline_exceeded",
    ServiceUnavailableError: "overloaded_error api_error server_error internal_error "
    "internal_server_error service_unavailable unavailable unavailable_error",
}
_KIND = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_USED_UP = frozenset(
    "insufficient_quota quota_exceeded billing_error billing_hard_limit_reached billing_not_active "
    "insufficient_balance insufficient_credits".split()
)

_HINTS: dict[int, str] = {
    404: "Check the model's name and base_url.",
    405: "Check base_url: there is something else at this address.",
    407: "A proxy wants a user and password: HTTPS_PROXY=http://user:password@host:port.",
    413: "The request is too large for this service: shorten the prompt.",
}
# Addresses as they come of a base URL with a part that is added to it, or without the one it needs.
_TWICE = re.compile(r"((?:/[^/]+)+)\1(?=/|$)")
_UNVERSIONED = re.compile(r"((?:(?!/v\d).)*?)/(?:chat/completions|completions|models)")
_KIND_HINTS: dict[type[ProviderError], str] = {
    RateLimitError: "Ask for fewer at once (parallel=…), or try again later.",
    ServiceUnavailableError: "That is the service's own trouble: try again later.",
}
_USED_UP_HINT = (
    "The quota or credit of this key is used up; waiting does not help. See the plan and billing."
)
_PROXY_HINT = (
    "Check HTTP_PROXY and HTTPS_PROXY; NO_PROXY names hosts that are reached without them."
)
_TLS_HINT = (
    "If the service has a certificate of its own, name its authority: SSL_CERT_FILE=/path/ca.pem. "
    "verify_ssl=False trusts anyone who answers."
)
_REACH_HINT = "Check base_url and the network; is the server running?"


@dataclass(frozen=True, slots=True)
class Told:
    """What a service says of an error."""

    message: str = ""
    names: frozenset[str] = frozenset()
    status: int | None = None


def refused(call: Call, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """Return the error of an answer other than a success."""
    told = _read(body)
    text = f"HTTP {status} from {call.where}"
    return _made(call, text, told, status, headers)


def told_by(call: Call, value: Any, headers: Mapping[str, str]) -> ProviderError | None:
    """Return the error that an object inside a successful answer tells of; None if it is not one."""
    if not isinstance(value, dict):
        return None
    if not (value.get("error") or "error" in (value.get("object"), value.get("type"))):
        return None
    told = _told(value)
    return _made(call, f"an error in the answer of {call.where}", told, told.status, headers)


def told_as_text(call: Call, text: str, headers: Mapping[str, str]) -> ProviderError:
    """Return the error of an event that is named one, whatever it holds."""
    told = _read(text.encode())
    return _made(call, f"an error in the answer of {call.where}", told, told.status, headers)


def malformed(call: Call, what: str, body: bytes | str) -> ServiceUnavailableError:
    """Return the error of an answer that cannot be read; it shows how that begins."""
    text = body[: 4 * _BEGINNING + 4096]
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    began = call.redacted(text, _BEGINNING)
    return ServiceUnavailableError(
        call.says(f"the answer of {call.where} {what}; it begins {began!r}."),
        hint="Check base_url: a proxy, a login page or another service may answer there.",
    )


def too_large(call: Call, what: str, limit_bytes: int) -> ServiceUnavailableError:
    """Return the error of an answer beyond its limit; asking again would bring the same."""
    error = ServiceUnavailableError(
        call.says(
            f"{what} of {call.where} is larger than {limit_bytes // 2**20} MiB; it was left."
        ),
        hint="Ask for less at once; no completion is that long.",
    )
    error.final = True
    return error


def elsewhere(call: Call, target: str) -> ConfigurationError:
    """Return the error of a redirect to another origin, whither no key is carried."""
    return ConfigurationError(
        call.says(f"{call.where} sends on to another place, {target!r}; nothing was sent there."),
        hint="If that is where the service is now, give its address as base_url.",
    )


def endless(call: Call) -> ConfigurationError:
    """Return the error of redirects that come to no end."""
    return ConfigurationError(
        call.says(f"{call.where} sends on again and again."), hint="Check base_url."
    )


def late(call: Call, phase: str, seconds: float) -> TimeoutError:
    """Return the error of a phase that took too long."""
    return TimeoutError(
        call.says(f"{call.where}: {phase} within {seconds:g} s."),
        hint="Give it longer: timeout=… of the provider; or try again later.",
    )


def broken(call: Call, error: Exception, phase: str) -> ProviderError:
    """Return what an exception of the HTTP library, or of the sockets below it, means."""
    failure = _broken(call, error, phase)
    failure.__cause__ = ForeignError(type(error).__name__, call.redacted(str(error), _CAUSE))
    return failure


def _broken(call: Call, error: Exception, phase: str) -> ProviderError:
    import aiohttp

    reason = call.redacted(_reason(error), _CAUSE)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return late(call, "no connection", connect_s(call.timeout_s))
    if isinstance(error, builtins.TimeoutError) and getattr(error, "errno", None) is None:
        return late(call, phase, call.timeout_s)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | ssl.CertificateError):
        failure = ServiceUnavailableError(
            call.says(f"no trusted connection to {call.where}: {reason}"), hint=_TLS_HINT
        )
        failure.final = isinstance(_cause(error), ssl.SSLCertVerificationError)
        return failure
    if isinstance(error, aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError):
        return ServiceUnavailableError(
            call.says(f"the proxy on the way to {call.where} failed: {reason}"), hint=_PROXY_HINT
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return ServiceUnavailableError(
            call.says(f"no connection to {call.where}: {reason}"), hint=_REACH_HINT
        )
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return ConfigurationError(
            call.says(f"{call.where} is no address that can be asked."), hint="Check base_url."
        )
    return ServiceUnavailableError(
        call.says(f"the connection to {call.where} broke: {reason}"), hint="Try again later."
    )


def connect_s(timeout_s: float) -> float:
    """Return how long connecting may take: a host that is there answers soon."""
    return min(timeout_s, 10.0)


def _cause(error: BaseException) -> BaseException:
    """Return the sockets' own exception, if the library wrapped one."""
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    return inner if isinstance(inner, BaseException) else error


def _reason(error: Exception) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"HTTP {error.status}"
    if isinstance(error, aiohttp.ClientResponseError):  # its text holds the URL
        return error.message or type(error).__name__
    cause = _cause(error)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _made(
    call: Call, text: str, told: Told, status: int | None, headers: Mapping[str, str]
) -> ProviderError:
    kind = _kind(status, told)
    said = call.redacted(told.message, SAID_CHARACTERS)
    text = f"{text}: {said}" if said else f"{text}."
    for name in _REQUEST_ID:
        if name in headers:
            text += f" ({name} {call.redacted(headers[name], _BEGINNING)})"
            break
    used_up = kind is RateLimitError and (status == 402 or bool(told.names & _USED_UP))
    hint = _misplaced(call.url, told) if status in (404, 405) else ""
    hint = hint or _HINTS.get(status or 0) or _KIND_HINTS.get(kind) or ""
    if used_up:
        hint = _USED_UP_HINT
    error = kind(call.says(text), hint=hint or None)
    error.final = used_up
    wish_s = None if used_up else retry_after_s(headers)
    if wish_s is not None and kind.retryable:
        # 503 and 408 may tell it like 429 does; the class of 429 alone declares it.
        vars(error)["retry_after_s"] = wish_s
    return error


def _misplaced(url: str, told: Told) -> str:
    """Return what is wrong with the base URL, by an address that was not found; empty if nothing is."""
    place = url.partition("?")[0]
    if "/chat/completions/" in place:
        return "Is base_url right? It ends before /chat/completions, which is added to it."
    twice = _TWICE.search(urlsplit(place).path)
    if twice is not None:
        return f"Is base_url right? In that address {twice[1]!r} stands twice: leave it out once."
    plain = _UNVERSIONED.fullmatch(place)
    if plain is not None and "model_not_found" not in told.names:
        return f"Is base_url right? Most end with /v1: {plain[1]}/v1. Else check the model's name."
    return ""


def _kind(status: int | None, told: Told) -> type[ProviderError]:
    """Return the class of an error, by its status, or by the names it bears within a success."""
    if told.names & _USED_UP:
        return RateLimitError
    if status is not None and status >= 400:
        usual = ServiceUnavailableError if status >= 500 else InvalidRequestError
        return _STATUS.get(status, usual)
    known = [_KIND[name] for name in sorted(told.names) if name in _KIND]
    return known[0] if known else ServiceUnavailableError


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return for how long a service asks to be left alone, given in seconds or as a date."""
    wish = headers.get("Retry-After", "").strip()
    try:
        seconds = float(wish)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(wish).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _read(body: bytes) -> Told:
    """Return what the body of an error says: JSON of any habit, a page, or text."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        text = body[:_TEXT_BYTES].decode("utf-8", "replace")
        title = re.search(r"(?is)<title[^>]*>(.*?)</title>", text)
        return Told(title[1] if title else re.sub(r"<[^<>]*>", " ", text))
    return _told(value)


def _told(value: Any) -> Told:
    """Return what a JSON value says of an error."""
    while isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return Told("" if value is None else str(value))
    inner = value.get("error") or value
    while isinstance(inner, list) and inner:
        inner = inner[0]
    if not isinstance(inner, dict):  # a plain text, perhaps with more beside it
        more = value.get("error_description") or value.get("message")
        message = f"{inner}: {more}" if more else str(inner)
        return Told(message, frozenset({_named(str(inner))}))
    marks = [inner.get(key) for key in ("code", "httpCode", "http_code", "status", "type")]
    names = frozenset(_named(mark) for mark in marks if isinstance(mark, str))
    return Told(" ".join(_messages(inner)), names, next(_statuses(marks), None))


def _messages(error: dict[str, Any]) -> Iterator[str]:
    for key in ("message", "msg", "detail", "details", "title"):
        found = error.get(key)
        if isinstance(found, str) and found:
            yield found
            return
        if found and isinstance(found, list | dict):
            with suppress(RecursionError):  # nested as deep as could just be read
                yield json.dumps(found, ensure_ascii=False)
            return


def _statuses(marks: list[Any]) -> Iterator[int]:
    for mark in marks:
        text = str(mark)
        if text.isdecimal() and len(text) == 3 and text >= "400":
            yield int(text)


def _named(mark: str) -> str:
    """Return a name in one spelling: ``RateLimitError`` and ``RATE-LIMIT error`` are the same."""
    if not mark.isupper():
        mark = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", mark)
    return re.sub(r"[\s-]+", "_", mark.lower())
