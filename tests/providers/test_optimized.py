"""The provider ``optimized``: each step runs, can be switched off, and steps back with its reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.providers import optimized
from nbproviders.providers.optimized import CompiledForward, OptimizedProvider
from tests.tiny import write_llama

torch = pytest.importorskip("torch")

# torch's compiler imports a part of torch that warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")

OFF = {"bfloat16": False, "flash_attention": False, "compile": False}


def compiled_parts(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(vars(m).get("forward"), CompiledForward)]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Have torch.compile use another backend: real tracing, without minutes of C++."""
    original = torch.compile

    def use(function: Callable[..., Any]) -> None:
        monkeypatch.setattr(torch, "compile", lambda f, **k: original(f, backend=function, **k))

    torch.compiler.reset()
    return use


def plain_backend(graph: Any, _: object) -> Any:
    return graph.forward


def test_bfloat16_is_what_is_loaded_and_charged() -> None:
    """By itself it loads in bfloat16 where the device has it, and the estimate says so."""
    provider = nbp.create_provider("optimized")
    expected = provider.estimate(provider.resolve("demo-m?device=cpu"))
    half = not optimized.no_bfloat16("cpu")
    with nbp.model("optimized:demo-m?device=cpu") as model:
        assert model.generate("12+30=") == "42"
        assert model.raw.dtype is (torch.bfloat16 if half else torch.float32)
        charged = nbp.residents()[0].bytes["cpu"]
        assert expected["cpu"] == pytest.approx(charged, rel=0.01)


def test_what_stepped_back_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU flash attention and compilation step back; the reasons are notes, residents and log."""
    with (
        caplog.at_level(logging.INFO, "nbproviders"),
        nbp.model("optimized:demo-xs?device=cpu") as model,
    ):
        flash, compiled = model.info.notes
        assert nbp.residents()[0].notes == model.info.notes
    assert flash.startswith("flash_attention_2: ")
    assert "it needs a CUDA GPU, not cpu" in flash
    assert flash.endswith("; sdpa is used")
    assert compiled.startswith("torch.compile: on cpu it takes seconds and was slower")
    assert "plain is used" in compiled
    told = [record.getMessage() for record in caplog.records]
    assert f"optimized: {flash}" in told
    assert f"optimized: {compiled}" in told


def test_a_cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device computes no bfloat16, float32 is used and that is said."""
    monkeypatch.setattr(
        optimized, "no_bfloat16", lambda device: "this CPU has no instructions for it"
    )
    with nbp.model("optimized:demo-xs?device=cpu&flash_attention=false&compile=false") as model:
        assert model.raw.dtype is torch.float32
        assert model.info.notes == (
            "bfloat16: this CPU has no instructions for it; float32 is used",
        )


def test_every_step_can_be_switched_off() -> None:
    """Without any step it is the transformers model, and says nothing."""
    with nbp.model("optimized:demo-xs?device=cpu", **OFF) as model:
        assert model.info.notes == ()
        assert model.raw.dtype is torch.float32
        assert compiled_parts(model.raw) == []


def test_what_is_given_wins() -> None:
    """A dtype and an attention that the user chose are taken, without a word."""
    chosen = "dtype=float32&attn_implementation=eager&compile=false"
    with nbp.model(f"optimized:demo-xs?device=cpu&{chosen}") as model:
        assert model.raw.dtype is torch.float32
        assert model.raw.config._attn_implementation == "eager"
        assert model.info.notes == ()


