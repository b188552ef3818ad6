"""Promises of the mapping: what services say is found in any habit, and read without its secrets."""

from __future__ import annotations

import base64
import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from nbproviders.errors import (
    AuthenticationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
)
from nbproviders.runtimes.http.call import Call
from nbproviders.runtimes.http.failures import refused, retry_after_s, told_by


def call(headers: dict[str, str] | None = None, url: str = "http://h/v1", **form: str) -> Call:
    return Call("mine", "POST", url, headers or {}, form, 1.0)


def said(body: Any, **headers: str) -> str:
    """Return what an error of status 400 says after its beginning."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    start = "mine: HTTP 400 from POST http://h/v1"
    text = refused(call(headers), 400, {}, raw).message
    assert text.startswith(start)
    return text.removeprefix(start).removeprefix(": ")


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no", "type": "x"}},
        {"error": "no"},
        {"message": "no", "status": 400},
        {"code": 3, "message": "no", "details": []},
        {"error": {"grpcCode": 3, "httpCode": 400, "message": "no"}},
        {"object": "error", "message": "no"},
        {"detail": "no"},
        [{"error": {"message": "no"}}],
        {"error": [{"message": "no"}]},
        "no",
        b"no",
        b"<html><head><title> no </title></head><body>x</body></html>",
        b"<p>no</p>\n",
    ],
)
def test_messages(body: Any) -> None:
    """The service's own words are found, however it wraps them."""
    assert said(body) == "no"


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", {"error": None}, b'{"error": {}}'])
def test_no_message(body: Any) -> None:
    """A service that says nothing usable makes an error that says the status."""
    assert "None" not in said(body)


def test_deep_messages() -> None:
    """However deep the words of a service are nested, what comes of it is an error of ours."""
    for depth in range(700, 1000, 7):
        body = f'{{"detail": {"[" * depth}1{"]" * depth}}}'.encode()
        assert refused(call(), 400, {}, body).message.startswith("mine: HTTP 400")


def test_oauth_message() -> None:
    """The short name and the words of an OAuth error are both told."""
    told = said({"error": "invalid_grant", "error_description": "expired"})
    assert told == "invalid_grant: expired"


def test_messages_are_one_printable_line() -> None:
    """Control characters, such as those that colour a terminal, do not get through."""
    assert said({"error": "a\x1b[31m\r\n\tb\u202ec"}) == "a [31m b c"


@pytest.mark.parametrize(
    "body",
    [{"error": "-a" * 30_000}, {"error": "https://" * 8_000}, b"<title>" * 9_000, b"<" * 64_000],
    ids=["words", "addresses", "titles", "marks"],
)
def test_no_message_keeps_us_busy(body: Any) -> None:
    """A text made to be slow to search costs no more than any other."""
    began_s = time.process_time()
    said(body)
    assert time.process_time() - began_s < 1


def test_messages_are_at_most_500_characters() -> None:
    """A long one is cut, and shows that it was."""
    told = said({"error": "x" * 501})
    assert told == "x" * 499 + "…"
    assert said({"error": "x" * 500}) == "x" * 500


BASIC = base64.b64encode(b"client:s3cret pass").decode()


@pytest.mark.parametrize(
    ("headers", "echo"),
    [
        ({"Authorization": "Bearer plainword"}, "plainword"),
        ({"Authorization": "plainword"}, "plainword"),
        ({"x-api-key": "two words"}, "two words"),
        ({"Authorization": "Api-Key plainword"}, "Api-Key plainword"),
        ({"Authorization": f"Basic {BASIC}"}, BASIC),
        ({"Authorization": f"Basic {BASIC}"}, "client:s3cret pass"),
        ({"Authorization": f"Basic {BASIC}"}, "s3cret pass"),
        ({"x-api-key": "a/b+c=d é"}, "a%2Fb%2Bc%3Dd%20%C3%A9"),
        ({"x-api-key": 'quo"ted\\key'}, 'quo\\"ted\\\\key'),
        ({}, "sk-abcdefghijklmnop"),
        ({}, "api_key=abcdefgh"),
    ],
)
def test_what_was_sent_is_not_told(headers: dict[str, str], echo: str) -> None:
    """A key that the service repeats is blotted out, whatever it looks like and however it is written."""
    told = said({"error": f"Wrong: {echo} !"}, **headers)
    assert told in ("Wrong: **** !", "Wrong: api_key=**** !")


def test_secrets_of_query_and_form() -> None:
    """A key that was sent in the query or a form is no more told than one in a header."""
    asked = call(url="http://h/v1?key=plainword&n=5", client_secret="otherword")
    error = refused(asked, 400, {}, b"plainword otherword 5 http://user:pw@h/x?key=zz#y")
    assert error.message == "mine: HTTP 400 from POST http://h/v1: **** **** 5 http://h/x"


