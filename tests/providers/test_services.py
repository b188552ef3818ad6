"""Promises that all hosted services keep alike, against a local server of each protocol."""

from __future__ import annotations

import asyncio
import functools
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring import service
from nbproviders.authoring.hosted import HEALTH_S, on_engine
from nbproviders.catalog import keys
from nbproviders.core.completion import FREE, UNPRICED, Usage
from nbproviders.core.config import Secret
from nbproviders.core.params import as_request
from nbproviders.core.retry import Retry
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
from nbproviders.providers.gigachat import AUTH_URL_VARIABLE, SCOPE_VARIABLE
from tests.leaks import holds_key
from tests.providers.hosted import (
    ASKED,
    GIGACHAT,
    GIVEN,
    HOSTED,
    PROMPT,
    Hosted,
    ask,
    drained,
)
from tests.scripted import happened
from tests.services.keys import FAKE, fake

SILENT_S = 0.3  # when a test's silent server is given up


def name_of(hosted: Hosted) -> str:
    return hosted.name


@pytest.fixture(params=HOSTED, ids=name_of)
def hosted(request: pytest.FixtureRequest) -> Hosted:
    """Each service in its turn."""
    found: Hosted = request.param
    return found


@pytest.fixture
def server(hosted: Hosted) -> Iterator[Any]:
    """Its server, which lets in one key."""
    with hosted.serve() as running:
        yield running


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (AUTH_URL_VARIABLE, SCOPE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for a millisecond."""
    monkeypatch.setattr(service, "Retry", functools.partial(Retry, first_wait_s=0.001))


def ways(*but: str, among: Sequence[Hosted] = HOSTED, calls: bool = False) -> pytest.MarkDecorator:
    """Ask each service in each way that it has, `but` for these; see `ask`."""
    pairs = [
        pytest.param(one, way, id=f"{one.name}-{way}")
        for one in among
        for way in (*one.ways, "stream", *([one.call] if calls and one.call else []))
        if way not in but
    ]
    return pytest.mark.parametrize(("hosted", "way"), pairs)


# What comes back, and what is sent for it


@pytest.mark.parametrize("temperature", [0.5, 0])
@ways()
async def test_an_answer(hosted: Hosted, server: Any, way: str, temperature: float) -> None:
    """However it is asked: text, usage, reason, times and price, and which parameters were used."""
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        got = await ask(m, way, PROMPT, **{**GIVEN, "temperature": temperature})
    assert (got, got.finish, got.usage) == ("one two", "length", Usage(4, 2))
    assert got.spec == f"{hosted.name}:{hosted.reference(way)}"
    assert (got.chat, got.batch_invariant) == (True, False)
    used = {name: value for name, value in GIVEN.items() if name not in hosted.ignored}
    used["temperature"] = max(temperature, hosted.coldest)
    assert (got.ignored, got.params.given()) == (hosted.ignored, used)
    assert (got.cost, got.reasoning, got.tokens) == (FREE, "", ())
    if way == "whole":
        assert math.isnan(got.ttft_s)
        assert got.total_s > 0
    else:
        assert 0 <= got.ttft_s <= got.total_s
        assert got.queue_s + got.ttft_s > 0
    assert hosted.bodies(server) == [hosted.body(way, temperature=used["temperature"])]


@ways()
async def test_nothing_is_sent_that_was_not_asked_for(
    hosted: Hosted, server: Any, way: str
) -> None:
    """Parameters that nobody gave are left to the service; those that it must be sent are told."""
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        got = await ask(m, way, PROMPT)
    assert (got, got.finish, got.usage) == (PROMPT, "stop", Usage(4, 4))
    assert (got.ignored, got.params.given()) == ((), hosted.defaults)
    assert hosted.bodies(server) == [hosted.body(way)]


@pytest.mark.parametrize("piece_bytes", [None, 1, 7])
async def test_a_stream(hosted: Hosted, server: Any, piece_bytes: int | None) -> None:
    """Chunks come as they are sent, however the bytes are cut; usage and reason at the end."""
    async with hosted.provider(server).model(hosted.model) as m:
        server.piece_bytes = piece_bytes
        stream = m.stream("wie grün, раз 日本 🦦 ok")
        assert await drained(stream) == ["wie", " grün,", " раз", " 日本", " 🦦", " ok"]
        got = stream.completion
        assert (got.finish, got.usage) == ("stop", Usage(6, 6))
        stream = m.stream("wie grün, раз 日本 🦦 ok", max_tokens=4)
        assert await drained(stream) == ["wie", " grün,", " раз", " 日本"]
        assert (stream.completion.finish, stream.completion.usage) == ("length", Usage(6, 4))


async def test_turns_and_system_prompt(hosted: Hosted, server: Any) -> None:
    """Messages go as they are, in the service's form; turns of one role may follow each other."""
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "you"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now"},
    ]
    async with hosted.provider(server).model(hosted.model) as m:
        assert await m.chat(turns, system="be brief") == "and now"
    (body,) = hosted.bodies(server)
    assert hosted.turns(body) == [{"role": "system", "content": "be brief"}, *turns]


