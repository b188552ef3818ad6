"""Promises of the YandexGPT provider, against a local server that judges by the published reference."""

from __future__ import annotations

import ast
import asyncio
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import registry
from nbproviders.catalog import keys
from nbproviders.core.completion import FREE, UNPRICED, Usage
from nbproviders.core.config import ProviderConfig, Secret
from nbproviders.errors import (
    AuthenticationError,
    ClosedError,
    ConfigurationError,
    InvalidRequestError,
    ProviderError,
    RateLimitError,
    ServiceUnavailableError,
    TimeoutError,
    UnsupportedError,
)
from nbproviders.providers.yandexgpt import FOLDER_VARIABLES, YandexGPTProvider
from tests.services.keys import FAKE, fake
from tests.services.server import LINES, Recorded, Streamed, line
from tests.services.yandexgpt import YandexGPTServer

PAGE = Path(__file__).parents[2] / "docs" / "providers" / "yandexgpt.md"
PATH = "/foundationModels/v1/completion"
FOLDER = "b1gwords"
IAM = f"t1.{FAKE}"


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own environment names none."""
    for variable in FOLDER_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def complete(server: YandexGPTServer) -> YandexGPTServer:
    """Add what the provider asks besides completions."""
    ids = [f"gpt://{FOLDER}/yandexgpt/latest", f"emb://{FOLDER}/text-search-doc/latest",
           "gpt://b1gother/tuned", f"ds://{FOLDER}/mine"]  # fmt: skip
    server.answer("GET", "/v1/models", {"object": "list", "data": [{"id": one} for one in ids]})

    def tokenize(seen: Recorded) -> Any:
        assert set(seen.body) == {"modelUri", "text"}
        return {"tokens": [{"id": "1", "text": "1", "special": False}], "modelVersion": "x"}

    server.answer("POST", "/foundationModels/v1/tokenize", tokenize)
    return server


@pytest.fixture
def server() -> Iterator[YandexGPTServer]:
    with YandexGPTServer(key=FAKE) as running:
        yield complete(running)


def provider(server: YandexGPTServer, **fields: Any) -> Any:
    told = {
        "api_key": FAKE,
        "folder_id": FOLDER,
        "base_url": server.base_url,
        "max_retries": 0,
        **fields,
    }
    return nbp.create_provider("yandexgpt", **told)


def bodies(server: YandexGPTServer) -> list[Any]:
    return [seen.body for seen in server.requests if seen.path == PATH]


async def drained(stream: Any) -> list[str]:
    return [str(chunk) async for chunk in stream]


# Generating


async def test_a_whole_answer(server: YandexGPTServer) -> None:
    """One request without stream; text, usage, reason and what was asked come back."""
    async with provider(server).model("yandexgpt-lite") as m:
        got = await m.generate("one two three four", max_tokens=2, temperature=0)
    assert (got, got.finish, got.usage) == ("one two", "length", Usage(4, 2))
    assert (got.spec, got.chat, got.ignored) == ("yandexgpt:yandexgpt-lite", True, ())
    assert not got.batch_invariant
    assert math.isnan(got.ttft_s)
    assert bodies(server) == [
        {
            "modelUri": f"gpt://{FOLDER}/yandexgpt-lite",
            "completionOptions": {"temperature": 0, "maxTokens": "2"},
            "messages": [{"role": "user", "text": "one two three four"}],
        }
    ]


@pytest.mark.parametrize("piece_bytes", [None, 1, 7])
async def test_a_stream(server: YandexGPTServer, piece_bytes: int | None) -> None:
    """Each chunk is what is new, though each line has the whole text so far."""
    server.piece_bytes = piece_bytes
    async with provider(server).model("yandexgpt/rc") as m:
        stream = m.stream("wie grün, 日本 🦦 ok")
        assert await drained(stream) == ["wie", " grün,", " 日本", " 🦦", " ok"]
        got = stream.completion
    assert (got.finish, got.usage) == ("stop", Usage(5, 5))
    assert 0 <= got.ttft_s <= got.total_s
    assert bodies(server)[0]["completionOptions"] == {"stream": True}


async def test_stream_and_whole_agree(server: YandexGPTServer) -> None:
    """`stream=True` asks for a stream where only the whole answer is wanted, and gives the same."""
    for option in ("", "?stream=true"):
        async with provider(server).model(f"yandexgpt{option}") as m:
            got = await m.generate("a b c", max_tokens=2)
        assert (got, got.usage, got.finish) == ("a b", Usage(3, 2), "length")
        assert math.isnan(got.ttft_s) is not bool(option)


async def test_turns_and_system_prompt(server: YandexGPTServer) -> None:
    """Messages go in the service's form."""
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now"},
    ]
    async with provider(server).model("yandexgpt") as m:
        assert await m.chat(turns, system="be brief") == "and now"
    assert bodies(server)[0]["messages"] == [
        {"role": "system", "text": "be brief"},
        *({"role": turn["role"], "text": turn["content"]} for turn in turns),
    ]


