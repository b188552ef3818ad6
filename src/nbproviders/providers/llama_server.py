"""`llama-server`: llama-cpp-python's server for a GGUF file, started here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import ConfigurationError
from nbproviders.providers.llamacpp import LlamaCppProvider
from nbproviders.providers.servers import Placed, ServerProvider
from nbproviders.providers.speakers import LlamaSpeaker
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.gguf.memory import footprint

_FILE = ("quant", "revision")
_FLAGS = ("n_gpu_layers", "n_threads", "n_batch", "chat_format")
_STEP = 256
_MOST_TOKENS = 4096  # of a context that nobody asked for: it takes memory


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
    requirement = ("llama-cpp-python[server]", "llama-server")
    speaker = LlamaSpeaker
    options: ClassVar[dict[str, Option]] = {
        **ServerProvider.options,
        "quant": Option((str,), None, "Which file of several: Q4_K_M, Q8_0 …", loads=False),
        "revision": Option((str,), None, "Branch, tag or commit on the Hub."),
        "n_ctx": Option((int,), None, "Most tokens; None: as trained, at most 4096."),
        "n_gpu_layers": Option((int,), -1, "Layers on the GPU; 0 is none, -1 is all."),
        "n_threads": Option((int,), None, "Cores to compute with."),
        "n_batch": Option((int,), None, "Most tokens computed at once."),
        "chat_format": Option((str,), None, "One of llama-cpp-python's; None: the file's own."),
    }

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Any, ...]]:
        key, watched = super()._key(model, values)
        for name in ("n_ctx", "n_threads", "n_batch"):
            if values[name] is not None and values[name] < 1:
                raise ConfigurationError(f"{name}={values[name]} must be at least 1.")
        asked = values["n_ctx"] or 0
        if asked % _STEP:
            raise ConfigurationError(
                f"n_ctx={asked} must be a multiple of {_STEP}: llama.cpp rounds it up, and its server then "
                "fails at prompts in between.",
                hint=f"Choose n_ctx={asked + _STEP - asked % _STEP}.",
            )
        if values["base_url"]:
            return key, watched
        file = self._file(model, values)
        return ResourceKey(key.origin, file.model, key.options, file.revision, key.values), watched

    def _file(self, model: str, values: Mapping[str, Any]) -> ResourceKey:
        """Return the key that the file has for `LlamaCppProvider`."""
        given = {name: values[name] for name in _FILE if values[name] is not None}
        return LlamaCppProvider().resolve(model, **given)

    def _placed(self, key: ResourceKey, progress: Progress) -> Placed:
        """Return the path of the file, checked, and downloaded if it is not here."""
        files = LlamaCppProvider().files(self._file(key.model, key.values), progress)
        trained = min(footprint(files).context_tokens or _MOST_TOKENS, _MOST_TOKENS)
        whole = max(trained - trained % _STEP, _STEP)
        return Placed(str(files[0].path), key.values["n_ctx"] or whole)

    def _arguments(self, placed: Placed, values: Mapping[str, Any], port: int) -> Sequence[str]:
        told = ["--model", placed.model, "--host", "127.0.0.1", "--port", str(port)]
        told += ["--n_ctx", str(placed.context_tokens)]
        told += ["--interrupt_requests", "false"]  # one request shall not end another
        told += ["--logits_all", "false"]  # probabilities of the whole prompt, which nobody reads
        for name in _FLAGS:
            if values[name] is not None:
                told += [f"--{name}", str(values[name])]
        return told

    def _environment(
        self, values: Mapping[str, Any], key: str, port: int
    ) -> Mapping[str, str | None]:
        # The key not in the arguments, which other users can read. The other three would win over the
        # arguments, and are set for other programs.
        return {"API_KEY": key, "HOST": "127.0.0.1", "PORT": str(port), "CONFIG_FILE": None}
