"""How large a context may become, and what it takes, told before loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.runtimes.gguf.header import Header, read_files
from nbproviders.runtimes.llamacpp.plan import CACHE_TYPES, plan
from tests.gguf_files import write_llama_gguf

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> tuple[Header, ...]:
    """Two layers, two heads of keys and values of 32 numbers, trained for 1000 tokens."""
    path = tmp_path_factory.mktemp("plan") / "m.gguf"
    return read_files(write_llama_gguf(path, hidden=128, heads=4, context=1000))


def cache(tokens: int, bytes_each: float = 2) -> int:
    """Bytes of keys and values for so many tokens of that model."""
    return int(tokens * 2 * 2 * 64 * bytes_each)


def test_the_context_is_what_was_trained_for(header: tuple[Header, ...]) -> None:
    """Up to 4096, or as asked; one sequence of it, rounded up to 256, always fits."""
    for n_ctx, tokens in ((None, 1000), (100, 100), (5000, 5000)):
        found = plan(header, n_ctx=n_ctx)
        assert found.limits.n_ctx == tokens
        assert found.limits.cells >= tokens
        assert found.limits.cells % 256 == 0
        assert found.alone_bytes == cache(-(-tokens // 256) * 256)
        assert found.cache_bytes == cache(found.limits.cells)


def test_long_training_does_not_take_all_memory(tmp_path: Path) -> None:
    """A model trained for a million tokens opens with 4096."""
    path = write_llama_gguf(tmp_path / "m.gguf", context=1_000_000)
    assert plan(read_files(path)).limits.n_ctx == 4096
    unknown = write_llama_gguf(tmp_path / "u.gguf", metadata={"llama.context_length": 0})
    assert plan(read_files(unknown)).limits.n_ctx == 4096


def test_each_of_parallel_has_the_whole_context(header: tuple[Header, ...]) -> None:
    """If the number is given; no more than that is ever taken."""
    for count in (1, 3, 64):
        found = plan(header, parallel=count, n_ctx=500)
        assert (found.limits.sequences, found.limits.cells) == (count, count * 512)


def test_a_chosen_number_keeps_the_cache_small(tmp_path: Path) -> None:
    """Several together where the cache stays small beside 64 MiB, one where it does not."""
    path = write_llama_gguf(tmp_path / "m.gguf", layers=12, hidden=512, heads=4, kv_heads=4)
    files = read_files(path)
    short, long = plan(files, n_ctx=256), plan(files, n_ctx=65536)
    assert short.limits.sequences > 1
    assert 256 < short.limits.cells <= short.limits.sequences * 256
    assert short.cache_bytes <= 64 * 2**20
    assert long.limits.cells == 65536
    assert long.cache_bytes == long.alone_bytes


@pytest.mark.parametrize(("kind", "size"), [("f32", 4), ("f16", 2), ("bf16", 2), ("q8_0", 34 / 32)])
def test_the_cache_is_as_large_as_its_type(
    header: tuple[Header, ...], kind: str, size: float
) -> None:
    """Keys and values may have different ones."""
    both = plan(header, parallel=1, n_ctx=1024, type_k=kind, type_v=kind)
    assert both.cache_bytes == cache(1024, size)
    keys = plan(header, parallel=1, n_ctx=1024, type_k=kind)
    assert keys.cache_bytes == (cache(1024, size) + cache(1024)) // 2


def test_the_types_are_those_of_llama_cpp() -> None:
    """Each name stands for ggml's number of it."""
    llama_cpp = pytest.importorskip("llama_cpp.llama_cpp")
    for name, number in CACHE_TYPES.items():
        assert getattr(llama_cpp, f"GGML_TYPE_{name.upper()}", number) == number
    import gguf

    for name, number in CACHE_TYPES.items():
        assert gguf.GGMLQuantizationType[name.upper()] == number


def test_the_space_to_compute_in_grows_with_the_batch(header: tuple[Header, ...]) -> None:
    """And without flash attention with the context."""

    def space(**how: Any) -> int:
        return plan(header, **how).workspace_bytes

    assert space(n_batch=512) > 3 * space(n_batch=64)
    assert space(n_ctx=8192, flash_attn=False) > 4 * space(n_ctx=8192, flash_attn=True)
    assert space(n_ctx=8192, type_k="f32", type_v="f32") == space(n_ctx=8192, flash_attn=False)
    assert space(n_ctx=100, n_batch=512) == space(n_ctx=100, n_batch=256)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"n_ctx": 0}, "n_ctx=0"),
        ({"n_batch": -1}, "n_batch=-1"),
        ({"parallel": -2}, "parallel=-2"),
        ({"parallel": 9, "n_batch": 8}, "parallel=9 is more than n_batch=8"),
        ({"type_k": "f15"}, "type_k='f15' is not one of f32"),
        ({"type_v": ""}, "type_v='' is not one of f32"),
    ],
)
def test_what_cannot_be(header: tuple[Header, ...], how: dict[str, Any], words: str) -> None:
    """Each with its value, before anything is loaded."""
    with pytest.raises(ConfigurationError) as told:
        plan(header, **how)
    assert words in str(told.value)


def test_fewer_sequences_than_an_evaluation_has_tokens(header: tuple[Header, ...]) -> None:
    """Else llama.cpp ends the process: a batch of two serves two requests at once."""
    assert plan(header, n_batch=2).limits.sequences <= 2


def test_learned_places_end_the_context(tmp_path: Path) -> None:
    """Past the last of them native code would end the process."""
    path = write_llama_gguf(tmp_path / "m.gguf", arch="gpt2", vocab="bpe", context=100)
    files = read_files(path)
    assert plan(files, n_ctx=100).limits.n_ctx == 100
    with pytest.raises(ConfigurationError, match=r"n_ctx=101.*100"):
        plan(files, n_ctx=101)


def test_a_quantised_cache_needs_whole_blocks(tmp_path: Path) -> None:
    """Of heads as wide as the file says, which need not be their share of the hidden state."""
    narrow = read_files(write_llama_gguf(tmp_path / "n.gguf", hidden=64, heads=4))
    with pytest.raises(ConfigurationError, match="16 numbers"):
        plan(narrow, type_v="q8_0")
    wide = read_files(write_llama_gguf(tmp_path / "w.gguf", arch="gemma3", hidden=64, heads=4))
    assert plan(wide, type_k="q8_0", type_v="q4_0").cache_bytes > 0


def test_recurrent_models_have_a_state_for_each_request(tmp_path: Path) -> None:
    """However long they are."""
    files = read_files(write_llama_gguf(tmp_path / "m.gguf", arch="mamba", context=128))
    one, four = plan(files, parallel=1), plan(files, parallel=4)
    assert four.cache_bytes == 4 * one.cache_bytes > 0
    assert plan(files, parallel=1, n_ctx=4096).cache_bytes == one.cache_bytes