@ways()
async def test_an_empty_answer(hosted: Hosted, server: Any, way: str) -> None:
    """A model that says nothing has answered."""
    server.reply = lambda body: ""
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        got = await ask(m, way)
    assert (got, got.finish) == ("", "stop")


@ways(among=[one for one in HOSTED if one.thinker])
async def test_reasoning_is_no_answer(hosted: Hosted, server: Any, way: str) -> None:
    """What the model thinks stands beside the text, and counts."""
    reference = f"{hosted.thinker}{hosted.ways.get(way, '')}"
    async with hosted.provider(server).model(reference) as m:
        got = await ask(m, way, "one two")
    assert (got, got.reasoning) == ("one two", "The user said 7 letters.")
    assert (got.usage, got.finish) == (Usage(2, 7), "stop")


@pytest.mark.parametrize("plain", ["raw", "chat=false"])
@ways("gathered")
async def test_plain_text(hosted: Hosted, server: Any, way: str, plain: str) -> None:
    """A text is gone on from where the service can; else the error says so, and nothing is sent."""
    option, params = ("", {"raw": True}) if plain == "raw" else ("?chat=false", {})
    async with hosted.provider(server).model(hosted.model + option) as m:
        if hosted.chats_only:
            with pytest.raises(UnsupportedError, match="turns only"):
                await ask(m, way, "one two three", **params)
            assert server.requests == []
            return
        got = await ask(m, way, "one two three", max_tokens=2, **params)
    assert (got, got.chat, got.usage) == ("one two", False, Usage(3, 2))
    assert hosted.asked(server) == []


@ways()
async def test_probabilities(hosted: Hosted, server: Any, way: str) -> None:
    """Each token with its probability where the service tells them; else asking is an error at once."""
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        if hosted.chats_only:
            alone = hosted.alone(server)
            for asked in (m, alone):
                with pytest.raises(UnsupportedError, match="probabilit"):
                    await ask(asked, way, "one two", logprobs=True)
            assert hosted.asked(server) == []
            await alone.aclose()
            return
        got = await ask(m, way, "one two", logprobs=True)
        assert (await ask(m, way, "one two")).tokens == ()
    assert [token.text for token in got.tokens] == ["one", " two"]
    assert all(0 < token.probability <= 1 for token in got.tokens)


async def test_a_temperature_beyond_its_range(hosted: Hosted, server: Any) -> None:
    """Where the service takes no more than 1, more is an error that says so, and nothing is sent."""
    async with hosted.provider(server).model(hosted.model) as m:
        assert await m.generate("one", temperature=1) == "one"
        if hosted.hottest > 1:
            assert (await m.generate("one", temperature=1.5)).params.temperature == 1.5
            return
        with pytest.raises(InvalidRequestError, match=r"temperature=1\.5") as caught:
            await m.generate("one", temperature=1.5)
    assert "0 to 1" in caught.value.hint
    assert len(server.requests) == 1


