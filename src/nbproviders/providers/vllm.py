"""`vllm`: vLLM's server, started here, one for each model; needs a CUDA GPU, or a command of yours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import ConfigurationError
from nbproviders.providers.servers import Placed, ServerProvider
from nbproviders.providers.speakers import Speaker

_POLICIES = ("queue", "refuse", "evict")
# Options and the server's flags for them (https://docs.vllm.ai/en/stable/configuration/serve_args/).
_FLAGS = {
    "gpu_memory": "--gpu-memory-utilization",
    "max_model_len": "--max-model-len",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "revision": "--revision",
    "tensor_parallel_size": "--tensor-parallel-size",
}


class VLLMProvider(ServerProvider):
    """Starts ``vllm serve``.

    A GPU holds one of these servers at a time, on all of this machine: who asks for another model waits,
    is refused, or ends one that is idle, as the option ``policy`` says.

    Parameters
    ----------
    **defaults
        Options for every model of this provider, such as ``base_port=8000, gpu_memory=0.9``.
    """

    name = "vllm"
    program = ("-m", "vllm.entrypoints.cli.main", "serve")
    packages = ("vllm",)
    requirement = ("vllm", "vllm")
    can = frozenset({"chat", "logprobs", "proxy"})
    parallel = 64  # it batches what comes
    options: ClassVar[dict[str, Option]] = {
        **ServerProvider.options,
        "start_timeout_s": Option(
            (float,),
            900.0,
            "Seconds until it has to be ready; it downloads and compiles.",
            loads=False,
        ),
        "gpu": Option((int,), 0, "Number of the GPU."),
        "policy": Option(
            (str,), "queue", f"If another holds the GPU: {', '.join(_POLICIES)}.", loads=False
        ),
        "gpu_memory": Option((float,), None, "Share of the GPU's memory, above 0, at most 1."),
        "max_model_len": Option((int,), None, "Most tokens of prompt and completion together."),
        "dtype": Option((str,), None, "auto, float16, bfloat16, float32 …"),
        "quantization": Option((str,), None, "awq, gptq, fp8 …"),
        "revision": Option((str,), None, "Branch, tag or commit on the Hub."),
        "tensor_parallel_size": Option((int,), None, "Over how many GPUs it is spread."),
    }

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Any, ...]]:
        key, watched = super()._key(model, values)
        share, policy = key.values["gpu_memory"], key.values["policy"]
        if share is not None and not 0 < share <= 1:
            raise ConfigurationError(
                f"gpu_memory={share} must be above 0 and at most 1.", hint="0.9 is nine tenths."
            )
        if key.values["gpu"] < 0:
            raise ConfigurationError(f"gpu={key.values['gpu']} must be 0 or more.")
        if policy not in _POLICIES:
            raise ConfigurationError(f"policy={policy!r} is not one of {', '.join(_POLICIES)}.")
        return key, watched

    def _arguments(self, placed: Placed, values: Mapping[str, Any], port: int) -> Sequence[str]:
        told = [placed.model, "--host", "127.0.0.1", "--port", str(port)]
        for name, flag in _FLAGS.items():
            if values[name] is not None:
                told += [flag, str(values[name])]
        return told

    def _environment(self, values: Mapping[str, Any], key: str, port: int) -> Mapping[str, str]:
        told = {"VLLM_API_KEY": key}  # not in the arguments, which other users can read
        if values["tensor_parallel_size"] in (None, 1):
            told["CUDA_VISIBLE_DEVICES"] = _device(values["gpu"])
        return told

    def _exclusive(self, values: Mapping[str, Any]) -> tuple[str, Any]:
        return f"cuda:{_device(values['gpu'])}", values["policy"]

    async def _context(self, placed: Placed, speaker: Speaker) -> int | None:
        """Return what the server says of its model."""
        told = await speaker.wire.json("GET", "models")
        rows = told.get("data") if isinstance(told, dict) else None
        most = rows[0].get("max_model_len") if isinstance(rows, list) and rows else None
        return most if isinstance(most, int) else None


def _device(number: int) -> str:
    """Return the name of the GPU that counts as this one here: a job may be given a few of a machine's."""
    visible = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[number] if number < len(visible) and visible[number] else str(number)