async def test_what_the_service_does_not_take(server: YandexGPTServer) -> None:
    """Its missing parameters are left out and told; what would change the meaning is refused."""
    async with provider(server).model("yandexgpt") as m:
        got = await m.generate("a b c", max_tokens=2, top_p=0.5, stop="b", seed=3)
        assert (got, got.ignored) == ("a b", ("top_p", "stop", "seed"))
        assert got.params.given() == {"max_tokens": 2}
        with pytest.raises(InvalidRequestError, match="temperature=1.5"):
            await m.generate("a", temperature=1.5)
        with pytest.raises(UnsupportedError, match="turns only"):
            await m.generate("a", raw=True)
        with pytest.raises(UnsupportedError, match="probabilit"):
            await m.generate("a", logprobs=True)
        with pytest.raises(UnsupportedError, match="probabilit"):
            await m.raw.generate("a", logprobs=True)
    assert len(server.requests) == 1


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


@pytest.mark.parametrize("variable", ["YANDEX_API_KEY", "YC_API_KEY"])
def test_the_environments_key_goes_home_only(
    server: YandexGPTServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A key of the environment is sent to Yandex, and to no address that a reference names."""
    monkeypatch.setenv(variable, FAKE)
    config = ProviderConfig(name="yandexgpt", model="yandexgpt", folder_id=FOLDER)
    assert YandexGPTProvider(config)._headers() == {"Authorization": f"Api-Key {FAKE}"}
    config.base_url = server.base_url
    assert YandexGPTProvider(config)._headers() == {}


def at_home(server: YandexGPTServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server stand where the service is."""
    here = replace(YandexGPTProvider.home, base_url=server.base_url)
    monkeypatch.setattr(YandexGPTProvider, "home", here)
    monkeypatch.setattr(registry, "_made", {})


async def test_a_key_that_was_found_and_refused_is_forgotten(
    server: YandexGPTServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the keyring or a prompt gave, and the service refused, is looked for anew."""
    at_home(server, monkeypatch)
    monkeypatch.setattr(keys, "_known", {"YANDEX_API_KEY": Secret(fake("old"))})
    async with nbp.model(f"yandexgpt:yandexgpt?max_retries=0&folder_id={FOLDER}") as m:
        with pytest.raises(AuthenticationError, match="401"):
            await m.generate("hi")
        with pytest.raises(AuthenticationError, match="none was found"):
            await m.generate("hi")
    assert len(server.requests) == 1


async def test_a_missing_key_or_folder(
    server: YandexGPTServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are told before anything is sent, with the ways to give them."""
    with pytest.raises(AuthenticationError, match="none was found") as no_key:
        await nbp.create_provider("yandexgpt", folder_id=FOLDER).model("yandexgpt").open()
    assert "YANDEX_API_KEY" in no_key.value.hint
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
    """A model's URI is taken as it is, and names its folder."""
    async with provider(server, folder_id=None).model(f"gpt://{FOLDER}/yandexgpt/rc") as m:
        assert await m.generate("hi") == "hi"
    async with provider(server).model(f"ds://{FOLDER}/mine") as m:
        with pytest.raises(InvalidRequestError, match="invalid model_uri"):
            await m.generate("hi")
    assert [body["modelUri"] for body in bodies(server)] == [
        f"gpt://{FOLDER}/yandexgpt/rc",
        f"ds://{FOLDER}/mine",
    ]


async def test_another_folder_than_the_keys(server: YandexGPTServer) -> None:
    """The service's own words are told."""
    async with provider(server, folder_id="b1gother").model("yandexgpt") as m:
        with pytest.raises(InvalidRequestError, match="does not match"):
            await m.generate("hi")


def test_no_repr_tells_a_key(server: YandexGPTServer) -> None:
    """Neither provider, instance, client nor their contents, for either kind of key."""
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
    server.answer("GET", "/v1/models", {"models": []})
    with pytest.raises(ServiceUnavailableError, match="another form"):
        await one.list_models()


async def test_health_costs_nothing(server: YandexGPTServer) -> None:
    """It asks for tokens of a text, which is free, and needs key and folder; and within five seconds."""
    assert await provider(server).health_check()
    assert [seen.path for seen in server.requests] == ["/foundationModels/v1/tokenize"]
    assert server.requests[0].body["modelUri"] == f"gpt://{FOLDER}/yandexgpt-lite"
    assert not await provider(server, api_key=fake("wrong")).health_check()
    server.delay_s = 30
    began_s = asyncio.get_running_loop().time()
    assert not await provider(server).health_check()
    assert asyncio.get_running_loop().time() - began_s < 6


def test_what_it_costs() -> None:
    """No price list has it: unpriced, but for a server on this machine."""
    at_home = ProviderConfig(name="yandexgpt", model="yandexgpt", api_key=FAKE, folder_id=FOLDER)
    assert YandexGPTProvider(at_home).cost(Usage(1000, 1000)) == UNPRICED
    at_home.base_url = "http://localhost:1"
    assert YandexGPTProvider(at_home).cost(Usage(1000, 1000)) == FREE


async def test_two_opens_one_instance(server: YandexGPTServer) -> None:
    """The same reference is one instance; other options are another; unloading closes it."""
    one = provider(server)
    async with one.model("yandexgpt") as a, one.model("yandexgpt") as b:
        assert a.raw is b.raw
        async with one.model("yandexgpt?reasoning=true") as other:
            assert other.raw is not a.raw
        assert a.info.parallel == 10
        await a.generate("hi")
        raw: Any = a.raw
        assert raw._wired is not None
    nbp.unload_all()
    assert raw._wired is None
    with pytest.raises(ClosedError):
        await a.generate("hi")


# Failures


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, InvalidRequestError),
        (429, RateLimitError),
        (500, ServiceUnavailableError),
        (503, ServiceUnavailableError),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_statuses(
    server: YandexGPTServer, status: int, kind: type[ProviderError], whole: bool
) -> None:
    """Each status is its error, for streams as well; the key is not in it."""
    server.fail_next(status, headers={"Retry-After": "7"})
    async with provider(server).model("yandexgpt") as m:
        with pytest.raises(kind, match=f"HTTP {status}.*as the test asked") as caught:
            await (m.generate("a") if whole else drained(m.stream("a")))
    assert type(caught.value) is kind
    assert FAKE not in str(caught.value)
    if isinstance(caught.value, RateLimitError):
        assert caught.value.retry_after_s == 7


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


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("drop", ServiceUnavailableError),
        ("cut", ServiceUnavailableError),
        ("early_end", ServiceUnavailableError),
        ("no_end_mark", ServiceUnavailableError),
        ("error_in_stream", ServiceUnavailableError),
        ("stall", TimeoutError),
    ],
)
async def test_broken_streams(server: YandexGPTServer, how: Any, kind: type[ProviderError]) -> None:
    """A stream that does not come to its end is an error, never a shorter answer."""
    server.break_next(how)
    async with provider(server, timeout=0.5).model("yandexgpt") as m:
        with pytest.raises(kind):
            await drained(m.stream("one two three four five six"))


