"""A loaded transformers model: batches, streams, seeds, stops and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import nbproviders as nbp
from tests.tiny import write_llama

torch = pytest.importorskip("torch")

PROMPTS = [item["prompt"] for item in nbp.demo.tasks(6)]


@pytest.fixture
async def model() -> AsyncIterator[nbp.Client]:
    async with nbp.model("transformers:demo-s") as client:
        yield client
    nbp.unload_all()


async def test_batched_texts_equal_single_ones(model: nbp.Client) -> None:
    """In float32 on a CPU a text is the same alone and in any batch, and says so."""
    single = [await model.generate(prompt) for prompt in PROMPTS]
    together = await model.generate_many(list(reversed(PROMPTS)))
    assert [str(t) for t in reversed(together)] == [str(t) for t in single]
    assert all(t.batch_invariant for t in together)


async def test_a_text_of_bfloat16_promises_nothing_unless_it_runs_alone() -> None:
    """In bfloat16 a completion says that its batch may matter, unless invariance was asked for."""
    async with nbp.model("transformers:demo-s?dtype=bfloat16") as half:
        assert not (await half.generate("12+30=")).batch_invariant
    async with nbp.model("transformers:demo-s?dtype=bfloat16&invariant=true") as alone:
        assert all(c.batch_invariant for c in await alone.generate_many(PROMPTS[:4]))
    nbp.unload_all()


async def test_a_stream_equals_the_completion(model: nbp.Client) -> None:
    """The chunks of a stream put together are the completion, and carry its usage at the end."""
    stream = model.stream("reverse otter:")
    text = "".join([chunk async for chunk in stream])
    assert text == await model.generate("reverse otter:") == stream.completion
    assert stream.completion.usage.completion_tokens == len("retto") + 1 - 1


@pytest.mark.parametrize("stop", ["t", "tt", "to"])
async def test_stop_strings_cut_streams_and_texts_alike(stop: str) -> None:
    """Nothing of a stop string is ever written, though it comes in pieces."""
    async with nbp.model("transformers:demo-m") as model:
        whole = str(await model.generate("reverse otter:"))
        assert whole == "retto"
        want = whole[: whole.index(stop)]
        done = await model.generate("reverse otter:", stop=stop)
        chunks = [c async for c in model.stream("reverse otter:", stop=[stop, "zzzz"])]
    assert done == want == "".join(chunks)
    assert done.finish == "stop"


async def test_seeds_give_the_same_text_alone_batched_and_reordered(model: nbp.Client) -> None:
    """A seed decides a sampled text, whatever is computed beside it."""
    options = {"temperature": 1.5, "max_tokens": 12}
    alone = [await model.generate(p, seed=i, **options) for i, p in enumerate(PROMPTS[:6])]
    together = await asyncio.gather(
        *(model.generate(p, seed=i, **options) for i, p in reversed(list(enumerate(PROMPTS[:6]))))
    )
    assert [str(t) for t in reversed(together)] == [str(t) for t in alone]
    others = [await model.generate(p, seed=99, **options) for p in PROMPTS[:6]]
    assert [str(t) for t in others] != [str(t) for t in alone]


async def test_the_seed_that_was_drawn_is_told(model: nbp.Client) -> None:
    """A sampled completion without a seed tells the one it drew, and can be repeated with it."""
    first = await model.generate("12+30=", temperature=2.0, max_tokens=8, raw=True)
    assert first.params.seed is not None
    again = await model.generate("12+30=", first.params, raw=True)
    assert again == first


async def test_effective_parameters_are_told(model: nbp.Client) -> None:
    """What was left to the model is filled in: greedy, to the full context."""
    done = await model.generate("12+30=")
    assert done.params.temperature == 0
    assert done.params.top_p == 1
    assert done.params.max_tokens == 256 - done.usage.prompt_tokens
    assert done.spec == "transformers:demo-s"
    assert done.chat


async def test_length_and_stop_are_told_apart(model: nbp.Client) -> None:
    """A text cut by its limit says ``length``; one that ended says ``stop``."""
    assert (await model.generate("upper otter:", max_tokens=2)).finish == "length"
    ended = await model.generate("upper otter:")
    assert ended.finish == "stop"
    assert str(ended) == "OTTER"


async def test_plain_text_and_template_differ(model: nbp.Client) -> None:
    """``raw=True`` and ``?chat=false`` leave the template out, and the completion records it."""
    templated, plain = await model.generate("12+30="), await model.generate("12+30=", raw=True)
    assert (templated.chat, plain.chat) == (True, False)
    assert plain.usage.prompt_tokens == templated.usage.prompt_tokens - 3
    async with nbp.model("transformers:demo-s?chat=false") as other:
        assert (await other.generate("12+30=")).usage == plain.usage
    messages = await model.chat("12+30=")
    assert str(messages) == str(templated)


async def test_a_system_prompt_and_turns_are_put_through_the_template(model: nbp.Client) -> None:
    """System prompt and earlier turns reach the model: they cost tokens."""
    bare = await model.chat("12+30=")
    talk = await model.chat(
        [
            {"role": "user", "content": "upper owl:"},
            {"role": "assistant", "content": "OWL"},
            {"role": "user", "content": "12+30="},
        ],
        system="Be brief.",
    )
    assert talk.usage.prompt_tokens > bare.usage.prompt_tokens + len("Be brief.")


async def test_a_prompt_longer_than_the_context_is_refused_alone(model: nbp.Client) -> None:
    """A prompt that is too long is told with both numbers; those beside it are answered."""
    long = "x" * 300
    outcomes = await asyncio.gather(
        model.generate("12+30="), model.generate(long), return_exceptions=True
    )
    assert str(outcomes[0]) == str(await model.generate("12+30="))
    assert isinstance(outcomes[1], nbp.InvalidRequestError)
    assert "304 tokens" in str(outcomes[1])
    assert "256" in str(outcomes[1])


async def test_an_empty_plain_prompt_is_the_beginning_token(model: nbp.Client) -> None:
    """An empty text is legal as plain text: the beginning token alone."""
    done = await model.generate("", raw=True, max_tokens=3)
    assert done.usage.prompt_tokens == 1


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("endless"), context=32_768, ends=False)


async def test_a_cancelled_request_leaves_the_others_alone(endless: Path) -> None:
    """Cancelling one request of a batch ends it within a token; its neighbour goes on to its end."""
    async with nbp.model(f"transformers:{endless}") as model:
        dropped = asyncio.ensure_future(model.generate("a", raw=True))
        stream = model.stream("b", raw=True, max_tokens=40)
        chunks = [await anext(stream)]
        dropped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dropped
        chunks += [chunk async for chunk in stream]
        assert stream.completion.usage.completion_tokens == 40
        # With the first still running this would wait for thousands of tokens.
        await asyncio.wait_for(model.generate("c", raw=True, max_tokens=1), 30)
    nbp.unload_all(timeout_s=30)


async def test_breaking_out_of_a_stream_frees_the_model(endless: Path) -> None:
    """A ``break`` out of the loop cancels the generation: unloading needs not wait for its end."""
    async with nbp.model(f"transformers:{endless}") as model:
        async for _ in model.stream("a", raw=True):
            break
    assert nbp.unload(f"transformers:{endless}", timeout_s=30) > 0


async def test_a_long_prompt_is_cancelled_between_chunks(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill goes in chunks of 512 tokens, and a cancelled prompt is dropped at the next one."""
    from nbproviders.runtimes import decoding

    seen = []
    check = decoding.Batch.check

    def counted(self: decoding.Batch, *arguments: object, **named: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            self.rows[0].ticket.cancelled = True
        check(self, *arguments, **named)

    async with nbp.model(f"transformers:{endless}") as model:
        monkeypatch.setattr(decoding.Batch, "check", counted)
        done = await model.generate("x" * 5000, raw=True, max_tokens=2)
        assert done.finish == "cancelled"
        assert len(seen) == 3
        seen[:] = [1] * 10
        whole = await model.generate("x" * 1200, raw=True, max_tokens=2)
        assert len(seen) - 10 == 3 + 1  # three chunks, and one step for the second token
        monkeypatch.setattr(decoding, "PREFILL_CHUNK_TOKENS", 10_000)
        assert await model.generate("x" * 1200, raw=True, max_tokens=2) == whole
    nbp.unload_all()


async def test_freeing_empties_the_weights_though_the_module_lives(endless: Path) -> None:
    """After `unload` the module that somebody kept holds no bytes."""
    model = await nbp.load(f"transformers:{endless}")
    module = model.raw
    nbp.unload_all()
    assert sum(p.numel() for p in module.parameters()) == 0
    assert await model.generate("a", raw=True, max_tokens=1) is not None  # loads again by itself
    model.close()
    nbp.unload_all()


async def test_a_failing_forward_is_one_of_our_errors(model: nbp.Client) -> None:
    """A bug inside the library fails the requests of its batch, with our error, and no others."""
    module = model.raw

    def broken(*_: object, **__: object) -> None:
        raise IndexError("planted")

    hook = module.register_forward_pre_hook(broken, with_kwargs=True)
    with pytest.raises(nbp.ProviderError, match="IndexError: planted"):
        await model.generate("12+30=")
    hook.remove()
    assert str(await model.generate("upper otter:")) == "OTTER"