@ways(among=[one for one in HOSTED if one.picky])
async def test_what_a_model_does_not_take_is_left_out_and_told(
    hosted: Hosted, server: Any, way: str
) -> None:
    """A refused parameter is spelled otherwise or left out, once for all requests of the model."""
    assert hosted.picky is not None
    model, refused, left = hosted.picky
    async with hosted.provider(server, parallel=4).model(model + hosted.ways.get(way, "")) as m:
        got = await asyncio.gather(
            *(ask(m, way, "a b c", max_tokens=2, **refused) for _ in range(4))
        )
        assert {str(text) for text in got} == {"a b"}
        assert {one.ignored for one in got} == {tuple(refused)}
        assert {str(one.params.given()) for one in got} == {"{'max_tokens': 2}"}
        before = len(server.requests)
        assert await ask(m, way, "a b c", max_tokens=2, **refused) == "a b"
    assert len(server.requests) == before + 1
    assert set(hosted.bodies(server)[-1]) == left | (
        {*hosted.streamed} if way != "whole" else set()
    )


@pytest.mark.parametrize("hosted", [one for one in HOSTED if one.further], ids=name_of)
async def test_further_fields(hosted: Hosted, server: Any) -> None:
    """`extra_body` goes with each request; what the service does not know is its error."""
    further = dict(hosted.further or {})
    async with hosted.provider(server, extra_body=further).model(hosted.model) as m:
        await m.generate("a")
    (body,) = hosted.bodies(server)
    assert further.items() <= body.items()
    async with hosted.provider(server).model(hosted.model + '?extra_body={"no_such":1}') as m:
        with pytest.raises(InvalidRequestError, match="no_such"):
            await m.generate("a")
    assert len(hosted.asked(server)) == 2


async def test_the_protocol_itself(hosted: Hosted, server: Any) -> None:
    """The protocol's own call takes its body and returns its answer; other calls are refused."""
    async with hosted.provider(server).model(hosted.model) as client:
        if hosted.call is None or hosted.said is None:
            with pytest.raises(AttributeError, match="embeddings"):
                _ = client.embeddings
            return
        with pytest.raises(UnsupportedError, match=r"embeddings\.create"):
            await client.embeddings.create(input="x")
        answer = await ask(client, hosted.call, "Hello")
        assert hosted.said(answer) == "Hello"
        assert answer["usage"][hosted.counted] == getattr(answer.usage, hosted.counted) == 1
        with pytest.raises(AttributeError, match="no_such"):
            _ = answer.no_such
        create = hosted.create(client)
        assert (await create(messages=ASKED, model="another")).model.startswith("another")
        with pytest.raises(UnsupportedError, match=r"m\.stream"):
            await create(messages=ASKED, stream=True)
    assert [body["model"] for body in hosted.bodies(server)] == [hosted.model, "another"]


def test_from_a_script(hosted: Hosted, server: Any) -> None:
    """The same, blocking."""
    with hosted.provider(server).model(hosted.model) as m:
        assert m.model == hosted.model
        assert m.generate("hi") == "hi"
        assert [str(chunk) for chunk in m.stream("one two")] == ["one", " two"]
        if hosted.said is not None:
            answer = hosted.create(m)(messages=ASKED)
            assert (hosted.said(answer), answer.model.partition(":")[0]) == (PROMPT, hosted.model)


# Opening and closing


async def test_two_opens_one_instance(hosted: Hosted, server: Any) -> None:
    """The same reference is one instance, another option another; unloading closes it."""
    made = hosted.provider(server)
    async with made.model(hosted.model) as one, made.model(hosted.model) as two:
        assert one.raw is two.raw
        async with made.model(f"{hosted.model}?timeout=5") as other:
            assert other.raw is not one.raw
            assert other.raw.config.timeout == 5
            assert await other.generate("hi") == await one.generate("hi") == "hi"
        raw: Any = one.raw
        assert raw._wired is not None
    nbp.unload_all()
    assert raw._wired is None
    with pytest.raises(ClosedError):
        await one.generate("hi")


async def test_what_a_model_tells_of_itself(hosted: Hosted, server: Any) -> None:
    """How many requests it takes at once, by itself or as it is told; what it can; no bytes here."""
    async with hosted.provider(server).model(hosted.model) as m:
        assert (m.info.spec, m.info.parallel) == (f"{hosted.name}:{hosted.model}", hosted.parallel)
        assert dict(m.info.memory_bytes) == {}
        assert ("chat" in m.info.can, "logprobs" in m.info.can) == (True, not hosted.chats_only)
    for parallel, option in ((3, ""), (5, "?parallel=5")):
        async with hosted.provider(server, parallel=3).model(hosted.model + option) as m:
            assert m.info.parallel == parallel


