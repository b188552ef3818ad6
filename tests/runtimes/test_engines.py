"""What every engine that computes tokens itself promises, checked on each with the same weights."""

from __future__ import annotations

import asyncio
import contextlib
import math

import pytest

import nbproviders as nbp

PROMPTS = [item["prompt"] for item in nbp.demo.tasks(3)]
ENGINES = [
    pytest.param("transformers", id="transformers"),
    pytest.param("llama-cpp", id="llama-cpp"),
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine that can run here."""
    info = nbp.list_available()[request.param]
    if not info.available:
        pytest.skip(info.reason)
    return str(request.param)


@pytest.fixture
def model(engine: str) -> nbp.SyncClient:  # type: ignore[misc]
    """demo-m in that engine."""
    with nbp.model(f"{engine}:demo-m") as client:
        yield client


def test_a_stream_is_the_completion_in_pieces(model: nbp.SyncClient) -> None:
    """Chunks put together are the text, and the end tells usage and timings."""
    stream = model.stream("reverse otter:")
    chunks = list(stream)
    done = stream.completion
    assert len(chunks) > 1
    assert "".join(chunks) == done == model.generate("reverse otter:") == "retto"
    assert (done.finish, done.usage.completion_tokens, done.chat) == ("stop", 5, True)
    assert done.usage.prompt_tokens == len("reverse otter:") + 4
    assert 0 < done.ttft_s <= done.total_s


@pytest.mark.parametrize("stop", ["t", "tt", "to"])
def test_stop_strings_cut_streams_and_texts_alike(model: nbp.SyncClient, stop: str) -> None:
    """Nothing of a stop string is ever written, though it comes in pieces."""
    want = "retto"[: "retto".index(stop)]
    done = model.generate("reverse otter:", stop=stop)
    assert done == want == "".join(model.stream("reverse otter:", stop=[stop, "zzzz"]))
    assert done.finish == "stop"


def test_a_stop_string_across_tokens_holds_the_stream_back(model: nbp.SyncClient) -> None:
    """What could still become the stop string is not shown before it is known."""
    assert list(model.stream("reverse otter:", stop="tto")) == ["r", "e"]
    assert "".join(model.stream("reverse otter:", stop="ttx")) == "retto"


def test_max_tokens_ends_a_text(model: nbp.SyncClient) -> None:
    """With the reason, and in usage."""
    done = model.generate("reverse otter:", max_tokens=2)
    assert (str(done), done.finish, done.usage.completion_tokens) == ("re", "length", 2)


def test_a_seed_gives_the_same_text_alone_and_among_others(model: nbp.SyncClient) -> None:
    """Each request has a generator of its own; another seed gives another text."""
    options = {"temperature": 1.5, "max_tokens": 12}
    alone = model.generate("hello", seed=5, **options)
    together = model.generate_many(["hello", *PROMPTS, "hello"], seed=5, **options)
    assert together[0] == together[-1] == alone
    assert len({str(model.generate("hello", seed=s, **options)) for s in range(4)}) > 1
    assert alone.params.seed == 5


def test_a_drawn_seed_is_told(model: nbp.SyncClient) -> None:
    """So that a text can be had again."""
    done = model.generate("hello", temperature=1, max_tokens=8)
    assert done.params.seed is not None
    again = model.generate("hello", temperature=1, max_tokens=8, seed=done.params.seed)
    assert again == done


def test_a_tiny_top_p_is_greedy(model: nbp.SyncClient) -> None:
    """Only the most likely token is left."""
    drawn = model.generate("hello", temperature=2, top_p=1e-9, seed=1, max_tokens=6)
    assert drawn == model.generate("hello", temperature=0, max_tokens=6)


def test_many_at_once_are_answered_in_their_order(model: nbp.SyncClient) -> None:
    """More than go together, all with the text they have alone."""
    prompts = PROMPTS * 8
    together = model.generate_many(prompts)
    assert [str(text) for text in together] == [str(model.generate(p)) for p in PROMPTS] * 8


def test_plain_text_skips_the_template(engine: str, model: nbp.SyncClient) -> None:
    """By raw=True, or by the reference; the completion tells which."""
    raw = model.generate("12+30=", raw=True, max_tokens=4)
    assert (raw.chat, raw.usage.prompt_tokens) == (False, 7)
    with nbp.model(f"{engine}:demo-m?chat=false") as plain:
        assert plain.generate("12+30=", max_tokens=4) == raw


def test_a_chat_has_turns_and_a_system_prompt(model: nbp.SyncClient) -> None:
    """As messages, through the checkpoint's own template."""
    turns = [
        {"role": "user", "content": "12+30="},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "reverse otter:"},
    ]
    done = model.chat(turns, system="Be brief.")
    assert done == "retto"
    # <start>, and for each turn a role and an end; then the assistant's role.
    text = "Be brief." + "".join(turn["content"] for turn in turns)
    assert done.usage.prompt_tokens == 1 + 2 * 4 + len(text) + 1