def test_common_headers_are_no_secrets() -> None:
    """Words of headers that hold no secret stay readable."""
    assert said({"error": "use version 2023"}, **{"anthropic-version": "version 2023"}) == (
        "use version 2023"
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"error": {"type": "authentication_error"}}, AuthenticationError),
        ({"error": {"status": "UNAUTHENTICATED"}}, AuthenticationError),
        (
            {"error": {"code": "invalid_api_key", "type": "invalid_request_error"}},
            AuthenticationError,
        ),
        ({"error": {"type": "RateLimitError"}}, RateLimitError),
        ({"error": {"type": "requests", "code": "rate_limit_exceeded"}}, RateLimitError),
        ({"error": {"status": "RESOURCE_EXHAUSTED", "code": 429}}, RateLimitError),
        ({"error": {"code": "context_length_exceeded"}}, InvalidRequestError),
        ({"error": {"type": "NotFoundError", "code": 404}}, InvalidRequestError),
        ({"error": {"code": "404"}}, InvalidRequestError),
        ({"error": {"type": "timeout_error"}}, TimeoutError),
        ({"type": "error", "error": {"type": "overloaded_error"}}, ServiceUnavailableError),
        ({"type": "error", "code": "server_error", "message": "x"}, ServiceUnavailableError),
        ({"error": {"httpCode": 503}}, ServiceUnavailableError),
        ({"error": {"type": "something new"}}, ServiceUnavailableError),
        ({"error": "it broke"}, ServiceUnavailableError),
    ],
)
def test_errors_inside_a_success(value: Any, kind: type[ProviderError]) -> None:
    """The class comes from the type or code that services give, or is that of a failing service."""
    assert type(told_by(call(), value, {})) is kind


@pytest.mark.parametrize(
    "value", [{}, {"error": None}, {"error": {}}, {"error": ""}, [], "error", None, {"type": "x"}]
)
def test_no_error_inside_a_success(value: Any) -> None:
    """What is no error is not taken for one."""
    assert told_by(call(), value, {}) is None


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after(wish: str, seconds: float | None) -> None:
    """Seconds and dates are understood, what is past means now, and nonsense means nothing."""
    assert retry_after_s({"Retry-After": wish}) == seconds


def test_retry_after_a_date() -> None:
    """A date is told as the seconds until then."""
    wish = formatdate(time.time() + 100, usegmt=True)
    assert retry_after_s({"Retry-After": wish}) == pytest.approx(100, abs=3)


def test_request_id() -> None:
    """The number by which a service finds a request stands in the error, scrubbed like all else."""
    error = refused(call({"x-api-key": "plainword"}), 500, {"request-id": "r plainword"}, b"")
    assert error.message.endswith("(request-id r ****)")


def hint_at(path: str, status: int = 404, code: str = "") -> str:
    """Return the hint of an error at an address."""
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    return refused(call(url=f"http://host:8000{path}"), status, {}, body).hint


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v1/chat/completions/chat/completions", "ends before /chat/completions"),
        ("/v1/chat/completions/models", "ends before /chat/completions"),
        ("/v1/chat/completions/completions", "ends before /chat/completions"),
        ("/v1/v1/messages", "'/v1' stands twice"),
        ("/v1/messages/v1/messages", "'/v1/messages' stands twice"),
        ("/chat/completions", "http://host:8000/v1. Else"),
        ("/openai/chat/completions?key=secret", "http://host:8000/openai/v1. Else"),
        ("/completions", "http://host:8000/v1. Else"),
        ("/models", "http://host:8000/v1. Else"),
    ],
)
def test_a_slip_in_the_base_url(path: str, told: str, status: int) -> None:
    """An address that shows what is wrong with the base URL is a hint that says it."""
    hint = hint_at(path, status)
    assert hint.startswith("Is base_url right?")
    assert told in hint
    assert "secret" not in hint


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1beta/openai/models", "/api/chat", "/api/v1/chat/completions", "/"],
)
def test_no_slip_in_the_base_url(path: str) -> None:
    """Any other address that was not found may be a wrong model as well."""
    assert hint_at(path) == "Check the model's name and base_url."


def test_a_model_that_is_not_found() -> None:
    """A service that says that it is the model is believed, whatever its address looks like."""
    assert hint_at("/chat/completions", code="model_not_found").startswith("Check the model's")


@pytest.mark.parametrize(
    ("status", "told"),
    [(429, "Ask for fewer at once (parallel=…)"), (500, "try again later"), (529, "try again")],
)
def test_what_may_pass_has_a_hint(status: int, told: str) -> None:
    """Too many requests, and a service's own trouble, say what to do; also inside a success."""
    assert told in refused(call(), status, {}, b"").hint
    inside = told_by(call(), {"error": {"code": status, "message": "no"}}, {})
    assert inside is not None
    assert told in inside.hint
    used_up = refused(call(), 429, {}, b'{"error": {"code": "insufficient_quota"}}')
    assert used_up.hint.startswith("The quota or credit")