def test_compiled_parts_are_used(
    backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where compiled parts are no slower they stay, answer the same, and are compiled at the load."""
    graphs: list[Any] = []

    def counting(graph: Any, examples: object) -> Any:
        graphs.append(graph)
        return plain_backend(graph, examples)

    backend(counting)
    times = iter([1.0, *[1.0, 2.0] * 3])
    real = optimized._seconds
    monkeypatch.setattr(optimized, "_seconds", lambda model: (real(model), next(times))[1])
    with nbp.model("optimized:demo-m?device=cpu", **{**OFF, "compile": True}) as model:
        [note] = model.info.notes
        assert note.endswith("loaded again: parts of it are compiled")
        assert compiled_parts(model.raw)
        assert len(graphs) > 0
        before = len(graphs)
        assert model.generate("12+30=") == "42"
        assert model.generate_many(["12+30=", "reverse otter:", "1+1="])[0] == "42"
        assert len(graphs) == before


def test_many_models_of_one_kind_are_compiled(
    backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fifth model of a kind is compiled like the first, though torch limits forms of one code."""
    graphs: list[Any] = []

    def counting(graph: Any, examples: object) -> Any:
        graphs.append(graph)
        return plain_backend(graph, examples)

    backend(counting)
    real = optimized._seconds
    monkeypatch.setattr(optimized, "_seconds", lambda model: (real(model), 1.0)[1])
    counts = []
    for number in range(1, 6):
        folder = write_llama(tmp_path / str(number), hidden=64 * number)
        nbp.load_sync(f"optimized:{folder}?device=cpu", **{**OFF, "compile": True})
        counts.append(len(graphs))
        graphs.clear()
    assert min(counts) == max(counts) > 0


def test_a_compilation_that_fails_steps_back_at_the_load(backend: Callable[..., None]) -> None:
    """What the compiler says is the reason, and the model answers without it."""

    def failing(graph: Any, _: object) -> Any:
        raise OSError("there is no compiler")

    backend(failing)
    with nbp.model("optimized:demo-m?device=cpu", **{**OFF, "compile": True}) as model:
        [note] = model.info.notes
        assert note.startswith("torch.compile: it failed: ")
        assert "there is no compiler" in note
        assert note.endswith("; plain is used")
        assert compiled_parts(model.raw) == []
        assert model.generate("12+30=") == "42"


def test_a_python_that_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch.compile itself refuses, its words are the reason."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("not supported on this Python")

    monkeypatch.setattr(torch, "compile", refuse)
    with nbp.model("optimized:demo-xs?device=cpu", **{**OFF, "compile": True}) as model:
        assert "not supported on this Python; plain is used" in model.info.notes[0]


def test_a_compilation_that_is_slower_steps_back(backend: Callable[..., None]) -> None:
    """A step that makes the model slower is undone, and both times are told."""

    def slow(graph: Any, _: object) -> Any:
        def run(*arguments: Any) -> Any:
            for _ in range(20):
                graph.forward(*arguments)
            return graph.forward(*arguments)

        return run

    backend(slow)
    with nbp.model("optimized:demo-xs?device=cpu", **{**OFF, "compile": True}) as model:
        [note] = model.info.notes
        assert "ms a step with it" in note
        assert compiled_parts(model.raw) == []


def test_quantized_layers_are_not_compiled() -> None:
    """In 8 bits the compile step says why it stands aside."""
    pytest.importorskip("bitsandbytes")
    options = {**OFF, "compile": True, "quantization": "int8"}
    with nbp.model("optimized:demo-xs?device=cpu", **options) as model:
        assert model.info.notes[:-1] == (
            "torch.compile: layers in 4 or 8 bits are not compiled; plain is used",
        )
        assert model.info.notes[-1].endswith("loaded again: its weights are quantized")


class Doubling(OptimizedProvider):
    """Adds a step of its own."""

    def _apply_custom_optimizations(self, model: Any) -> Any:
        model.custom = True
        return model


class Forgetful(OptimizedProvider):
    """Forgets to return the model."""

    def _apply_custom_optimizations(self, model: Any) -> Any:
        return None


def test_a_subclass_adds_a_step(tmp_path: Path) -> None:
    """The hook is called with the model, and can be switched off like any step."""
    nbp.register_provider("doubling", Doubling)
    folder = write_llama(tmp_path)
    with nbp.model(f"doubling:{folder}?device=cpu", **OFF) as model:
        assert model.raw.custom
    with nbp.model(f"doubling:{folder}?device=cpu&custom_optimizations=false", **OFF) as model:
        assert not hasattr(model.raw, "custom")
    model = Doubling(**OFF).load_model(str(folder), device_map="cpu")
    assert model.custom


def test_a_hook_that_returns_nothing(tmp_path: Path) -> None:
    """It fails the load with what it must return: a model half changed is not used."""
    folder = write_llama(tmp_path)
    with pytest.raises(nbp.ProviderError, match=r"_apply_custom_optimizations returned None"):
        Forgetful(**OFF).get_client(f"{folder}?device=cpu")


def test_options_of_the_constructor() -> None:
    """They are those of the steps, checked like those of a model."""
    one = nbp.create_provider("optimized", compile=False)
    assert one.resolve("demo-xs") == nbp.create_provider("optimized").resolve(
        "demo-xs?compile=false"
    )
    with pytest.raises(nbp.ConfigurationError, match="compile='fast'.*must be bool"):
        nbp.create_provider("optimized", compile="fast")
    assert one.resolve("demo-xs") != nbp.create_provider("transformers").resolve("demo-xs")


@pytest.mark.slow
def test_the_real_compiler() -> None:
    """With torch's own compiler, on whatever machine, the model answers; compiled or with a reason."""
    torch.compiler.reset()
    with nbp.model("optimized:demo-xs?device=cpu", **{**OFF, "compile": True}) as model:
        assert bool(compiled_parts(model.raw)) != bool(model.info.notes)
        assert model.generate("1+1=") == model.generate("1+1=")
