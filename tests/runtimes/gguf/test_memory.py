"""The predicted sizes are those that llama.cpp logs when it allocates them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbproviders.errors import ConfigurationError
from nbproviders.runtimes.gguf.header import read_files
from nbproviders.runtimes.gguf.memory import footprint, kv_bytes
from tests.gguf_files import write_llama_gguf

llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

MIB = 1 << 20
Log = Callable[[Path], "Sizes"]


class Sizes:
    """What llama.cpp logged while it loaded a model and made a context."""

    def __init__(self, text: str) -> None:
        self.text = text

    def sum(self, what: str) -> float:
        return sum(
            float(size) for size in re.findall(rf"{what} buffer size = +([\d.]+) MiB", self.text)
        )


@pytest.fixture
def logged() -> Iterator[Callable[..., Sizes]]:
    """Load a file with a context of these parameters; what llama.cpp says about it."""
    lines: list[bytes] = []
    keep = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))

    def load(path: Path, **context: Any) -> Sizes:
        lines.clear()
        params = llama_cpp.llama_model_default_params()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert model, b"".join(lines).decode()
        settings = llama_cpp.llama_context_default_params()
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        for name, value in context.items():
            setattr(settings, name, value)
        made = llama_cpp.llama_init_from_model(model, settings)
        assert made, b"".join(lines).decode()
        llama_cpp.llama_free(made)
        llama_cpp.llama_model_free(model)
        return Sizes(b"".join(lines).decode())

    yield load
    from llama_cpp._logger import llama_log_callback

    llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


# Wide enough that the two decimals of the log are finer than one percent.
WIDE = {"hidden": 256, "heads": 8, "kv_heads": 4, "layers": 6, "context": 4096}


@pytest.mark.parametrize(
    "arch", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "gpt2", "falcon"]
)
def test_kv_is_what_llama_cpp_allocates(
    arch: str, tmp_path: Path, logged: Callable[..., Sizes]
) -> None:
    """Within one percent, of ordinary and of windowed architectures, at a length that is padded."""
    path = write_llama_gguf(tmp_path / "m.gguf", arch=arch, **WIDE)
    (header,) = read_files(path)
    assert kv_bytes(header, 3000) / MIB == pytest.approx(
        logged(path, n_ctx=3000).sum("KV"), rel=0.01
    )


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_a_window_saves_its_share(arch: str, tmp_path: Path, logged: Callable[..., Sizes]) -> None:
    """Without full-size caches for windowed layers, the prediction shrinks as the allocation does."""
    path = write_llama_gguf(tmp_path / "m.gguf", arch=arch, **WIDE)
    (header,) = read_files(path)
    predicted = kv_bytes(header, 4096, swa_full=False)
    assert predicted < kv_bytes(header, 4096) * 0.7
    there = logged(path, n_ctx=4096, swa_full=False, n_ubatch=512).sum("KV")
    assert predicted / MIB == pytest.approx(there, rel=0.01)


def test_a_mixture_of_experts_caches_like_a_dense_model(
    tmp_path: Path, logged: Callable[..., Sizes]
) -> None:
    """Experts are weights; they do not widen the cache."""
    path = write_llama_gguf(tmp_path / "m.gguf", experts=4, **WIDE)
    (header,) = read_files(path)
    sizes = logged(path, n_ctx=2048)
    assert kv_bytes(header, 2048) / MIB == pytest.approx(sizes.sum("KV"), rel=0.01)
    weights = footprint([header]).weights_bytes / MIB
    assert weights == pytest.approx(sizes.sum("model"), rel=0.01)


@pytest.mark.parametrize(("kind", "number"), [("f32", 0), ("q8_0", 8), ("bf16", 30)])
def test_the_types_of_the_cache_count(
    kind: str, number: int, tmp_path: Path, logged: Callable[..., Sizes]
) -> None:
    """Bytes follow the types of keys and values, blocks with their scales included."""
    path = write_llama_gguf(tmp_path / "m.gguf", **WIDE)
    (header,) = read_files(path)
    there = logged(path, n_ctx=4096, type_k=number).sum("KV")
    assert kv_bytes(header, 4096, kind) / MIB == pytest.approx(there, rel=0.01)


def test_each_sequence_has_its_own_cells(tmp_path: Path, logged: Callable[..., Sizes]) -> None:
    """`n_ctx` is one sequence's: eight of them take eight times as much, each padded by itself."""
    path = write_llama_gguf(tmp_path / "m.gguf", **WIDE)
    (header,) = read_files(path)
    there = logged(path, n_ctx=8 * 300, n_seq_max=8, kv_unified=False).sum("KV")
    assert kv_bytes(header, 300, sequences=8) / MIB == pytest.approx(there, rel=0.01)


def test_a_recurrent_model_does_not_grow(tmp_path: Path, logged: Callable[..., Sizes]) -> None:
    """Mamba keeps one state a sequence, whatever the context."""
    path = write_llama_gguf(tmp_path / "m.gguf", arch="mamba", hidden=512, layers=8)
    (header,) = read_files(path)
    assert footprint([header]).kv_bytes_per_token == 0
    assert kv_bytes(header, 256, sequences=4) == kv_bytes(header, 4096, sequences=4)
    there = logged(path, n_ctx=1024, n_seq_max=4).sum("RS")
    assert kv_bytes(header, 256, sequences=4) / MIB == pytest.approx(there, rel=0.01)


def test_layers_may_differ(tmp_path: Path, logged: Callable[..., Sizes]) -> None:
    """Key heads of each layer are counted by themselves, and lengths that are not the default."""
    kv_heads = [4, 4, 4, 4, 4, 4]
    extra = {"llama.attention.head_count_kv": kv_heads}
    path = write_llama_gguf(tmp_path / "m.gguf", metadata=extra, **WIDE)
    (header,) = read_files(path)
    assert kv_bytes(header, 2048) / MIB == pytest.approx(
        logged(path, n_ctx=2048).sum("KV"), rel=0.01
    )
    fewer = write_llama_gguf(
        tmp_path / "n.gguf",
        metadata={
            "llama.attention.head_count_kv": [4, 2, 4, 2, 4, 2],
            "llama.attention.value_length": 8,
        },
        **WIDE,
    )
    (other,) = read_files(fewer)
    # Keys: 18 heads of 32. Values: six layers as wide as the widest, 4 heads of 8. Two bytes each.
    assert kv_bytes(other, 256) == 256 * 2 * (18 * 32 + 6 * 4 * 8)


def test_weights_of_a_split_model_are_those_of_all_parts(tmp_path: Path) -> None:
    """The footprint of the parts is that of the whole."""
    whole = footprint(read_files(write_llama_gguf(tmp_path / "whole.gguf")))
    parts = footprint(read_files(write_llama_gguf(tmp_path / "parts.gguf", split_tensors=4)))
    assert parts.weights_bytes == whole.weights_bytes
    assert parts.parameters == whole.parameters
    assert parts.context_tokens == whole.context_tokens == 128


def test_an_unknown_cache_type_is_refused(tmp_path: Path) -> None:
    """The error names the type."""
    (header,) = read_files(write_llama_gguf(tmp_path / "m.gguf"))
    with pytest.raises(ConfigurationError, match="'f17'"):
        kv_bytes(header, 256, type_k="f17")
