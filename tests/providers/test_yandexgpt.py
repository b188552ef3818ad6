"""Promises of the YandexGPT provider alone; for those of all services see `test_services`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nbproviders.core.completion import Usage
from nbproviders.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
)
from nbproviders.providers.yandexgpt import FOLDER_VARIABLES
from tests.providers.hosted import FOLDER, YANDEXGPT, drained, run_page
from tests.services.keys import FAKE
from tests.services.server import LINES, Streamed, line
from tests.services.yandexgpt import YandexGPTServer

PATH = YANDEXGPT.path
IAM = f"t1.{FAKE}"
provider, bodies = YANDEXGPT.provider, YANDEXGPT.bodies


@pytest.fixture
def server() -> Iterator[YandexGPTServer]:
    with YANDEXGPT.serve() as running:
        yield running


# Generating


async def test_reasoning_and_logging(server: YandexGPTServer) -> None:
    """Settings of the service are sent as it spells them, and only if they are given."""
    async with provider(server, data_logging=False).model("yandexgpt?reasoning=true") as m:
        await m.generate("a")
    async with provider(server).model("yandexgpt?reasoning=false") as m:
        await m.generate("a")
    modes = [body["completionOptions"]["reasoningOptions"] for body in bodies(server)]
    assert modes == [{"mode": "ENABLED_HIDDEN"}, {"mode": "DISABLED"}]
    sent = [seen.headers.get("x-data-logging-enabled") for seen in server.requests]
    assert sent == ["false", None]


def said(text: str, status: str) -> dict[str, Any]:
    first = {
        "message": {"role": "assistant", "text": text},
        "status": f"ALTERNATIVE_STATUS_{status}",
    }
    return {"alternatives": [first], "usage": {"inputTextTokens": "3", "completionTokens": "1"}}


async def test_a_filtered_answer(server: YandexGPTServer) -> None:
    """What the service withholds or takes back is told as filtered."""
    server.answer("POST", PATH, {"result": said("I cannot talk about it.", "CONTENT_FILTER")})
    async with provider(server).model("yandexgpt") as m:
        got = await m.generate("a")
        assert (got, got.finish, got.usage) == ("I cannot talk about it.", "filtered", Usage(3, 1))
        lines = [line({"result": said("How to", "PARTIAL")})]
        end = line({"result": said("I cannot.", "CONTENT_FILTER")})
        server.answer("POST", PATH, Streamed(lines, end, b"", LINES))
        stream = m.stream("a")
        assert await drained(stream) == ["How to"]
        assert stream.completion.finish == "filtered"


async def test_a_stream_that_contradicts_itself(server: YandexGPTServer) -> None:
    """A text that does not go on from what was told before is an error, not two texts in one."""
    lines = [line({"result": said(text, "PARTIAL")}) for text in ("one", "two three")]
    end = line({"result": said("two three", "FINAL")})
    server.answer("POST", PATH, Streamed(lines, end, b"", LINES))
    async with provider(server).model("yandexgpt") as m:
        with pytest.raises(ServiceUnavailableError, match="another text"):
            await drained(m.stream("a"))


async def test_answers_of_other_forms(server: YandexGPTServer) -> None:
    """Without its envelope an answer is read as well; one that is none is an error that says so."""
    async with provider(server).model("yandexgpt") as m:
        server.answer("POST", PATH, said("plain", "FINAL"))
        assert await m.generate("a") == "plain"
        for wrong in ([], {}, {"result": {"alternatives": []}}, {"result": {"alternatives": [1]}}):
            server.answer("POST", PATH, lambda _, wrong=wrong: wrong)
            with pytest.raises(ServiceUnavailableError, match="not of YandexGPT's form"):
                await m.generate("a")
        server.answer("POST", PATH, said("half", "PARTIAL"))
        with pytest.raises(ServiceUnavailableError, match="ended before"):
            await m.generate("a")


# Keys and folders


def sent(server: YandexGPTServer) -> list[tuple[str | None, str | None]]:
    return [
        (seen.headers.get("Authorization"), seen.headers.get("x-folder-id"))
        for seen in server.requests
    ]


async def test_two_kinds_of_key(server: YandexGPTServer) -> None:
    """An API key goes as such; an IAM token is known by its beginning, and sent with its folder."""
    async with provider(server).model("yandexgpt") as m:
        assert await m.generate("hi") == "hi"
    server.key = IAM
    async with provider(server, api_key=IAM).model("yandexgpt") as m:
        assert await m.generate("hi") == "hi"
    assert sent(server) == [(f"Api-Key {FAKE}", None), (f"Bearer {IAM}", FOLDER)]


async def test_a_missing_folder(server: YandexGPTServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is sent, with the ways to give it."""
    alone = provider(server, folder_id=None)
    with pytest.raises(ConfigurationError, match="id of a folder") as no_folder:
        await alone.model("yandexgpt").open()
    assert FOLDER_VARIABLES[0] in no_folder.value.hint
    assert "folder_id=" in no_folder.value.hint
    assert not server.requests
    assert not await alone.health_check()
    for variable in FOLDER_VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(variable, FOLDER)
            async with alone.model(f"yandexgpt?timeout={len(variable)}") as m:
                assert await m.generate("hi") == "hi"
    handle = await alone.setup("yandexgpt", folder_id=FOLDER)
    assert await handle.model.generate("hi") == "hi"
    await handle.teardown()


