"""A context: what its sequences remember, forget and copy; one evaluation; what it takes."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbproviders as nbp
from nbproviders.errors import ProviderError
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.gguf.header import read_files
from nbproviders.runtimes.llamacpp import native
from nbproviders.runtimes.llamacpp.context import Aborted, Context, Settings
from nbproviders.runtimes.llamacpp.native import Abort, library, load_weights
from nbproviders.runtimes.llamacpp.plan import plan
from tests.gguf_files import write_llama_gguf

pytest.importorskip("llama_cpp")


TEXT = [5, 270, 30, 31, 275, 40, 41, 280]
Make = Callable[..., Context]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, int]]:
    """A file, its model's pointer, the size of its vocabulary."""
    path = write_llama_gguf(tmp_path_factory.mktemp("context") / "m.gguf", hidden=128, heads=4)
    pointer, _ = load_weights(path, gpu_layers=0, total_bytes=1, progress=Progress())
    functions = library()
    size = functions.llama_vocab_n_tokens(functions.llama_model_get_vocab(pointer))
    yield path, pointer, size
    functions.llama_model_free(pointer)


@pytest.fixture
def make(weights: tuple[Path, Any, int]) -> Iterator[Make]:
    """Makes contexts that are exact; closed at the end."""
    made, flags = [], []
    # Whoever used the library before may have turned its log elsewhere, and the sizes are in it.
    library().llama_log_set(native._callback, ctypes.c_void_p(0))

    def new(sequences: int = 4, abort: Abort | None = None, n_batch: int = 64) -> Context:
        settings = Settings(
            n_ctx=256,
            n_batch=n_batch,
            n_threads=1,
            flash_attn=False,
            short_heads=False,
            type_k=0,
            type_v=0,
            offload=False,
        )
        _, pointer, size = weights
        flags.append(abort or Abort())  # native code reads it as long as there is a context
        made.append(Context(pointer, size, settings, sequences, 256, flags[-1]))
        return made[-1]

    yield new
    for context in made:
        context.close()