@pytest.mark.parametrize(
    "wrong",
    [{"no_such": 1}, {"parallel": "many"}, {"parallel": 0}, {"parallel": 513}, {"timeout": 0}],
    ids=str,
)
def test_settings_are_checked(hosted: Hosted, wrong: Mapping[str, Any]) -> None:
    """An unknown or wrong setting is refused, with its name, when the provider is made."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        nbp.create_provider(hosted.name, **wrong)


async def test_as_a_context_manager(hosted: Hosted, server: Any) -> None:
    """An instance used by itself answers; leaving it closes its connections; asked again, it works."""
    async with hosted.alone(server) as instance:
        assert await instance.generate("one") == "one"
        assert await drained(instance.stream("one two")) == ["one", " two"]
        assert instance._wired is not None
    assert instance._wired is None
    got = await instance.generate("two")
    assert (got, got.spec) == ("two", f"{hosted.name}:{hosted.model}")
    await instance.aclose()
    assert instance._wired is None


async def test_no_model_is_named(hosted: Hosted, server: Any) -> None:
    """An instance without a model says how to name one."""
    alone = hosted.alone(server, model=None)
    with pytest.raises(ConfigurationError, match="which model") as caught:
        await alone.generate("hi")
    assert f"{hosted.name}:model" in caught.value.hint
    assert hosted.asked(server) == []
    await alone.aclose()


# Keys


def sent(server: Any) -> list[bool]:
    """Whether each request carried a key, wherever."""
    told = [(*seen.headers.values(), str(seen.query), str(seen.body)) for seen in server.requests]
    return [any(map(holds_key, texts)) for texts in told]


async def test_a_missing_key(hosted: Hosted, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is sent, with the variables, the argument and the page."""
    reference = hosted.at_home(server, monkeypatch)
    with pytest.raises(AuthenticationError, match="needs an API key, and none was found") as caught:
        async with nbp.model(reference):
            raise AssertionError("it was opened without a key")
    assert str(caught.value).startswith("Failed to setup resource")
    for words in (*hosted.key_variables, "api_key=", "docs/keys.md"):
        assert words in caught.value.hint
    assert not nbp.residents()
    assert server.requests == []


