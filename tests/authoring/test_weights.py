"""Promises of `WeightsProvider`: four methods, written in a class of ours or in any object."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders.authoring.weights import WeightsProvider, WrappedWeights, alone
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    InsufficientMemoryError,
    ModelAccessError,
    ProviderError,
)
from nbproviders.residency.progress import Progress


class Answering:
    """What a weights author might load: an object with generate."""

    def __init__(self, name: str) -> None:
        self.name = name

    def generate(self, prompt: str) -> str:
        return f"{self.name}: {prompt}"


class Author:
    """Has the four methods and no base class."""

    colour = "blue"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failure: BaseException | None = None
        self.refusal: BaseException | bool = True

    def load_model(self, model_id, model_class, quantization_config=None, device_map="auto", **kw):  # type: ignore[no-untyped-def]
        self.calls.append(("model", model_id, model_class, quantization_config, device_map, kw))
        if self.failure is not None:
            raise self.failure
        return Answering(model_id)

    def load_tokenizer(self, model_id, **kw):  # type: ignore[no-untyped-def]
        self.calls.append(("tokenizer", model_id, kw))

    def validate_model_access(self, model_id, model_class):  # type: ignore[no-untyped-def]
        self.calls.append(("access", model_id, model_class))
        if isinstance(self.refusal, BaseException):
            raise self.refusal
        return self.refusal

    def get_provider_name(self) -> str:
        return "Author"


class Subclass(WeightsProvider):
    """The same, as a class of ours."""

    options = None

    def __init__(self, author: Author) -> None:
        self.author = author

    def load_model(self, model_id, model_class, quantization_config=None, device_map="auto", **kw):  # type: ignore[no-untyped-def]
        return self.author.load_model(model_id, model_class, quantization_config, device_map, **kw)

    def load_tokenizer(self, model_id, **kw):  # type: ignore[no-untyped-def]
        return self.author.load_tokenizer(model_id, **kw)

    def validate_model_access(self, model_id, model_class):  # type: ignore[no-untyped-def]
        return self.author.validate_model_access(model_id, model_class)

    def get_provider_name(self) -> str:
        return "subclass"


@pytest.fixture
def author() -> Author:
    return Author()


@pytest.fixture(params=[WrappedWeights, Subclass])
def provider(request: pytest.FixtureRequest, author: Author) -> WeightsProvider:
    return request.param(author)  # type: ignore[no-any-return]


async def test_the_methods_are_called_once_for_a_key(
    provider: WeightsProvider, author: Author
) -> None:
    """Model and tokenizer are loaded once, with the options by their names, and not asked for access."""
    async with provider.model("org/m", bits=4) as m, provider.model("org/m", bits=4) as n:
        assert await m.generate("hi") == await n.generate("hi") == "org/m: hi"
        assert isinstance(m.raw, Answering)
    assert author.calls == [
        ("model", "org/m", "AutoModelForCausalLM", None, "auto", {"bits": 4}),
        ("tokenizer", "org/m", {}),
    ]


async def test_named_options_reach_their_parameters(
    provider: WeightsProvider, author: Author
) -> None:
    """Class, quantization and device map are passed as what they are."""
    options = {"model_class": "X", "quantization_config": {"bits": 4}, "device_map": "cpu"}
    async with provider.model("org/m", **options):
        pass
    assert author.calls[0] == ("model", "org/m", "X", {"bits": 4}, "cpu", {})


async def test_a_refused_access_is_the_hint_of_a_failed_load(
    provider: WeightsProvider, author: Author
) -> None:
    """The cause is what failed; what to do is what the access check says."""
    author.failure = OSError("404")
    author.refusal = ModelAccessError("org/m is gated", hint="Accept its licence.")
    with pytest.raises(ProviderError) as caught:
        await provider.setup("org/m")
    assert "Failed to setup resource" in caught.value.message
    assert "OSError: 404" in caught.value.message
    assert caught.value.hint == "org/m is gated\nAccept its licence."
    assert str(caught.value.__cause__) == "OSError: 404"


async def test_a_false_access_check_is_a_hint_as_well(
    provider: WeightsProvider, author: Author
) -> None:
    """A check that only says no, or fails itself, is told in words."""
    author.failure, author.refusal = OSError("404"), False
    with pytest.raises(ProviderError, match="has no access to 'org/m'"):
        await provider.setup("org/m")
    author.refusal = ValueError("token=abcdef123456 bad")
    with pytest.raises(ProviderError, match=r"ValueError: token=\*\*\*\* bad"):
        await provider.setup("org/m")


async def test_an_existing_path_is_not_asked_for_access(
    provider: WeightsProvider, author: Author, tmp_path: Path
) -> None:
    """The check is for Hub ids; a folder is there or not."""
    author.failure = OSError("no weights")
    with pytest.raises(ProviderError, match="no weights"):
        await provider.setup(str(tmp_path))
    assert "access" not in {call[0] for call in author.calls}


async def test_an_authors_own_error_keeps_class_and_hint(
    provider: WeightsProvider, author: Author
) -> None:
    """An error of ours that already says what to do is not overwritten."""
    author.failure = ConfigurationError("bits=3 is none of 4 and 8", hint="Say 4.")
    with pytest.raises(ConfigurationError, match="bits=3.*\nSay 4"):
        await provider.setup("org/m", bits=3)
    assert "access" not in {call[0] for call in author.calls}


async def test_exhausted_memory_is_told_as_such(provider: WeightsProvider, author: Author) -> None:
    """A MemoryError is about memory, not about access."""
    author.failure = MemoryError("too big")
    with pytest.raises(InsufficientMemoryError, match="Failed to setup"):
        await provider.setup("org/m")


async def test_nothing_is_kept_of_a_failure(provider: WeightsProvider, author: Author) -> None:
    """After a failed load the next one begins anew; each waiter has an error of its own."""
    author.failure = OSError("offline")
    errors = await asyncio.gather(
        *(provider.setup("org/m") for _ in range(3)), return_exceptions=True
    )
    assert len({id(error) for error in errors}) == 3
    assert nbp.residents() == []
    author.failure = None
    assert await (await provider.setup("org/m")).model.generate("x") == "org/m: x"


async def test_two_load_one_after_the_other(author: Author) -> None:
    """While one loads no other does, of whatever provider; what waits says so, and can be stopped."""
    begun, go_on = threading.Event(), threading.Event()
    load = author.load_model

    def slow(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        return load(*arguments, **named)

    author.load_model = slow  # type: ignore[method-assign]
    first = asyncio.ensure_future(WrappedWeights(author).model("a").open())
    await asyncio.to_thread(begun.wait, 10)
    begun.clear()
    progress = Progress()
    waiting = asyncio.create_task(asyncio.to_thread(entered, progress))
    async with asyncio.timeout(10):
        while progress.phase != "waiting for another load":
            await asyncio.sleep(0.01)
    stopped = Progress()
    stopped.cancel()
    with pytest.raises(ClosedError):
        await asyncio.to_thread(entered, stopped)
    assert not waiting.done()
    go_on.set()
    (await first).close()
    await waiting
    assert progress.phase == "starting"


async def test_what_loads_without_transformers_loads_at_once(author: Author) -> None:
    """An author who says so is not held up by other loads, nor holds them up."""
    author.uses_transformers = False  # type: ignore[attr-defined]
    with alone():
        async with asyncio.timeout(10):
            client = await WrappedWeights(author).model("free").open()
    client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
def test_a_forked_child_loads_while_the_parent_did() -> None:
    """A load that the parent was at when it forked holds no load of the child up."""
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with alone():
            begun.set()
            go_on.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert begun.wait(10)
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        with alone():
            os._exit(0)
    go_on.set()
    holder.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def entered(progress: Progress) -> None:
    with alone(progress):
        pass


def test_wrapping_an_object_keeps_it_in_reach(author: Author) -> None:
    """`.wrapped` is the object, and what is not the provider's is the object's."""
    provider = WrappedWeights(author)
    assert provider.wrapped is author
    assert provider.colour == "blue"
    assert provider.name == "author"
    assert provider.get_provider_name() == "Author"
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = provider.no_such_thing


def test_an_object_that_lacks_a_method_is_refused() -> None:
    """What is missing is told by name."""

    class Half:
        load_model = load_tokenizer = print

    with pytest.raises(ConfigurationError, match="lacks validate_model_access, get_provider_name"):
        WrappedWeights(Half())


def test_a_subclass_writes_all_four() -> None:
    """An incomplete subclass cannot be made."""

    class Half(WeightsProvider):
        def load_model(
            self, model_id, model_class, quantization_config=None, device_map="auto", **kwargs
        ):  # type: ignore[no-untyped-def]
            ...

    with pytest.raises(TypeError, match="get_provider_name"):
        Half()  # type: ignore[abstract]


# torch's compiler imports a part of torch that warns of itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
async def test_what_torch_compile_made_of_a_model() -> None:
    """A compiled transformers model answers as the module inside, and says that compiling was idle."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = str(nbp.demo.path("demo-m"))

    class Compiling(Author):
        def load_model(self, model_id, model_class, **kw):  # type: ignore[no-untyped-def]
            kw.pop("quantization_config")
            return torch.compile(getattr(transformers, model_class).from_pretrained(model_id, **kw))

        def load_tokenizer(self, model_id, **kw):  # type: ignore[no-untyped-def]
            return transformers.AutoTokenizer.from_pretrained(model_id)

    async with WrappedWeights(Compiling()).model(path, device_map="cpu") as m:
        assert await m.generate("12+30=") == "42"
        assert isinstance(m.raw, transformers.PreTrainedModel)
        [note] = m.info.notes
        assert "model.forward = torch.compile(model.forward)" in note