def test_an_empty_text_is_the_beginning_token(model: nbp.SyncClient) -> None:
    """Legal as plain text."""
    done = model.generate("", raw=True, max_tokens=3)
    assert done.usage.prompt_tokens == 1


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(model: nbp.SyncClient) -> None:
    """Never cut in silence; others in the same call are not harmed."""
    with pytest.raises(nbp.InvalidRequestError, match=r"304 tokens.*256"):
        model.generate("x" * 300)
    assert model.generate("12+30=") == "42"


def test_the_context_may_be_filled_to_its_last_token(model: nbp.SyncClient) -> None:
    """A prompt one shorter than the context leaves room for one token."""
    done = model.generate("x" * (256 - 1 - 1), raw=True)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (255, 1)


def test_text_that_is_no_character_yet_is_not_shown(model: nbp.SyncClient) -> None:
    """A stream never gives half a character."""
    for chunk in model.stream("upper é日本🙂:", temperature=1, seed=1, max_tokens=30):
        assert "\ufffd" not in chunk[:-1]


@pytest.mark.parametrize("text", ["\ud800 lone", "a\0b", "\u202e", "😀" * 20, "\r\n\t "])
def test_no_text_harms_the_engine(model: nbp.SyncClient, text: str) -> None:
    """Whatever a user pastes is answered, or refused by one of our errors."""
    with contextlib.suppress(nbp.ProviderError):
        model.generate(text, max_tokens=2)
    assert model.generate("12+30=") == "42"


# Probabilities


def test_next_tokens_are_the_most_likely_first(model: nbp.SyncClient) -> None:
    """The first is what greedy generation writes; no more than there are."""
    frame = model.next_tokens("12+30=", k=5)
    assert frame["token"].tolist()[0] == "4"
    assert frame["probability"].is_monotonic_decreasing
    assert len(frame) == 5
    every = model.next_tokens("12+30=", k=10_000)
    assert len(every) == 262
    assert every["probability"].sum() == pytest.approx(1, abs=1e-5)
    assert every["id"].is_unique


def test_a_score_adds_up_to_the_probability_of_the_text(model: nbp.SyncClient) -> None:
    """Token by token, each given all before it."""
    score = model.score("12+30=", "42")
    first = model.next_tokens("12+30=", k=1)["logprob"].iloc[0]
    assert [token.text for token in score.tokens] == ["4", "2"]
    assert score.tokens[0].logprob == pytest.approx(first, abs=1e-4)
    assert score.total > math.log(0.9)
    assert model.score("12+30=", "43").total < math.log(0.1)
    assert score.prompt_tokens == len("12+30=") + 4


def test_generated_tokens_tell_the_same_probabilities_as_scoring(model: nbp.SyncClient) -> None:
    """logprobs=True, alone and in a batch, streamed or not."""
    done = model.generate("reverse otter:", logprobs=True)
    stream = model.stream("reverse otter:", logprobs=True)
    assert "".join(stream) == done
    score = model.score("reverse otter:", str(done))
    many = model.generate_many(["reverse otter:", *PROMPTS[:5]], logprobs=True)
    for tokens in (done.tokens, stream.completion.tokens, many[0].tokens):
        assert [token.id for token in tokens] == [token.id for token in score.tokens]
        for one, other in zip(tokens, score.tokens, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=2e-3)
    assert model.generate("12+30=").tokens == ()


def test_probabilities_are_the_models_own_whatever_the_sampler(model: nbp.SyncClient) -> None:
    """Temperature and top_p choose tokens; they do not change what is told of them."""
    drawn = model.generate("hello", temperature=2, top_p=0.9, seed=3, max_tokens=4, logprobs=True)
    score = model.score("hello", str(drawn))
    assert [token.id for token in score.tokens] == [token.id for token in drawn.tokens]
    for one, other in zip(drawn.tokens, score.tokens, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=2e-2)


def test_pieces_of_a_character_are_shown_as_bytes(model: nbp.SyncClient) -> None:
    """Never as a replacement character that could be anything."""
    assert [token.text for token in model.score("a", "é").tokens] == ["<0xC3>", "<0xA9>"]


def test_tokens_of_a_prompt_that_is_too_long_are_refused(model: nbp.SyncClient) -> None:
    """As generating is; prompt and continuation count together."""
    with pytest.raises(nbp.InvalidRequestError, match="256"):
        model.next_tokens("x" * 300)
    with pytest.raises(nbp.InvalidRequestError, match="256"):
        model.score("x" * 200, "y" * 100)