@pytest.mark.parametrize("retries", [0, 2])
async def test_retries(server: YandexGPTServer, retries: int) -> None:
    """`max_retries` counts the attempts after the first; none after the first chunk of a stream."""
    server.fail_next(429, headers={"Retry-After": "0"}, times=9)
    async with provider(server, max_retries=retries).model("yandexgpt") as m:
        with pytest.raises(RateLimitError):
            await m.generate("a")
        assert len(server.requests) == retries + 1
        server.recover()
        server.break_next("cut", times=9)
        with pytest.raises(ServiceUnavailableError):
            await drained(m.stream("one two three four"))
    assert len(server.requests) == retries + 2


async def test_leaving_ends_the_request(server: YandexGPTServer) -> None:
    """The service stops when nobody reads any more, or a call is cancelled."""
    async with provider(server).model("yandexgpt") as m:
        server.chunk_delay_s = 0.05
        async with m.stream("word " * 200) as stream:
            assert await anext(stream) == "word"
        await server.was_left()
        server.left.clear()
        server.delay_s = 30
        work = asyncio.create_task(m.generate("a"))
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await server.was_left()


async def test_no_model_is_named(server: YandexGPTServer) -> None:
    """An instance without a model says how to name one."""
    alone = YandexGPTProvider(ProviderConfig(name="yandexgpt", base_url=server.base_url))
    with pytest.raises(ConfigurationError, match="which model"):
        await alone.generate("hi")


# The page


async def test_the_page(server: YandexGPTServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the page on YandexGPT runs, one block after another, against a server."""
    monkeypatch.setenv("YANDEX_API_KEY", FAKE)
    monkeypatch.setenv("YANDEX_FOLDER_ID", FOLDER)
    at_home(server, monkeypatch)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        code = compile(block, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, names)
        if inspect.isawaitable(value):
            await value
