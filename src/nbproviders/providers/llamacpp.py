"""`llama-cpp`: GGUF models by llama.cpp, from a path, a folder, the Hub or Ollama's store."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from nbproviders import demo
from nbproviders.authoring.options import Option, filled, with_defaults
from nbproviders.authoring.weights import DEFAULT_CLASS, WeightsProvider
from nbproviders.catalog import aliases, ollama
from nbproviders.catalog.quants import choose, is_model, quant_of, split_quant
from nbproviders.core.model import Model
from nbproviders.core.params import GenerationParams
from nbproviders.core.spec import ResourceKey, canonical
from nbproviders.errors import ConfigurationError, ModelAccessError
from nbproviders.residency import residency
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import checkpoints, downloads, threads
from nbproviders.runtimes.gguf.header import Header, read_files
from nbproviders.runtimes.gguf.trial import ensure_loadable
from nbproviders.runtimes.readahead import read_ahead

_OLLAMA = "ollama://"
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.gguf)", re.IGNORECASE)
_MOST_PARALLEL = 256  # llama.h: LLAMA_MAX_SEQ
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

    # What this process downloaded: the file, and the name that its key had before there was a file.
    _fetched: ClassVar[dict[tuple[Path, str], str]] = {}

    def __init__(self, **defaults: Any) -> None:
        self.options = with_defaults(type(self).options, defaults, self.name)  # type: ignore[misc]
        self._settled({name: option.default for name, option in self.options.items()})
        if type(self) is LlamaCppProvider:
            # Defaults are part of the options: providers that load the same weights share them.
            self.__dict__["_origin"] = self.name

    def get_provider_name(self) -> str:
        """Return ``llama-cpp``."""
        return self.name

    # Keys and estimates

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Path, ...]]:
        chosen = self._settled(values)
        loads = {k: v for k, v in chosen.items() if self.options[k].loads and k != "quant"}
        repo, quant, path = _place(model, chosen)
        if path is None:
            name = f"{repo}:{quant}" if quant else repo
            return ResourceKey(self._origin, name, canonical(loads), values=chosen), ()
        parts = _parts_beside(path)
        revision = _digest(parts)
        known = self._fetched.get((path, revision))
        if known is not None:  # it was opened by this name, and downloaded: it stays one model
            return ResourceKey(self._origin, known, canonical(loads), values=chosen), parts
        return ResourceKey(self._origin, str(path), canonical(loads), revision, chosen), parts

    def _settled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return options as they are loaded, each checked by itself."""
        chosen = filled(type(self).options, values)
        _require_sense(chosen)
        return chosen

    def _params(self, values: Mapping[str, Any]) -> GenerationParams | None:
        return None if values["seed"] is None else GenerationParams(seed=values["seed"])

    def estimate(self, key: ResourceKey) -> Mapping[str, int]:
        """Return an `Estimate` by the file's header; an empty one if it is not yet downloaded."""
        path = _place(key.model, key.values)[2]
        if path is None:
            return Estimate()
        from nbproviders.runtimes.llamacpp import devices, loading

        devices.add_probes(residency.default().memory)
        files = read_files(path)
        total, plan = loading.expected_bytes(files, key.values), loading.planned(files, key.values)
        share = {device: count / sum(total.values()) for device, count in total.items()}

        def split(count: int) -> dict[str, int]:
            return {device: round(count * part) for device, part in share.items()}

        return Estimate(
            split(plan.weights_bytes),
            split(plan.cache_bytes),
            split(plan.workspace_bytes),
            context_tokens=plan.limits.n_ctx,
            notes=loading.cache_notes(plan),
            architecture=files[0].architecture,
            held=True,  # llama.cpp takes a context's memory when it is made
        )

    # Loading

    def fetch_files(self, key: ResourceKey, progress: Progress) -> None:
        """Bring the file of a Hub id into the local cache, unless it is there."""
        self._file(key, progress)

    def _file(self, key: ResourceKey, progress: Progress) -> Path:
        path = _place(key.model, key.values)[2]
        if path is None:
            _require_chat_format(key.values)  # before anything is downloaded for it
            path = _one_name(_downloaded(key, progress))
            self._fetched[path, _digest(_parts_beside(path))] = key.model
        return path

    def prefetch(self, key: ResourceKey, progress: Progress) -> None:
        """Read the file into the system's cache."""
        path = _place(key.model, key.values)[2]
        if path is not None:
            read_ahead(_parts_beside(path), progress)

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Check the file, then load it on the model's own thread."""
        from nbproviders.runtimes.llamacpp import loading

        _require_chat_format(key.values)
        files = self.files(key, progress)
        return loading.load(files, key.values, threads.claim(), progress)

    def files(self, key: ResourceKey, progress: Progress) -> Sequence[Header]:
        """Return the checked files of a model, the first of them first; downloaded if they are not here."""
        path = self._file(key, progress)
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
        files = self.files(self.resolve(model_id), Progress())
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
    from nbproviders.runtimes.llamacpp.plan import CACHE_TYPES

    for name in ("n_ctx", "n_threads", "n_batch", "parallel"):
        if values[name] is not None and values[name] < 1:
            raise ConfigurationError(f"{name}={values[name]} must be at least 1.")
    if (values["parallel"] or 1) > _MOST_PARALLEL:
        raise ConfigurationError(
            f"parallel={values['parallel']} must be at most {_MOST_PARALLEL}, as llama.cpp has it.",
            hint="Any number of requests may be made at once; the rest of them wait.",
        )
    if values["n_gpu_layers"] is not None and values["n_gpu_layers"] < -1:
        raise ConfigurationError(
            f"n_gpu_layers={values['n_gpu_layers']} must be at least -1.", hint=_ON_GPU
        )
    for name in ("type_k", "type_v"):
        if values[name] not in CACHE_TYPES:
            raise ConfigurationError(
                f"{name}={values[name]!r} is not one of {', '.join(CACHE_TYPES)}."
            )
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
    if quant is not None:  # "demo-m:Q8_0": what stands before the colon may be a short name
        name, own = split_quant(aliases.resolve(name, LlamaCppProvider.name))
        quant = quant or own
    quant = values["quant"] or quant
    path = Path(name).expanduser()
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*.gguf"))}
        return name, quant, _one_name(files[choose(list(files), quant)])
    if path.is_file():
        if quant is not None and quant_of(path.name):
            choose([path.name], quant)  # refuses another than the file's own
        return name, quant, _one_name(path)
    if checkpoints.is_local(name) or name.lower().endswith(".gguf"):
        raise ModelAccessError(
            f"There is no file or folder {str(path)!r}.",
            hint="Check the path, or give a Hub id such as 'org/name:Q4_K_M'. "
            "`nbproviders list` shows what is here.",
        )
    if name in demo.MODELS:
        raise ModelAccessError(
            f"{name} is not shipped as GGUF.",
            hint=f"{', '.join(demo.GGUF)} are; {name} is for the provider transformers.",
        )
    there = downloads.cached_files(name, values["revision"])
    try:
        first = choose(list(there), quant)
    except ModelAccessError:  # not here: perhaps on the Hub
        return name, quant, None
    whole = all(part in there for part in _parts(first))
    return name, quant, _one_name(there[first]) if whole else None


