"""Probabilities by a transformers model: the same in one pass or in chunks, and stopped between them."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from nbproviders.errors import ClosedError
from nbproviders.runtimes import probabilities
from nbproviders.runtimes.probabilities import last_logits, next_tokens, score, token_text
from tests.tiny import write_llama

LONG = [6 + (n * 7) % 250 for n in range(1100)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A causal model of random weights, and its tokenizer."""
    folder = write_llama(tmp_path_factory.mktemp("probabilities"), context=1200)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def whole(model: Any, ids: list[int]) -> Any:
    """Logits of every position, as the model itself gives them."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("length", [1, 511, 512, 513, 1024, 1100])
@pytest.mark.parametrize("behind", [0, 1, 2, 90, 600])
def test_chunks_give_what_one_pass_gives(loaded: tuple[Any, Any], length: int, behind: int) -> None:
    """Wherever prompt and continuation end, at a chunk's edge or over several."""
    model, _ = loaded
    behind = min(behind, 1100 - length)
    ids, more = LONG[:length], LONG[length : length + behind]
    found = last_logits(model, ids, more, lambda: None)
    wanted = whole(model, [*ids, *more[:-1]])[-max(behind, 1) :]
    assert found.shape == (max(behind, 1), 262)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_model_that_keeps_all_logits_gives_the_same(loaded: tuple[Any, Any]) -> None:
    """Some cannot leave any out."""
    model, _ = loaded

    class Keeping(torch.nn.Module):
        config, device = model.config, model.device

        def forward(
            self, input_ids: Any, past_key_values: Any = None, use_cache: Any = None
        ) -> Any:
            return model(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    for length, behind in ((500, 9), (600, 9), (1000, 90)):
        ids, more = LONG[:length], LONG[length : length + behind]
        found = last_logits(Keeping(), ids, more, lambda: None)
        wanted = last_logits(model, ids, more, lambda: None)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_stop_is_obeyed_between_chunks(loaded: tuple[Any, Any]) -> None:
    """Before the first and behind each; the rest is not computed."""
    model, _ = loaded
    passes, checks = [], []

    def check() -> None:
        checks.append(len(passes))
        if len(passes) == 2:
            raise ClosedError("stopped")

    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        with pytest.raises(ClosedError):
            last_logits(model, LONG, (), check)
    finally:
        hook.remove()
    assert checks == [0, 1, 2]


def test_next_tokens_are_the_softmax_in_order(loaded: tuple[Any, Any]) -> None:
    """As many as there are, at most."""
    model, tokenizer = loaded
    wanted = whole(model, LONG[:20])[-1].log_softmax(-1)
    found = next_tokens(model, tokenizer, LONG[:20], 9, lambda: None)
    assert [token.id for token in found] == wanted.topk(9).indices.tolist()
    assert [token.logprob for token in found] == pytest.approx(wanted.topk(9).values.tolist())
    every = next_tokens(model, tokenizer, LONG[:20], 10_000, lambda: None)
    assert len(every) == 262
    assert math.fsum(token.probability for token in every) == pytest.approx(1, abs=1e-5)


def test_a_score_is_of_the_tokens_that_were_given(loaded: tuple[Any, Any]) -> None:
    """Each behind all before it; of none it is empty."""
    model, tokenizer = loaded
    logprobs = whole(model, LONG[:30]).log_softmax(-1)
    found = score(model, tokenizer, LONG[:20], LONG[20:30], lambda: None)
    assert [token.id for token in found] == LONG[20:30]
    wanted = [float(logprobs[19 + n, LONG[20 + n]]) for n in range(10)]
    assert [token.logprob for token in found] == pytest.approx(wanted, abs=1e-5)
    assert score(model, tokenizer, LONG[:20], [], lambda: None) == ()


def test_an_encoders_prompt_is_read_and_its_answer_scored() -> None:
    """The decoder begins with its own token."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(config.from_dict(config.to_dict())).eval()
    model.generation_config.decoder_start_token_id = 3
    read, written = [5, 6, 7], [8, 9]
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([[3, 8]])
        ).logits[0]
    found = last_logits(model, read, written, lambda: None)
    torch.testing.assert_close(found, logits)
    assert last_logits(model, read, (), lambda: None).shape == (1, 40)


def test_a_token_is_shown_as_it_writes_in_a_text(loaded: tuple[Any, Any]) -> None:
    """Special ones by name, pieces of a character as bytes, all others so that they make up the text."""
    _, tokenizer = loaded
    text = "ab 12é日\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = [token_text(tokenizer, i) for i in ids]
    assert shown[:5] == ["a", "b", " ", "1", "2"]
    assert shown[5:7] == ["<0xC3>", "<0xA9>"]
    raw = b"".join(
        bytes([int(one[3:5], 16)]) if one.startswith("<0x") else one.encode() for one in shown
    )
    assert raw.decode() == text
    special = tokenizer.all_special_tokens[0]
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids(special)) == special


def test_chunks_are_as_large_as_is_promised() -> None:
    """A cancellation is obeyed within 512 tokens."""
    assert probabilities._CHUNK_TOKENS <= 512


def test_words_of_sentencepiece_keep_their_blank() -> None:
    """Many tokenizers drop the blank before the first token of a text; a byte is a token by its name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = {"<unk>": 0, "▁the": 1, "▁dog": 2, "s": 3, "<0xE2>": 4}
    plain = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain)
    assert [token_text(tokenizer, i) for i in (1, 2, 3, 4)] == [" the", " dog", "s", "<0xE2>"]
