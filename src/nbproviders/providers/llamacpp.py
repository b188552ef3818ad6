"""`llama-cpp`: GGUF models by llama.cpp, from a path, a folder, the Hub or Ollama's store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from nbproviders.authoring.options import Option, check
from nbproviders.authoring.weights import DEFAULT_CLASS, WeightsProvider
from nbproviders.catalog import ollama
from nbproviders.catalog.quants import choose, split_quant
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey, canonical
from nbproviders.errors import ConfigurationError, ModelAccessError
from nbproviders.residency import residency
from nbproviders.residency.entry import Progress
from nbproviders.runtimes import checkpoints, downloads, threads
from nbproviders.runtimes.gguf.header import Header, read_files
from nbproviders.runtimes.gguf.trial import ensure_loadable

_OLLAMA = "ollama://"
_ON_GPU = "Layers on the GPU; -1 is all, None is all where llama.cpp can."


class LlamaCppProvider(WeightsProvider):
    """Loads GGUF files, checked before native code reads them.

    A model is a ``.gguf`` file, a folder or Hub id that holds some (``org/name:Q4_K_M`` chooses one),
    ``ollama://name:tag``, or an alias.

    Parameters
    ----------
    **defaults
        Load options for every model of this provider; those of a single model win.

    Raises
    ------
    ConfigurationError
        For a default that is no option, or of a wrong type.
    """

    name = "llama-cpp"
    options: ClassVar[dict[str, Option]] = {
        "quant": Option((str,), None, "Which file of a folder or repository, such as Q4_K_M."),
        "revision": Option((str,), None, "Branch, tag or commit on the Hub."),
        "n_ctx": Option((int,), None, "Most tokens of prompt and answer; None: trained, to 4096."),
        "n_gpu_layers": Option((int,), None, _ON_GPU),
        "n_threads": Option((int,), None, "Cores to compute with; None is all that are ours."),
        "n_batch": Option((int,), 512, "Most tokens of one evaluation."),
        "flash_attn": Option((bool,), None, "Flash attention; None is where it pays."),
        "seed": Option((int,), None, "For sampling, where a request gives none.", loads=False),
        "chat_format": Option((str,), None, "One of llama.cpp's templates instead of the file's."),
        "type_k": Option((str,), "f16", "Type of cached keys: f32, f16, bf16, q8_0 …"),
        "type_v": Option((str,), "f16", "Type of cached values; quantised needs flash_attn."),
        "parallel": Option((int,), None, "Most requests at once; None chooses by size."),
    }

    def __init__(self, **defaults: Any) -> None:
        check(self.options, defaults, self.name)
        self._defaults = defaults

    def get_provider_name(self) -> str:
        """Return ``llama-cpp``."""
        return self.name

    # Keys and estimates

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Path, ...]]:
        chosen = {
            name: self._defaults.get(name, value) if value == self.options[name].default else value
            for name, value in values.items()
        }
        _require_sense(chosen)
        loads = {k: v for k, v in chosen.items() if self.options[k].loads and k != "quant"}
        origin = self._origin if type(self) is not LlamaCppProvider else self.name
        repo, quant, path = _place(model, chosen)
        if path is None:
            name = f"{repo}:{quant}" if quant else repo
            return ResourceKey(origin, name, canonical(loads), values=chosen), ()
        resolved = path.resolve()
        revision = _digest(resolved)
        key = ResourceKey(origin, str(resolved), canonical(loads), revision, chosen)
        return key, (resolved,)

    def estimate(self, key: ResourceKey) -> Mapping[str, int]:
        """Return bytes of weights and cache by the file's header; nothing for one not yet downloaded."""
        path = Path(key.model)
        if not path.is_file():
            return {}
        from nbproviders.runtimes.llamacpp import devices, loading

        devices.add_probes(residency.default().memory)
        return loading.expected_bytes(read_files(path), key.values)

    # Loading

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Check the file, then load it on the model's own thread."""
        from nbproviders.runtimes.llamacpp import loading

        files = self._files(key, progress)
        return loading.load(files, key.values, threads.claim(), progress)

    def _files(self, key: ResourceKey, progress: Progress) -> Sequence[Header]:
        path = Path(key.model)
        if not path.is_file():
            path = _downloaded(key, progress)
        progress.report(0, 0, "checking the file")
        files = read_files(path)
        ensure_loadable(files, progress.check)
        return files

    def load_model(
        self,
        model_id: str,
        model_class: str = DEFAULT_CLASS,
        quantization_config: Any = None,
        device_map: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """Return a ``llama_cpp.Llama`` of a checked file; `kwargs` are its own.

        For code that wants llama-cpp-python's object. It is not guarded: two threads in it, or a call after
        its ``close``, end the process. Registered and opened by ``model`` it is safe.
        """
        import llama_cpp

        from nbproviders.runtimes.llamacpp.native import library

        if quantization_config is not None:
            raise ConfigurationError(
                "A GGUF file is quantised already; quantization_config is for transformers.",
                hint="Choose another file instead: ?quant=Q8_0.",
            )
        library()  # its log goes to ours, and needs no real stdout
        files = self._files(self.resolve(model_id), Progress())
        given = {"n_ctx": 0, "verbose": True, **kwargs}
        return llama_cpp.Llama(model_path=str(files[0].path), **given)

    def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
        """Return a ``llama_cpp.Llama`` with the vocabulary alone: ``tokenize`` and ``detokenize``."""
        return self.load_model(model_id, vocab_only=True, n_ctx=512, **kwargs)

    def validate_model_access(self, model_id: str, model_class: str = DEFAULT_CLASS) -> bool:
        """Return True if a GGUF file is here or on the Hub.

        Raises
        ------
        ModelAccessError
            With the reason: missing, damaged, gated, offline, or no such quantization.
        """
        repo, quant, path = _place(model_id, {"quant": None, "revision": None})
        if path is not None:
            read_files(path)
        else:
            choose(list(downloads.remote_files(repo)), quant)
        return True


def _require_sense(values: Mapping[str, Any]) -> None:
    for name in ("n_ctx", "n_threads", "n_batch", "parallel"):
        if values[name] is not None and values[name] < 1:
            raise ConfigurationError(f"{name}={values[name]} must be at least 1.")
    if values["seed"] is not None and not 0 <= values["seed"] < 2**63:
        raise ConfigurationError(f"seed={values['seed']} must be 0 or more.")
    quantised = values["type_v"] not in ("f32", "f16", "bf16")
    if quantised and values["flash_attn"] is False:
        raise ConfigurationError(
            f"type_v={values['type_v']!r} needs flash attention, and flash_attn is false.",
            hint="Leave flash_attn out, or choose type_v=f16.",
        )


def _place(model: str, values: Mapping[str, Any]) -> tuple[str, str | None, Path | None]:
    """Return repository, quantization and file; the file is None while it is only on the Hub.

    Raises
    ------
    ModelAccessError
        If a path is not there, or holds no such file.
    """
    if model.startswith(_OLLAMA):
        return model, None, ollama.blob(model.removeprefix(_OLLAMA))
    path = Path(model).expanduser()
    name, quant = (model, None) if path.exists() else split_quant(model)
    quant = values["quant"] or quant
    path = Path(name).expanduser()
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*.gguf"))}
        return name, quant, files[choose(list(files), quant)]
    if path.is_file():
        return name, quant, path
    if checkpoints.is_local(name) or name.lower().endswith(".gguf"):
        raise ModelAccessError(
            f"There is no file or folder {str(path)!r}.",
            hint="Check the path, or give a Hub id such as 'org/name:Q4_K_M'. "
            "`nbproviders list` shows what is here.",
        )
    there = downloads.cached_files(name, values["revision"])
    try:
        return name, quant, there[choose(list(there), quant)]
    except ModelAccessError:  # not here: perhaps on the Hub
        return name, quant, None


def _downloaded(key: ResourceKey, progress: Progress) -> Path:
    progress.report(0, 0, "checking access")
    revision = key.values["revision"]
    name, quant = split_quant(key.model)
    remote = downloads.remote_files(name, revision)
    first = choose(list(remote), quant)
    wanted = {part: remote[part] for part in _parts(first, remote)}
    return downloads.fetch(name, wanted, revision, progress)[0]


def _parts(first: str, remote: Mapping[str, int]) -> list[str]:
    """Return all files of a split model whose first file this is."""
    before, mark, after = first.rpartition("-00001-of-")
    if not mark:
        return [first]
    count = int(after[:5])
    return [name for i in range(1, count + 1) if (name := f"{before}-{i:05d}-of-{after}") in remote]


def _digest(path: Path) -> str:
    """Return what tells this version of a file from another, without reading it whole."""
    import hashlib

    found = path.stat()
    text = f"{found.st_size}/{found.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