async def test_both_engines_agree(engine: str) -> None:
    """The same float16 weights: the same texts, and probabilities within half precision's error."""
    if engine == "transformers":
        pytest.skip("it is what the other is compared with")
    async with nbp.model("transformers:demo-m") as one, nbp.model(f"{engine}:demo-m") as other:
        mine, theirs = await asyncio.gather(
            one.generate_many(PROMPTS), other.generate_many(PROMPTS)
        )
        assert [str(text) for text in mine] == [str(text) for text in theirs]
        left = (await one.next_tokens("capital France:", 262)).set_index("id")["probability"]
        right = (await other.next_tokens("capital France:", 262)).set_index("id")["probability"]
        assert (left - right).abs().max() < 5e-3


# Cancellation


async def test_a_dropped_stream_ends_its_computation(model: nbp.SyncClient, engine: str) -> None:
    """Its lease comes back, and the next request is answered."""
    async with nbp.model(f"{engine}:demo-m") as client:
        async for _ in client.stream("hello", temperature=1, seed=1):
            break
        assert await client.generate("12+30=") == "42"


async def test_cancelled_requests_do_not_harm_their_neighbours(engine: str) -> None:
    """Half of them are cancelled at once; the others have their own texts."""
    async with nbp.model(f"{engine}:demo-m") as client:
        alone = [str(await client.generate(prompt)) for prompt in PROMPTS]
        tasks = [asyncio.ensure_future(client.generate(prompt)) for prompt in PROMPTS * 2]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for place, outcome in enumerate(done):
            if place % 2:
                assert outcome == alone[place % len(PROMPTS)]
            else:
                assert isinstance(outcome, (asyncio.CancelledError, nbp.Completion))


# What only some engines have


def test_a_known_beginning_is_not_computed_again() -> None:
    """The second of two prompts that begin alike tells how much of it was known; its text is the same."""
    pytest.importorskip("llama_cpp")
    system = "Answer in one word. " * 8
    with nbp.model("llama-cpp:demo-m") as m:
        first = m.chat("12+30=", system=system)
        second = m.chat("12+31=", system=system)
        assert first.usage.cached_tokens < len(system)
        assert len(system) < second.usage.cached_tokens < second.usage.prompt_tokens
    nbp.unload_all()
    with nbp.model("llama-cpp:demo-m") as m:
        assert m.chat("12+31=", system=system) == second


def test_prompts_that_come_together_share_their_beginning() -> None:
    """It is computed for the first of them, and copied for the others."""
    pytest.importorskip("llama_cpp")
    system = "Answer in one word. " * 8
    asks = [f"{n}+30=" for n in range(12, 24)]
    turns = [[{"role": "system", "content": system}, {"role": "user", "content": a}] for a in asks]
    with nbp.model("llama-cpp:demo-m") as m:
        together = m.generate_many(turns)
        known = [text.usage.cached_tokens for text in together]
        alone = [str(m.generate(turn)) for turn in turns]
    assert min(sorted(known)[1:]) >= len(system)
    assert [str(text) for text in together] == alone


def test_an_invariant_request_computes_all_of_itself() -> None:
    """What came before cannot matter to it."""
    pytest.importorskip("llama_cpp")
    with nbp.model("llama-cpp:demo-m?invariant=true") as m:
        first = m.generate("reverse otter:")
        again = m.generate("reverse otter:")
        many = m.generate_many(["12+30=", "reverse otter:"])
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 0)
    assert [text.usage.cached_tokens for text in many] == [0, 0]
    assert all(text.batch_invariant for text in (first, again, *many))


def test_a_references_seed_is_taken_where_a_request_gives_none() -> None:
    """And it does not make another resource: the weights are shared."""
    pytest.importorskip("llama_cpp")
    options = {"temperature": 1.5, "max_tokens": 12}
    with (
        nbp.model("llama-cpp:demo-m?seed=5") as seeded,
        nbp.model("llama-cpp:demo-m") as plain,
    ):
        drawn = seeded.generate("hello", **options)
        assert drawn.params.seed == 5
        assert drawn == plain.generate("hello", seed=5, **options)
        assert seeded.generate("hello", seed=6, **options).params.seed == 6
        assert len(nbp.residents()) == 1


def test_a_blank_before_a_comma_stays() -> None:
    """Decoding gives what was encoded, to the blank."""
    pytest.importorskip("llama_cpp")
    text = "the girl , and the dog . Is it n't so ?"
    with nbp.model("llama-cpp:demo-m") as m:
        words = m.raw._vocabulary  # type: ignore[attr-defined]
        assert words.decode(words.encode(text, special=True)) == text
