"""`llama-server`: llama-cpp-python's server for a GGUF file, started here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.core.spec import ResourceKey
from nbproviders.providers.llamacpp import LlamaCppProvider
from nbproviders.providers.servers import ServerProvider
from nbproviders.residency.entry import Progress

_FILE = ("quant", "revision")
_FLAGS = ("n_ctx", "n_gpu_layers", "n_threads", "n_batch", "chat_format")


class LlamaServerProvider(ServerProvider):
    """Starts ``python -m llama_cpp.server``. It names models as `LlamaCppProvider` does.

    Parameters
    ----------
    **defaults
        Options for every model of this provider.
    """

    name = "llama-server"
    program = ("-m", "llama_cpp.server")
    packages = ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context")
    extra = "llama-server"
    options: ClassVar[dict[str, Option]] = {
        **ServerProvider.options,
        "quant": Option((str,), None, "Which file of a folder or repository: Q4_K_M, Q8_0 …"),
        "revision": Option((str,), None, "Branch, tag or commit on the Hub."),
        "n_ctx": Option((int,), 4096, "Most tokens of prompt and completion together."),
        "n_gpu_layers": Option((int,), None, "Layers on the GPU; 0 is none, -1 is all."),
        "n_threads": Option((int,), None, "Cores to compute with."),
        "n_batch": Option((int,), None, "Most tokens computed at once."),
        "chat_format": Option((str,), None, "One of llama-cpp-python's; None: the file's own."),
    }

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Any, ...]]:
        key, watched = super()._key(model, values)
        if values["base_url"]:
            return key, watched
        file = self._file(model, values)
        return ResourceKey(key.origin, file.model, key.options, file.revision, key.values), watched

    def _file(self, model: str, values: Mapping[str, Any]) -> ResourceKey:
        """Return the key that the file has for `LlamaCppProvider`."""
        given = {name: values[name] for name in _FILE if values[name] is not None}
        return LlamaCppProvider().resolve(model, **given)

    def _placed(self, key: ResourceKey, progress: Progress) -> str:
        """Return the path of the file, checked, and downloaded if it is not here."""
        file = self._file(key.model, key.values)
        return str(LlamaCppProvider().files(file, progress)[0].path)

    def _arguments(self, model: str, values: Mapping[str, Any], port: int) -> Sequence[str]:
        told = ["--model", model, "--host", "127.0.0.1", "--port", str(port)]
        told += ["--interrupt_requests", "false"]  # one request shall not end another
        for name in _FLAGS:
            if values[name] is not None:
                told += [f"--{name}", str(values[name])]
        return told

    def _environment(self, values: Mapping[str, Any], key: str) -> Mapping[str, str]:
        # The key not in the arguments, which other users can read. HOST would win over the argument, and
        # compilers' environments set it.
        return {"API_KEY": key, "HOST": "127.0.0.1"}
