"""Promises of the provider transformers-serve, against the server of transformers on a shipped model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbproviders as nbp
from nbproviders import cli, demo
from nbproviders.errors import InvalidRequestError, ModelAccessError
from nbproviders.providers.servers import Placed
from nbproviders.providers.transformers_serve import TransformersServeProvider, _trained
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.process import state
from nbproviders.runtimes.process.keeping import answers, kept
from tests.providers.serving import Kernel, end_kept, logs, own_state, pids, records
from tests.runtimes.process.servers import left, soon

if sys.platform != "linux":
    pytest.skip("what is left of processes is looked for in /proc", allow_module_level=True)
PROVIDERS = ("llama-server", "transformers-serve")


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test where a provider is not available, with its reason."""
    reasons = [nbp.list_available()[name].reason for name in names]
    return pytest.mark.skipif(any(reasons), reason="; ".join(filter(None, reasons)))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's servers are written down; nothing is left of them."""
    with own_state(tmp_path, monkeypatch) as path:
        yield path


@needs("transformers-serve")
async def test_as_without_a_server(folder: Path) -> None:
    """A model does behind the server what it does in this process; one start serves all of this test."""
    async with nbp.model("transformers-serve:demo-m") as there:
        async with nbp.model("transformers:demo-m") as here:
            for prompt in ("12+30=", "reverse otter:", "capital of Peru?"):
                expected = await here.generate(prompt, temperature=0, max_tokens=20)
                assert await there.generate(prompt, temperature=0, max_tokens=20) == expected
                assert await there.generate(prompt, max_tokens=20) == expected
                stream = there.stream(prompt, temperature=0)
                assert "".join([chunk async for chunk in stream]) == expected
                assert stream.completion.usage.prompt_tokens == expected.usage.prompt_tokens
                plain = await here.generate(prompt, temperature=0, max_tokens=20, raw=True)
                got = await there.generate(prompt, temperature=0, max_tokens=20, raw=True)
                assert (got, got.chat) == (plain, False)
            assert there.info.context_tokens == here.info.context_tokens == 256
        got = await there.generate("reverse otter:", max_tokens=3)
        assert (got, got.finish) == ("ret", "length")

        for stop, text in (("t", "re"), ("tt", "re"), (["x", "to"], "ret"), ("retto", "")):
            assert await there.generate("reverse otter:", stop=stop) == text
            stream = there.stream("reverse otter:", stop=stop)
            assert "".join([chunk async for chunk in stream]) == text

        # Of a text that it was never trained on it is not sure, so that samples differ.
        sampled = {"raw": True, "temperature": 2, "max_tokens": 12}
        texts = [await there.generate("a b c", seed=n, **sampled) for n in range(4)]
        assert len(set(texts)) > 1
        assert [await there.generate("a b c", seed=n, **sampled) for n in range(4)] == texts

        for raw in (False, True):
            with pytest.raises(InvalidRequestError, match=r"has 2\d\d tokens.*of 256"):
                await there.generate("a" * 258, raw=raw, max_tokens=1)
            with pytest.raises(InvalidRequestError, match=r"tokens.*of 256"):
                await anext(there.stream("a" * 258, raw=raw))

        key = str.__str__(there.raw.config.api_key)
        root = there.raw.config.base_url.removesuffix("/v1")
        assert await answers(root, key)
        assert not await answers(root, "")
        logged = logs(folder)
        assert b"Uvicorn running" in logged
        assert key.encode() not in logged


@needs(*PROVIDERS)
async def test_a_killed_kernel_leaves_none(folder: Path) -> None:
    """When a kernel is killed while both kinds of server run, none of their processes and files is left."""
    kernel = Kernel(*(f"{name}:demo-m" for name in PROVIDERS))
    started = [kernel.told[name]["pid"] for name in PROVIDERS]
    assert all(map(state.process_started, started))
    kernel.kill()
    assert soon(lambda: not any(map(state.process_started, started))) < 3
    soon(lambda: not left(folder))


@needs(*PROVIDERS)
async def test_a_restarted_kernel_adopts_both(capsys: pytest.CaptureFixture[str]) -> None:
    """With `keep` both outlive a killed kernel; the next one has its first token without loading."""
    references = [f"{name}:demo-m?keep=true" for name in PROVIDERS]
    first = Kernel(*references)
    first.kill()
    soon(lambda: [one.owners for one in kept()] == [0, 0])
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    second = Kernel(*references)
    try:
        for name in PROVIDERS:
            cold, found = first.told[name], second.told[name]
            print(f"{name}: {cold['first_s']:.2f} s cold, {found['first_s']:.2f} s adopted")
            assert found["pid"] == cold["pid"]
            assert f"process {cold['pid']}  no owner" in listed
        assert pids() == {name: first.told[name]["pid"] for name in PROVIDERS}
    finally:
        second.kill()
        await end_kept()


def test_the_command_line() -> None:
    """Options are the server's own flags; the port is the one behind the door."""
    made = TransformersServeProvider(
        device="cpu",
        dtype="float32",
        quantization="bnb-8bit",
        attn_implementation="eager",
        continuous_batching=True,
        trust_remote_code=True,
    )
    told = made._command(Placed("org/model"), made.resolve("org/model").values, 8123, "the-key")
    assert told.argv[1:] == [
        *("-m", "transformers.cli.transformers", "serve", "org/model"),
        *("--host", "127.0.0.1", "--port", "8123", "--device", "cpu", "--dtype", "float32"),
        *("--quantization", "bnb-8bit", "--attn-implementation", "eager"),
        *("--continuous-batching", "--trust-remote-code"),
    ]
    assert told.gate
    assert "the-key" not in f"{told.argv} {told.env}"


def test_the_context_is_the_checkpoints(tmp_path: Path) -> None:
    """It is read from the configuration, a part's for models of several parts; else it is unknown."""
    assert _trained(str(demo.path("demo-m"))) == 256
    for text, most in (
        ('{"n_positions": 12}', 12),
        ('{"text_config": {"max_position_embeddings": 9}, "max_position_embeddings": 5}', 9),
        ("{}", None),
        ("{", None),
    ):
        (tmp_path / "config.json").write_text(text)
        assert _trained(str(tmp_path)) == most
    assert _trained("org/never-downloaded") is None


@needs("transformers-serve")
@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("org/never-downloaded", "'org/never-downloaded' is not in the local cache"),
        ("org/never-downloaded@v2", "'org/never-downloaded' is not in the local cache"),
        ("nosuch-model-x", "'nosuch-model-x' is not in the local cache"),
        ("/no/such/folder", "There is no folder '/no/such/folder'"),
    ],
)
async def test_a_model_that_is_not_there(model: str, told: str, folder: Path) -> None:
    """It is told in the words of the provider transformers, before anything is started."""
    began_s = time.monotonic()
    with pytest.raises(ModelAccessError) as caught:
        await nbp.load(f"transformers-serve:{model}")
    assert told in str(caught.value)
    assert time.monotonic() - began_s < 10  # the bound of the access check
    assert records() == []
    assert logs(folder) == b""


def test_what_is_left_to_the_server() -> None:
    """A file of a repository may be here without the rest; a command of one's own may run elsewhere."""
    made = TransformersServeProvider()
    for one, options in (("org/x-GGUF:sub/a.gguf", {}), ("org/x", {"command": ["docker", "run"]})):
        key = made.resolve(one, **options)
        assert made._placed(key, Progress()) == Placed(one)