def run(context: Context, sequence: int, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Put tokens behind what a sequence knows; return a copy of the last one's logits."""
    begin = len(context.known[sequence])
    places = [(sequence, begin + i) for i in range(len(tokens))]
    return context.evaluate(tokens, places, [len(tokens) - 1])[0].copy()


def test_a_text_in_pieces_is_the_same_text(make: Make) -> None:
    """Whole, or token by token; what is known is told."""
    context = make()
    whole = run(context, 0, TEXT)
    for token in TEXT:
        last = run(context, 1, [token])
    assert context.known[:2] == [TEXT, TEXT]
    np.testing.assert_allclose(whole, last, atol=1e-5)


def test_sequences_do_not_see_one_another(make: Make) -> None:
    """Computed together each has the logits it has alone."""
    alone, context = make(), make()
    other = TEXT[::-1]
    wanted = run(alone, 0, TEXT), run(alone, 1, other)
    places = [(s, i) for s in (2, 0) for i in range(len(TEXT))]
    found = context.evaluate([*TEXT, *other], places, [len(TEXT) - 1, 2 * len(TEXT) - 1])
    assert found.shape[0] == 2
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert context.known == [other, [], TEXT, []]


def test_logits_are_of_the_tokens_that_were_asked(make: Make) -> None:
    """In their order, none for none."""
    context = make()
    places = [(0, i) for i in range(len(TEXT))]
    found = context.evaluate(TEXT, places, [2, 7]).copy()
    other = make()
    np.testing.assert_allclose(run(other, 0, TEXT[:3]), found[0], atol=1e-5)
    np.testing.assert_allclose(run(other, 0, TEXT[3:]), found[1], atol=1e-5)
    assert context.evaluate([9], [(1, 0)], []).shape[0] == 0


def test_what_is_forgotten_is_as_if_it_had_not_been(make: Make) -> None:
    """The beginning stays, and is gone on from."""
    context = make()
    run(context, 0, TEXT)
    assert context.keep(0, 3) == 3
    again = run(context, 0, [77, 78])
    assert context.known[0] == [*TEXT[:3], 77, 78]
    np.testing.assert_allclose(again, run(make(), 0, [*TEXT[:3], 77, 78]), atol=1e-5)
    assert context.keep(0, 0) == 0
    np.testing.assert_allclose(run(context, 0, TEXT), run(make(), 0, TEXT), atol=1e-5)


def test_a_copy_goes_its_own_way(make: Make) -> None:
    """It begins like its source, forgets what it knew before, and leaves the source as it is."""
    context = make()
    run(context, 0, TEXT)
    run(context, 2, [99] * 5)
    assert context.copy(0, 2, 4) == 4
    assert context.known[2] == TEXT[:4]
    copied = run(context, 2, [77])
    np.testing.assert_allclose(copied, run(make(), 0, [*TEXT[:4], 77]), atol=1e-5)
    went_on = run(context, 0, [50])
    np.testing.assert_allclose(went_on, run(make(), 0, [*TEXT, 50]), atol=1e-5)


def test_an_aborted_evaluation_leaves_no_trace(make: Make) -> None:
    """What was known before it is known after it, and the next evaluation is right."""
    abort = Abort()
    context = make(abort=abort)
    run(context, 0, TEXT[:3])
    abort.set()
    with pytest.raises(Aborted):
        run(context, 0, TEXT[3:])
    assert context.known[0] == TEXT[:3]
    abort.clear()
    np.testing.assert_allclose(run(context, 0, TEXT[3:]), run(make(), 0, TEXT), atol=1e-5)


def test_more_tokens_than_a_sequence_holds_are_refused(make: Make) -> None:
    """By an error; what is known stays as it was."""
    context = make(n_batch=256)
    run(context, 0, [5] * 250)
    with pytest.raises(ProviderError, match="could not evaluate 10 tokens"):
        run(context, 0, [6] * 10)
    assert context.known[0] == [5] * 250
    assert run(context, 0, [6]).shape


def test_more_cores_change_nothing(make: Make) -> None:
    """But the time."""
    context = make()
    one = run(context, 0, TEXT)
    context.use_threads(2)
    np.testing.assert_allclose(run(context, 1, TEXT), one, atol=1e-5)


def test_it_keeps_what_native_code_reads(weights: tuple[Path, Any, int]) -> None:
    """Its abort flag lives as long as it does, whoever else has forgotten it."""
    _, pointer, size = weights
    settings = Settings(256, 64, 1, False, False, 0, 0, False)
    flag = Abort()
    kept = weakref.ref(flag)
    context = Context(pointer, size, settings, 1, 256, flag)
    del flag
    gc.collect()
    assert kept() is not None
    run(context, 0, TEXT)
    context.close()


@pytest.mark.parametrize(
    ("flash", "short", "as_alone"),
    [(None, True, False), (None, False, True), (False, True, True), (True, True, True)],
)
def test_whether_many_compute_as_one_does(
    weights: tuple[Path, Any, int], flash: bool | None, short: bool, as_alone: bool
) -> None:
    """Not if a single sequence is computed without flash attention, and several with it."""
    _, pointer, size = weights
    settings = Settings(256, 64, 1, flash, short, 0, 0, False)
    alone, many = (Context(pointer, size, settings, n, 256, Abort()) for n in (1, 4))
    found = [run(one, 0, TEXT) for one in (alone, many)]
    assert (alone.as_alone, many.as_alone) == (True, as_alone)
    assert bool((found[0] == found[1]).all()) is as_alone
    alone.close()
    many.close()


def test_nothing_is_copied_of_nothing(make: Make) -> None:
    """The target has forgotten what it knew."""
    context = make()
    run(context, 0, TEXT)
    run(context, 2, TEXT[::-1])
    assert context.copy(0, 2, 0) == 0
    assert context.known[2] == []
    np.testing.assert_allclose(run(context, 2, TEXT), run(make(), 0, TEXT), atol=1e-5)


def test_a_recurrent_model_goes_on_or_begins_again(tmp_path: Path) -> None:
    """It cannot forget the end of a text alone."""
    path = write_llama_gguf(tmp_path / "mamba.gguf", arch="mamba")
    pointer, _ = load_weights(path, gpu_layers=0, total_bytes=1, progress=Progress())
    functions = library()
    size = functions.llama_vocab_n_tokens(functions.llama_model_get_vocab(pointer))
    settings = Settings(256, 64, 1, False, False, 0, 0, False)
    context, other = (Context(pointer, size, settings, 3, 256, Abort()) for _ in range(2))
    run(context, 0, TEXT)
    assert context.keep(0, len(TEXT)) == len(TEXT)
    assert (context.copy(0, 1, len(TEXT)), context.copy(0, 2, 3)) == (len(TEXT), 0)
    wanted = run(other, 0, [*TEXT, 77])
    for sequence in (0, 1):
        np.testing.assert_allclose(run(context, sequence, [77]), wanted, atol=1e-5)
    assert context.keep(0, 3) == 0
    np.testing.assert_allclose(run(context, 0, [*TEXT, 77]), wanted, atol=1e-5)
    for one in (context, other):
        one.close()
    functions.llama_model_free(pointer)


def test_it_is_closed_once(make: Make) -> None:
    """A second time does nothing."""
    context = make()
    context.close()
    context.close()


def test_what_it_takes_is_what_was_planned(make: Make, weights: tuple[Path, Any, int]) -> None:
    """The cache to the byte, as llama.cpp tells it; the rest within 15 %."""
    files = read_files(weights[0])
    planned = plan(files, n_ctx=256, n_batch=64, parallel=4, type_k="f32", type_v="f32")
    [(name, taken)] = make().bytes.items()
    assert name == "CPU"
    whole = planned.cache_bytes + planned.workspace_bytes
    assert taken == pytest.approx(whole, rel=0.15, abs=2**18)


def test_sizes_are_measured_though_other_code_took_the_log() -> None:
    """What a load takes is read off llama.cpp's log, whoever listened to it last."""
    import ctypes

    import llama_cpp.llama_cpp as lib

    def taken() -> dict[str, int]:
        with nbp.model("llama-cpp:demo-m") as m:
            m.generate("1+1=", max_tokens=1)
            found = dict(m.info.memory_bytes)
        nbp.unload_all()
        return found

    before = taken()
    other = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(other, ctypes.c_void_p(0))
    assert taken() == before