async def test_a_key_of_the_environment(
    hosted: Hosted, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes to the service's own place, from any of its variables; a corrected one counts at once."""
    reference = hosted.at_home(server, monkeypatch)
    for variable in hosted.key_variables:
        with monkeypatch.context() as patch:
            patch.setenv(variable, FAKE)
            async with nbp.model(reference) as m:
                assert await m.generate("hi") == "hi"
                patch.setenv(variable, fake("wrong"))
                with pytest.raises(AuthenticationError, match="401"):
                    await m.generate("hi")
                patch.setenv(variable, FAKE)
                assert await m.generate("hi") == "hi"
        nbp.unload_all()


async def test_no_key_of_the_environment_goes_elsewhere(
    hosted: Hosted, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that names another address gets none of the user's keys, and says how to give one."""
    reference = hosted.at_home(server, monkeypatch)
    for variable in hosted.key_variables:
        monkeypatch.setenv(variable, FAKE)
    with hosted.serve() as elsewhere:
        address = "".join(f"&{name}={url}" for name, url in hosted.address(elsewhere).items())
        with pytest.raises(AuthenticationError, match="401") as caught:
            async with nbp.model(reference + address) as m:
                await m.generate("hi")
        assert "api_key=" in caught.value.hint
        assert sent(elsewhere) == [False]
    assert server.requests == []


async def test_a_key_by_argument_stays_at_its_address(hosted: Hosted, server: Any) -> None:
    """A reference that leads elsewhere does not take the constructor's key along; its own goes."""
    made = hosted.provider(server)
    with hosted.serve() as elsewhere:
        away = hosted.address(elsewhere)
        with pytest.raises(AuthenticationError, match="401"):
            async with made.model(hosted.model, **away) as m:
                await m.generate("hi")
        assert sent(elsewhere) == [False]
        async with made.model(hosted.model, api_key=FAKE, **away) as m:
            assert await m.generate("hi") == "hi"
    assert server.requests == []
    async with made.model(hosted.model, base_url=f"{server.base_url}/") as m:
        assert await m.generate("hi") == "hi"


async def test_a_key_by_setup(hosted: Hosted, server: Any) -> None:
    """Setup and references win over the constructor; other keys are other resources."""
    made = hosted.provider(server, api_key=fake("wrong"))
    handle = await made.setup(hosted.model, api_key=FAKE)
    assert await handle.model.generate("by setup") == "by setup"
    await handle.teardown()
    async with made.model(hosted.model, api_key=FAKE) as m:
        assert await m.generate("by its own") == "by its own"
    with pytest.raises(AuthenticationError, match="401"):
        async with made.model(hosted.model) as m:
            await m.generate("hi")


async def test_a_key_that_was_found_and_refused_is_forgotten(
    hosted: Hosted, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the keyring or a prompt gave, and the service refused, is looked for anew."""
    reference = hosted.at_home(server, monkeypatch)
    monkeypatch.setattr(keys, "_known", {hosted.key_variables[0]: Secret(fake("old"))})
    server.key = fake("old")
    async with nbp.model(reference) as m:
        server.key = FAKE
        before = len(server.requests)
        with pytest.raises(AuthenticationError, match="401"):
            await m.generate("hi")
        assert keys._known == {}
        with pytest.raises(AuthenticationError, match="none was found"):
            await m.generate("hi")
    assert len(server.requests) == before + 1


@ways(calls=True)
async def test_no_key_is_shown(
    hosted: Hosted, server: Any, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by errors, with the values in their frames, nor by the log or any repr."""
    made = hosted.provider(server)
    async with made.model(hosted.reference(way)) as m:
        server.key = fake("another")
        with pytest.raises(AuthenticationError, match="401") as caught:
            await ask(m, way, "otters")
        told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        raw: Any = m.raw
        shown = [made, made.config, vars(made), made.model(hosted.model), m, raw, vars(raw)]
        shown += [raw.config, raw.wire, vars(raw.wire)]
        text = "".join(told.format()) + repr(shown) + caplog.text
    assert "otters" in text  # so the values in frames are there
    assert not holds_key(text)


@ways()
async def test_no_key_is_in_the_frames_of_an_error(hosted: Hosted, server: Any, way: str) -> None:
    """Nor by the values in the engine's own frames, which only who works on its loop can see."""
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        server.fail_next(403, times=9, path=hosted.path)  # not where GigaChat gives tokens
        raw: Any = m.raw
        request = as_request("otters", whole=way != "stream")

        async def failed() -> list[Any]:
            return await asyncio.gather(anext(raw.answer(request)), return_exceptions=True)

        (error,) = await on_engine(failed)
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = "".join(told.format())
    assert isinstance(error, AuthenticationError)
    assert "in answered" in text
    assert "otters" in text
    assert not holds_key(text)


async def test_no_key_of_a_reference_is_shown(hosted: Hosted, server: Any) -> None:
    """Nor is one that was given with a model: not by the provider, which remembers what it opened."""
    made = hosted.provider(server, api_key=fake("wrong"))
    async with made.model(hosted.model, api_key=FAKE) as m:
        assert await m.generate("hi") == "hi"
        raw: Any = m.raw
        shown = [made.model(hosted.model, api_key=FAKE), made.resolve(hosted.model, api_key=FAKE)]
        shown += [m, raw, vars(raw), vars(made)]
    assert not any(holds_key(repr(each)) for each in shown)


# Failures


STATUSES: dict[int, type[ProviderError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: InvalidRequestError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitError,
    500: ServiceUnavailableError,
    503: ServiceUnavailableError,
    529: ServiceUnavailableError,
}


@pytest.mark.parametrize("status", STATUSES)
@ways(calls=True)
async def test_statuses(hosted: Hosted, server: Any, way: str, status: int) -> None:
    """Each status is its error, with the service's words and without the key, and is asked for once."""
    kind = STATUSES[status]
    # GigaChat's key is sent for tokens only, so that no other answer can repeat it.
    body = server.error_body(status, f"as the test asked {'' if hosted is GIGACHAT else FAKE}")
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        server.fail_next(status, body, {"Retry-After": "7"}, times=9, path=hosted.path)
        with pytest.raises(kind, match=f"HTTP {status}.*as the test asked") as caught:
            await ask(m, way)
    assert type(caught.value) is kind
    assert not holds_key(f"{caught.value} {caught.value.hint}")
    replaced = hosted is GIGACHAT and kind is AuthenticationError  # a token, which is tried as well
    assert len(hosted.asked(server)) == 1 + replaced
    if isinstance(caught.value, RateLimitError):
        assert caught.value.retry_after_s == 7


@ways()
async def test_an_unknown_model(hosted: Hosted, server: Any, way: str) -> None:
    """The service's own words are told, and what to check."""
    server.models = ["a:latest"]
    kind, words, hint = hosted.unknown
    with pytest.raises(kind, match=words) as caught:
        async with hosted.provider(server).model("b" + hosted.ways.get(way, "")) as m:
            await ask(m, way)
    assert type(caught.value) is kind
    assert hint in caught.value.hint


BROKEN: dict[str, tuple[type[ProviderError], str]] = {
    "drop": (ServiceUnavailableError, "broke"),
    "cut": (ServiceUnavailableError, "broke"),
    "early_end": (ServiceUnavailableError, "before the completion did"),
    "no_end_mark": (ServiceUnavailableError, "before the completion did"),
    "error_in_stream": (ServiceUnavailableError, ""),  # in the service's own words
    "stall": (TimeoutError, "within"),
}


@pytest.mark.parametrize(
    ("hosted", "way", "how"),
    [
        pytest.param(one, way, how, id=f"{one.name}-{way}-{how}")
        for one in HOSTED
        for way in (*one.ways, "stream")
        for how in BROKEN
        if way != "whole" or how not in ("early_end", "no_end_mark")  # which only streams can have
    ],
)
async def test_broken_answers(hosted: Hosted, server: Any, way: str, how: Any) -> None:
    """An answer that does not come to its end is an error, never a shorter answer."""
    kind, words = BROKEN[how]
    timeout_s = SILENT_S if how == "stall" else 10.0
    async with hosted.provider(server, timeout=timeout_s).model(hosted.reference(way)) as m:
        server.break_next(how, path=hosted.path)
        if how == "no_end_mark" and not hosted.marked:  # the reason that it told is its end
            assert await ask(m, way, PROMPT) == PROMPT
        else:
            with pytest.raises(kind, match=words or hosted.midway) as caught:
                await ask(m, way, PROMPT)
            assert type(caught.value) is kind
    assert len(hosted.asked(server)) == 1


@ways()
async def test_another_service(hosted: Hosted, server: Any, way: str) -> None:
    """What answers in another form is told as such."""
    server.answer("POST", hosted.path.removeprefix(server.prefix), {"hello": "world"})
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        with pytest.raises(ServiceUnavailableError, match=hosted.form[way != "whole"]) as caught:
            await ask(m, way)
    assert "base_url" in caught.value.hint


@ways()
async def test_nobody_there(hosted: Hosted, server: Any, way: str) -> None:
    """A server that does not run is told as such, with where it was looked for."""
    nowhere = dict.fromkeys(hosted.addresses, "http://127.0.0.1:9")
    gone = hosted.provider(server, **nowhere)
    with pytest.raises(ServiceUnavailableError, match="no connection to .*127.0.0.1:9") as caught:
        async with gone.model(hosted.reference(way)) as m:
            await ask(m, way)
    assert "serve" in caught.value.hint
    assert not await gone.health_check()
    with pytest.raises(ServiceUnavailableError, match="no connection"):
        await gone.list_models()


@pytest.mark.parametrize("retries", [0, 1, 2])
@ways()
async def test_retries(hosted: Hosted, server: Any, way: str, retries: int) -> None:
    """`max_retries` counts the attempts after the first; none after the first chunk of a stream."""
    async with hosted.provider(server, max_retries=retries).model(hosted.reference(way)) as m:
        for status, kind in ((429, RateLimitError), (503, ServiceUnavailableError)):
            before = len(hosted.asked(server))
            server.fail_next(status, headers={"Retry-After": "0"}, times=9, path=hosted.path)
            with pytest.raises(kind):
                await ask(m, way)
            server.recover()
            assert len(hosted.asked(server)) == before + retries + 1
        before = len(hosted.asked(server))
        server.break_next("cut", times=9, path=hosted.path)
        with pytest.raises(ServiceUnavailableError):
            await ask(m, "stream", PROMPT)
    assert len(hosted.asked(server)) == before + 1


@ways("stream")
async def test_a_whole_answer_is_asked_for_again(
    hosted: Hosted, server: Any, way: str, impatient: None
) -> None:
    """Nobody has seen the half of it, so that it may be, though it comes as a stream; also if direct."""
    for asked in (hosted.provider(server, max_retries=1).model(hosted.reference(way)),
                  hosted.alone(server, max_retries=1)):  # fmt: skip
        async with asked as m:
            before = len(hosted.asked(server))
            server.break_next("error_in_stream", path=hosted.path)
            assert await m.generate(PROMPT) == PROMPT
            assert len(hosted.asked(server)) == before + 2


async def test_leaving_a_stream_ends_the_request(hosted: Hosted, server: Any) -> None:
    """The service stops writing when nobody reads any more."""
    async with hosted.provider(server).model(hosted.model) as m:
        server.chunk_delay_s = 0.05
        async with m.stream("word " * 500) as stream:
            assert await anext(stream) == "word"
        await server.was_left()


async def stopped(m: Any, server: Any, way: str) -> None:
    """Ask, cancel the call when the server has begun with it, and see the connection closed."""
    server.reached.clear()
    work = asyncio.create_task(ask(m, way, "word " * 500))
    await happened(server.reached)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await server.was_left()


@ways()
async def test_stopping_a_call_ends_the_request(hosted: Hosted, server: Any, way: str) -> None:
    """A cancelled generation closes its connection."""
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        assert await ask(m, way) == "a"  # a token, if one is needed, is there then
        server.delay_s = 30
        await stopped(m, server, way)
        server.delay_s = 0


@ways("whole")
async def test_stopping_an_answer_midway_ends_the_request(
    hosted: Hosted, server: Any, way: str
) -> None:
    """The same while the answer comes."""
    async with hosted.provider(server).model(hosted.reference(way)) as m:
        assert await ask(m, way) == "a"
        server.chunk_delay_s = 0.05
        await stopped(m, server, way)


# The service


async def test_the_models_it_has(hosted: Hosted, server: Any) -> None:
    """`list_models` tells their names in order, and health is whether key and service are in order."""
    made = hosted.provider(server)
    if hosted.name != "yandexgpt":  # which lists addresses; see its own tests
        server.models = ["b", "a"]
        assert await made.list_models() == ["a", "b"]
    assert await made.health_check()
    wrong = hosted.provider(server, api_key=fake("wrong"))
    assert not await wrong.health_check()
    with pytest.raises(AuthenticationError, match="401"):
        await wrong.list_models()
    server.answer("GET", hosted.listing, {"catalog": []})
    with pytest.raises(ServiceUnavailableError, match=r"of another form|not of \w+'s form"):
        await made.list_models()


async def test_health_is_told_in_time(
    hosted: Hosted,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A service that does not answer is not healthy within five seconds, and the log says why."""
    assert HEALTH_S == 5
    monkeypatch.setattr("nbproviders.authoring.hosted.HEALTH_S", 0.2)
    server.delay_s = 30
    made = hosted.provider(server)
    assert not await made.health_check()
    assert f"{hosted.name} is not healthy: no answer in 0.2 s" in caplog.text
    await made.aclose()
    await server.was_left()


def test_what_it_costs(hosted: Hosted, server: Any) -> None:
    """By the price list at the service's own address; nothing here; unpriced anywhere else."""
    usage = Usage(1000, 1000)
    model = hosted.priced or hosted.model
    at_home = hosted.alone(server, **dict.fromkeys(hosted.addresses), model=model).cost(usage)
    assert at_home.kind in hosted.at_home_costs
    assert ((at_home.usd or 0) > 0) is bool(hosted.priced)
    for here in ("http://localhost:8000/v1", "http://127.0.0.1:8000", server.base_url):
        assert hosted.alone(server, base_url=here, model=model).cost(usage) == FREE
    away = hosted.alone(server, base_url="https://example.org/v1", model=model)
    assert away.cost(usage) == UNPRICED
