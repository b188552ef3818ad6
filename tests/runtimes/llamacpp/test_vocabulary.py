"""Text to tokens and back, of both kinds of vocabulary, whatever the text is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from nbproviders.residency.progress import Progress
from nbproviders.runtimes.llamacpp.native import library, load_weights
from nbproviders.runtimes.llamacpp.vocabulary import _LONGEST_RUN, Vocabulary, _short_runs
from tests.gguf_files import write_llama_gguf

pytest.importorskip("llama_cpp")


_made: dict[str, Vocabulary] = {}
_pointers = []


@pytest.fixture(scope="module", autouse=True)
def _vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("words")
    for kind in ("spm", "bpe"):
        path = write_llama_gguf(folder / f"{kind}.gguf", vocab=kind)
        pointer, _ = load_weights(path, gpu_layers=0, total_bytes=1, progress=Progress())
        _pointers.append(pointer)
        _made[kind] = Vocabulary(pointer)
    yield
    _made.clear()
    for pointer in _pointers:
        library().llama_model_free(pointer)


@pytest.fixture(params=["spm", "bpe"])
def words(request: pytest.FixtureRequest) -> Vocabulary:
    """A vocabulary of sentence pieces, or of byte pairs."""
    return _made[request.param]


def test_a_text_survives(words: Vocabulary) -> None:
    """Tokens of it, without special ones, are the text again; a sentence piece puts a blank before it."""
    for text in ("the dog", "it is red, she said!", "日本 🙂 é", "a\tb\nc", "  two  blanks  ", "x"):
        back = words.decode(words.encode(text, special=False))
        assert back in (text, f" {text}")
    assert words.decode([]) == ""


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_survives(text: str) -> None:
    """What no encoding has becomes a question mark, and no text ends the process."""
    readable = text.encode("utf-8", "replace").decode()
    for kind, words in _made.items():
        back = words.decode(words.encode(readable, special=False))
        assert back in (readable, f" {readable}"), kind
        assert words.encode(text, special=False) == words.encode(readable, special=False)


def test_lone_surrogates_and_nulls(words: Vocabulary) -> None:
    """Native code would end the process at bytes that are no text; a null is a character like others."""
    assert words.encode("a\ud800b", special=False) == words.encode("a?b", special=False)
    back = words.decode(words.encode("a\0b", special=False))
    assert back.strip() == "a\0b"


def test_special_adds_what_the_model_wants() -> None:
    """Its beginning token, of sentence pieces; names of special tokens in a text are those tokens."""
    words = _made["spm"]
    plain, special = words.encode("the", special=False), words.encode("the", special=True)
    assert special == [words.beginning, *plain]
    assert words.encode("</s>", special=False)[-1] in words.eos_ids
    assert words.decode(words.encode("</s>", special=False)).strip() == ""


def test_the_ends_of_a_text(words: Vocabulary) -> None:
    """Every token that ends one is known, and none of them writes anything."""
    assert words.end in words.eos_ids
    assert words.decode(sorted(words.eos_ids)) == ""


def test_each_token_can_be_shown(words: Vocabulary) -> None:
    """As text, and a byte that is no character by itself as its number; never as a replacement character."""
    shown = [words.shown(token) for token in range(words.size)]
    assert len(shown) == words.size
    assert not any("\ufffd" in text for text in shown)
    [first, *_] = words.encode("é", special=False)[-2:]
    assert words.shown(first) in ("<0xC3>", "é")


def test_texts_longer_than_the_buffer(words: Vocabulary) -> None:
    """Of any length, both ways."""
    text = "the dog is red and the girl on " * 2000
    ids = words.encode(text, special=False)
    assert words.decode(ids).strip() == text.strip()


LONG = """
import sys
from pathlib import Path
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.llamacpp.native import load_weights
from nbproviders.runtimes.llamacpp.vocabulary import Vocabulary
pointer, _ = load_weights(Path(sys.argv[1]), gpu_layers=0, total_bytes=1, progress=Progress())
words = Vocabulary(pointer)
singles = ["a", "7", " ", "\\n", "é", "日", "!", "_", "/", "a ", "aB", "ab1"]
mixed = ["!_", "_'", "_é", "_/", "\\n/", "_🙂", "_\\u200d", "\\u0301_", "a\\u0301", "1²"]
mixed += ["Ⅷ\\u200d", "日\\u0bcd", "-🙂_\\n"]
for piece in (*singles, *mixed):
    text = piece * (100_000 // len(piece))
    assert words.decode(words.encode(text, special=False)).strip() == text.strip(), piece
print("all of them")
"""


@pytest.mark.parametrize("pre", ["gpt-2", "gpt-4o", "tekken", "deepseek-llm", "qwen2"])
def test_long_runs_do_not_end_the_process(tmp_path: Path, pre: str) -> None:
    """A hundred thousand characters of one kind overflow native code's stack, where that is cut by hand."""
    path = tmp_path / "m.gguf"
    write_llama_gguf(path, vocab="bpe", metadata={"tokenizer.ggml.pre": pre})
    ran = subprocess.run(
        [sys.executable, "-c", LONG, str(path)], capture_output=True, text=True, timeout=100
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "all of them"), ran.stderr[-1000:]


def test_only_what_is_too_long_is_cut() -> None:
    """In pieces that are the text again; ordinary text, however long, stays whole."""
    for ordinary in ("the dog is red. " * 10_000, "a-b_c/d\n" * 9_000, "x" * _LONGEST_RUN, ""):
        assert _short_runs(ordinary) == [ordinary]
    for text in (
        "a" * 50_000,
        "ab " + " " * 20_000 + "c",
        "x" * 8_001 + "7",
        "(" + "1" * 8_001 + ")",
    ):
        pieces = _short_runs(text)
        assert "".join(pieces) == text
        assert len(pieces) > 1
        assert all(0 < len(piece) <= _LONGEST_RUN + 10 for piece in pieces)