async def test_whole_addresses_of_models(server: YandexGPTServer) -> None:
    """A model's URI is taken as it is, and names its folder; a name goes with its version."""
    async with provider(server).model("yandexgpt/rc") as m:
        assert await m.generate("hi") == "hi"
    async with provider(server, folder_id=None).model(f"gpt://{FOLDER}/yandexgpt/rc") as m:
        assert await m.generate("hi") == "hi"
    async with provider(server).model(f"ds://{FOLDER}/mine") as m:
        with pytest.raises(InvalidRequestError, match="invalid model_uri"):
            await m.generate("hi")
    assert [body["modelUri"] for body in bodies(server)] == [
        f"gpt://{FOLDER}/yandexgpt/rc",
        f"gpt://{FOLDER}/yandexgpt/rc",
        f"ds://{FOLDER}/mine",
    ]


async def test_another_folder_than_the_keys(server: YandexGPTServer) -> None:
    """The service's own words are told."""
    async with provider(server, folder_id="b1gother").model("yandexgpt") as m:
        with pytest.raises(InvalidRequestError, match="does not match"):
            await m.generate("hi")


def test_no_repr_tells_a_token(server: YandexGPTServer) -> None:
    """An IAM token is a key as well: neither provider, instance, client nor their contents show it."""
    server.key = IAM
    one = provider(server, api_key=IAM)
    with one.model("yandexgpt") as m:
        m.generate("hi")
        told = [one, one.config, vars(one), m, m.raw, vars(m.raw), one.resolve("yandexgpt")]
    assert FAKE not in " ".join(map(repr, told))


# What there is


async def test_the_models_it_has(server: YandexGPTServer) -> None:
    """Those that write text: of the own folder by the names that references take."""
    one = provider(server)
    assert await one.list_models() == [
        f"ds://{FOLDER}/mine",
        "gpt://b1gother/tuned",
        "yandexgpt/latest",
    ]
    unknown = await provider(server, folder_id=None).list_models()
    assert f"gpt://{FOLDER}/yandexgpt/latest" in unknown  # which references take as well


async def test_health_costs_nothing(server: YandexGPTServer) -> None:
    """It asks for tokens of a text, which is free, and needs key and folder."""
    assert await provider(server).health_check()
    assert [seen.path for seen in server.requests] == ["/foundationModels/v1/tokenize"]
    assert server.requests[0].body["modelUri"] == f"gpt://{FOLDER}/yandexgpt-lite"


# Failures


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (3, InvalidRequestError),
        (4, TimeoutError),
        (7, AuthenticationError),
        (8, RateLimitError),
        (14, ServiceUnavailableError),
        (16, AuthenticationError),
    ],
)
async def test_errors_in_grpcs_form(
    server: YandexGPTServer, code: int, kind: type[ProviderError]
) -> None:
    """An error in the place of an answer is its kind, with the service's words and without the key."""
    told = {"code": code, "message": f"wrong, api_key={FAKE}", "details": []}
    async with provider(server).model("yandexgpt") as m:
        server.answer("POST", PATH, told)
        with pytest.raises(kind, match="wrong") as caught:
            await m.generate("a")
        assert type(caught.value) is kind
        assert FAKE not in str(caught.value)
        server.fail_next(403, told)
        with pytest.raises(AuthenticationError, match="wrong") as caught:
            await m.generate("a")
        assert FAKE not in str(caught.value)


# The page


async def test_the_page(server: YandexGPTServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the page on YandexGPT runs, one block after another, against a server."""
    monkeypatch.setenv("YANDEX_API_KEY", FAKE)
    monkeypatch.setenv("YANDEX_FOLDER_ID", FOLDER)
    YANDEXGPT.at_home(server, monkeypatch)
    await run_page("yandexgpt", least=3)