def _one_name(path: Path) -> Path:
    """Return the same path for all names of a file; of a model in several files the first.

    Links are followed, but for those whose target is named by a digest, as in the caches of the Hub and of
    Ollama: of a split model llama.cpp finds the parts by their names.
    """
    real = path.resolve()
    if real.suffix.lower() != ".gguf":
        real = path.parent.resolve() / path.name
    first = real.with_name(_parts(real.name)[0])
    return first if first.is_file() else real


def _parts_beside(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(Path(name).name) for name in _parts(path.name))


def _parts(name: str) -> list[str]:
    """Return the names of all files of a model that has one of this name."""
    found = _PART.fullmatch(name)
    if found is None:
        return [name]
    before, count, suffix = found.groups()
    return [f"{before}-{i:05d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]


def _require_chat_format(values: Mapping[str, Any]) -> None:
    from nbproviders.runtimes.llamacpp import chat

    if values["chat_format"]:
        chat.builtin(values["chat_format"])


def _downloaded(key: ResourceKey, progress: Progress) -> Path:
    progress.report(0, 0, "checking access")
    revision = key.values["revision"]
    name, quant = split_quant(key.model)
    quant = key.values["quant"] or quant
    try:
        remote = downloads.remote_files(name, revision)
    except ModelAccessError as error:
        here = [one for one in downloads.cached_files(name, revision) if is_model(one)]
        if here:
            error.hint = f"Of it there are here: {', '.join(here)}. {error.hint}"
        raise
    parts = _parts(choose(list(remote), quant))
    downloads.require_parts(name, parts, remote)
    return downloads.fetch(name, {part: remote[part] for part in parts}, revision, progress)[0]


def _digest(paths: Sequence[Path]) -> str:
    """Return what tells this version of files from another, without reading them whole."""
    import hashlib

    stats = [path.stat() for path in paths if path.exists()]
    text = "/".join(f"{found.st_size}/{found.st_mtime_ns}" for found in stats)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
