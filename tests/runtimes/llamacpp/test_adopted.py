"""A ``llama_cpp.Llama`` of somebody else's: shared while it is open, closed for good with its model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbproviders.authoring.adapted import adapt
from nbproviders.core import engine
from nbproviders.core.model import Model
from nbproviders.core.params import GenerationParams
from nbproviders.errors import ClosedError, ProviderError
from nbproviders.runtimes.llamacpp.adopted import adopt
from nbproviders.runtimes.llamacpp.native import library
from nbproviders.runtimes.threads import Worker
from tests.gguf_files import CHATML, write_llama_gguf

llama_cpp = pytest.importorskip("llama_cpp")

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a template."""
    folder = tmp_path_factory.mktemp("adopted")
    return write_llama_gguf(folder / "m.gguf", hidden=128, heads=4, chat_template=CHATML)


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Makes objects of llama-cpp-python's; its log goes to ours before."""
    library()
    made = []

    def new(**how: Any) -> Any:
        made.append(llama_cpp.Llama(str(path), **{"n_ctx": 256, "verbose": False, **how}))
        return made[-1]

    yield new
    for one in made:
        if type(one) is llama_cpp.Llama:
            one.close()


def on_engine(work: Callable[[], Any]) -> Any:
    """Run a coroutine function where models live."""
    return engine.default().wait(work)


def generate(model: Model, prompt: str, **how: Any) -> Any:
    """Generate with a model as the waist does."""
    params = GenerationParams(temperature=0, max_tokens=4, **how)
    return on_engine(lambda: model.generate(prompt, params))


def test_its_settings_are_taken_over(opened: Open) -> None:
    """Context, batch and template are the object's; what it takes is told."""
    model = adapt(opened(n_ctx=512, n_batch=32), spec="x:m")
    try:
        assert model.info.context_tokens == 512
        assert "chat" in model.info.can
        assert model.info.spec == "x:m"
        assert model.info.memory_bytes["cpu"] > 0
        assert generate(model, "the dog").chat
    finally:
        on_engine(model.aclose)


@pytest.mark.parametrize(
    "how", [{"n_batch": 1}, {"n_batch": 3}, {"n_ubatch": 4}, {"logits_all": True}]
)
def test_small_batches_do_not_end_the_process(opened: Open, how: dict[str, Any]) -> None:
    """Several requests at once, whatever the object was made with."""
    model = adapt(opened(**{"n_ctx": 4096, **how}))
    params = GenerationParams(temperature=0, max_tokens=4)

    async def many() -> Any:
        return await asyncio.gather(*(model.generate("the dog", params) for _ in range(12)))

    try:
        assert len(set(map(str, on_engine(many)))) == 1
    finally:
        on_engine(model.aclose)


def test_closing_closes_it_for_good(opened: Open) -> None:
    """Every later use is our error, told what was asked; closing twice does nothing."""
    llama = opened()
    model = adapt(llama)
    assert model.raw is llama
    on_engine(model.aclose)
    on_engine(model.aclose)
    assert isinstance(llama, llama_cpp.Llama)
    for use in (
        lambda: llama("x"),
        lambda: llama.create_chat_completion([]),
        lambda: llama.tokenize(b"x"),
        lambda: llama.close(),
        lambda: llama.ctx,
    ):
        with pytest.raises(ClosedError, match="closed with its model"):
            use()


@pytest.mark.parametrize("how", [{"vocab_only": True}])
def test_what_has_no_weights_is_refused(opened: Open, how: dict[str, Any]) -> None:
    """A vocabulary alone, and an object that is closed already; with what to return instead."""
    worker = Worker("test")
    closed = opened()
    closed.close()
    for llama in (opened(**how), closed, object()):
        with pytest.raises(ProviderError, match="has no model in it") as told:
            adopt(llama, worker, "x:m")
        assert "vocab_only" in str(told.value)
    on_engine(worker.close)


def test_an_object_that_fails_stays_its_owners(opened: Open) -> None:
    """If it cannot be adopted it is not closed: who made it may use it."""
    llama = opened()
    worker = Worker("test")
    with pytest.raises(ProviderError):
        adopt(type("Hollow", (), {"_model": None})(), worker)
    on_engine(worker.close)
    assert llama.create_completion("the", max_tokens=1)["choices"]
