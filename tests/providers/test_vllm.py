"""Promises of the provider vllm: its command line, and that a GPU has one of its servers at a time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import session
from nbproviders.errors import ServiceUnavailableError
from nbproviders.providers.servers import Placed
from nbproviders.providers.vllm import VLLMProvider
from tests.providers.serving import command, own_state, records, starts
from tests.runtimes.process.servers import BOUND_S

if sys.platform != "linux":
    pytest.skip("what is left of processes is looked for in /proc", allow_module_level=True)

# Flags and variables read in the source of vLLM 0.33.0 (`vllm/entrypoints/common/cli_args.py`,
# `vllm/engine/arg_utils.py`, `vllm/envs.py`): what this provider may use, and no other.
CHECKED_VERSION = "0.33.0"
CHECKED_FLAGS = {
    "--host",
    "--port",
    "--gpu-memory-utilization",
    "--max-model-len",
    "--dtype",
    "--quantization",
    "--revision",
    "--tensor-parallel-size",
}
CHECKED_VARIABLES = {"VLLM_API_KEY", "CUDA_VISIBLE_DEVICES"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's servers are written down; nothing is left of them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with own_state(tmp_path, monkeypatch) as path:
        yield path


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Where a stand-in tells that it was started."""
    return tmp_path / "starts"


def provider(*arguments: object, **options: Any) -> Any:
    return nbp.create_provider("vllm", command=command(*arguments), **options)


def whats() -> list[str]:
    return [record.what for record in records()]


def line(**options: Any) -> tuple[list[str], dict[str, str | None]]:
    """Return the command line and the environment that options make."""
    made = VLLMProvider(**options)
    values = made.resolve("org/model").values
    told = made._command(Placed("org/model"), values, 8123, "the-key")
    return list(told.argv), dict(told.env)


def test_the_command_line() -> None:
    """Every option is one of the flags that vLLM has; the key is in the environment alone."""
    argv, environment = line(
        gpu=1,
        gpu_memory=0.9,
        max_model_len=2048,
        dtype="bfloat16",
        quantization="awq",
        revision="main",
        args=["--seed", 7],
    )
    assert argv == [
        sys.executable,
        *("-m", "vllm.entrypoints.cli.main", "serve", "org/model"),
        *("--host", "127.0.0.1", "--port", "8123"),
        *("--gpu-memory-utilization", "0.9", "--max-model-len", "2048", "--dtype", "bfloat16"),
        *("--quantization", "awq", "--revision", "main", "--seed", "7"),
    ]
    flags = {one for one in argv[4:-2] if one.startswith("--")}
    spread, alone = line(tensor_parallel_size=2)
    flags |= {one for one in spread[4:] if one.startswith("--")}
    assert flags == CHECKED_FLAGS
    assert environment == {"VLLM_API_KEY": "the-key", "CUDA_VISIBLE_DEVICES": "1"}
    assert environment.keys() <= CHECKED_VARIABLES
    assert alone == {"VLLM_API_KEY": "the-key"}  # a server on several GPUs chooses by itself
    assert "the-key" not in " ".join(argv)


def test_defaults_are_vllms_own() -> None:
    """What nobody asked for is left to vLLM."""
    argv, _ = line()
    assert argv[4:] == ["org/model", "--host", "127.0.0.1", "--port", "8123"]


def test_another_interpreter_or_command() -> None:
    """`python=` runs the module there; `command=` is taken as it is."""
    assert line(python="/opt/vllm/bin/python")[0][:2] == ["/opt/vllm/bin/python", "-m"]
    assert line(command=["vllm", "serve"])[0][:3] == ["vllm", "serve", "org/model"]


def test_gpus_are_counted_as_this_process_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job that was given some of a machine's GPUs, the first is the first of these."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5a")
    for gpu, device in ((0, "3"), (1, "GPU-5a"), (2, "2")):
        assert line(gpu=gpu)[1]["CUDA_VISIBLE_DEVICES"] == device
        assert VLLMProvider()._exclusive({"gpu": gpu, "policy": "queue"})[0] == f"cuda:{device}"


def test_it_is_listed_with_its_reason() -> None:
    """Without vllm or a GPU it is listed as unavailable, and can be made all the same."""
    info = nbp.list_available()["vllm"]
    if info.available:
        pytest.skip("vllm is installed")
    assert "not installed" in info.reason
    assert isinstance(nbp.create_provider("vllm"), VLLMProvider)


async def test_as_it_is_written_in_tutorials(note: Path) -> None:
    """``VLLMProvider(base_port=…, gpu_memory=…)`` sets up by hand and tears down again."""
    made = VLLMProvider(base_port=8000, gpu_memory=0.9, command=command("--note", note))
    handle = await made.setup("some-model")
    assert handle.is_active
    assert await handle.model.generate("one two") == "one two"
    (start,) = starts(note)
    assert start["port"] >= 8000
    assert start["argv"][-2:] == ["--gpu-memory-utilization", "0.9"]
    await handle.teardown()
    await made.teardown_all()
    assert records() == []


async def test_the_context_is_the_servers() -> None:
    """How long a prompt may be is what the server says of its model."""
    async with provider("--context", 77).model("some-model") as m:
        assert m.info.context_tokens == 77


async def test_queueing(note: Path) -> None:
    """Another model waits for the GPU until the first is unloaded."""
    made = provider("--note", note)
    async with made.model("first") as m:
        opening = asyncio.ensure_future(made.model("second").open())
        while len(records()) < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.6)
        assert not opening.done()
        assert (await m.generate("still here"), whats()) == ("still here", ["vllm:first"])
    session.unload("vllm:first", timeout_s=BOUND_S)
    second = await opening
    assert await second.generate("now") == "now"
    assert whats() == ["vllm:second"]
    second.close()


async def test_refusing() -> None:
    """With `refuse` it fails at once, and names who has the GPU."""
    made = provider()
    async with made.model("first"):
        with pytest.raises(ServiceUnavailableError, match=r"vllm:first \(process \d+\) has it"):
            await made.model("second", policy="refuse").open()
        async with made.model("second", gpu=1, policy="refuse") as other:  # another GPU is free
            assert await other.generate("a") == "a"


async def test_evicting(note: Path) -> None:
    """With `evict` one that is idle is ended; its next call starts it again when the GPU is free."""
    made = provider("--note", note, policy="evict")
    async with made.model("first") as first:
        assert await first.generate("a") == "a"
        await asyncio.sleep(1.1)  # a server that is just ready is left to whoever asked for it
        async with made.model("second") as second:
            assert await second.generate("b") == "b"
            assert whats() == ["vllm:second"]
            await asyncio.sleep(1.1)
            assert await first.generate("again") == "again"
            assert whats() == ["vllm:first"]
    assert len(starts(note)) == 3


async def test_evicting_waits_for_who_is_asked() -> None:
    """One that is answering is not ended under its answer."""
    made = provider(policy="evict")
    async with made.model("first") as first:
        await asyncio.sleep(1.1)
        words = "slow " * 40  # two seconds
        stream = first.stream(words)
        assert await anext(stream) == "slow"
        opening = asyncio.ensure_future(made.model("second").open())
        assert len([chunk async for chunk in stream]) == 39
        second = await opening
        assert await second.generate("b") == "b"
        second.close()
