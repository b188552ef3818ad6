"""`transformers`: models from the Hugging Face Hub or a local folder, on a CPU or a GPU."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nbproviders.authoring.options import Option, filled, with_defaults
from nbproviders.authoring.weights import DEFAULT_CLASS, WeightsProvider, alone
from nbproviders.catalog import aliases
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey, canonical
from nbproviders.errors import (
    ClosedError,
    ConfigurationError,
    InsufficientMemoryError,
    foreign,
    is_out_of_memory,
)
from nbproviders.residency import residency
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import (
    checkpoints,
    devices,
    hub,
    quantization,
    snapshots,
    staging,
    threads,
)
from nbproviders.runtimes.readahead import read_ahead
from nbproviders.runtimes.reporting import reporting

if TYPE_CHECKING:
    from nbproviders.runtimes.transformers import TransformersModel

logger = logging.getLogger(__name__)

_CLASSES = (checkpoints.CAUSAL_CLASS, checkpoints.SEQ2SEQ_CLASS)
_SPREAD = ("auto", "balanced", "sequential")
_DTYPES = ("auto", "float32", "float16", "bfloat16")


class TransformersProvider(WeightsProvider):
    """Loads with ``from_pretrained``: causal and seq2seq models, safetensors only unless asked.

    Parameters
    ----------
    **defaults
        Load options for every model of this provider; those of a single model win.

    Raises
    ------
    ConfigurationError
        For a default that is no option, or has a wrong value.
    """

    name = "transformers"
    options: ClassVar[dict[str, Option]] = {
        "dtype": Option((str,), "auto", f"One of {', '.join(_DTYPES)}."),
        "device": Option((str,), "auto", "cpu, cuda:0, mps, or auto: the best there is."),
        "device_map": Option((str, dict), None, "As accelerate takes it; wins over device."),
        "revision": Option((str,), None, "Branch, tag or commit on the Hub."),
        "attn_implementation": Option((str,), None, "sdpa, eager, flash_attention_2 …"),
        "model_class": Option((str,), None, f"One of {', '.join(_CLASSES)}; None finds it."),
        "quantization": Option((str,), None, f"One of {', '.join(quantization.SHORT)}."),
        "quantization_config": Option((dict,), None, "As BitsAndBytesConfig takes it."),
        "trust_remote_code": Option((bool,), False, "Run code that comes with the model."),
        "allow_pickle": Option((bool,), False, "Load pickled weights, which can run any code."),
        "parallel": Option((int,), None, "Most requests in one batch.", loads=False),
    }

    # Of what had another version, or none, in the cache when it was first asked for: the folder that was
    # loaded, by origin, model and options, and the version its key tells: one that is open stays one model.
    _versions: ClassVar[dict[tuple[str, str, str], tuple[Path, str]]] = {}

    def __init__(self, **defaults: Any) -> None:
        self.options = with_defaults(type(self).options, defaults, self.name)  # type: ignore[misc]
        self._settled({name: option.default for name, option in self.options.items()})
        if type(self).__module__.startswith("nbproviders.providers."):
            # Defaults are part of the options: providers that load the same weights share them.
            self.__dict__["_origin"] = type(self).name

    def get_provider_name(self) -> str:
        """Return the name it is registered by: ``transformers``."""
        return self.name

    # Keys and estimates

    def _settled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return options as they are loaded, each checked by itself; no library is imported."""
        chosen = filled(type(self).options, values)
        for name, allowed in (("dtype", _DTYPES), ("model_class", (None, *_CLASSES))):
            if chosen[name] not in allowed:
                raise ConfigurationError(
                    f"{name}={chosen[name]!r} is not one of {', '.join(a for a in allowed if a)}."
                )
        if chosen["parallel"] is not None and chosen["parallel"] < 1:
            raise ConfigurationError(f"parallel={chosen['parallel']} must be at least 1.")
        # The word and the configuration it stands for are the same model.
        chosen["quantization_config"] = quantization.normalised(
            chosen.pop("quantization"), chosen["quantization_config"]
        )
        return chosen

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Path, ...]]:
        chosen, model = self._settled(values), meant(model)
        folder = checkpoints.folder_of(model, chosen["revision"])
        there = folder is not None and folder.is_dir()
        loads = canonical({k: v for k, v in chosen.items() if self.options[k].loads})
        local = str(Path(model).expanduser().resolve()) if checkpoints.is_local(model) else model
        loaded, revision = self._versions.get((self._origin, local, loads), (None, ""))
        if loaded is None or loaded != folder:
            revision = checkpoints.revision_of(folder) if there and folder is not None else ""
        key = ResourceKey(self._origin, local, loads, revision, chosen)
        return key, checkpoints.watched(folder) if there and folder is not None else ()

    def estimate(self, key: ResourceKey) -> Mapping[str, int]:
        """Return an `Estimate`, of the model's structure; empty for one not yet downloaded."""
        from nbproviders.runtimes import estimating

        values = dict(key.values)
        device = self._device(values)
        devices.add_probes(residency.default().memory)
        folder = checkpoints.folder_of(key.model, values["revision"])
        settings = values["quantization_config"]
        if settings is not None:  # before anything else has to make room for it
            quantization.require(settings, device)
        if folder is None or not folder.is_dir():
            return Estimate()
        if settings is not None:
            quantization.require_plain(checkpoints.read_config(folder), key.model)
        wanted = estimating.wanted(folder, values, self._dtype(values, device))
        return estimating.expected(wanted, device, settings, alone)

    def fetch_files(self, key: ResourceKey, progress: Progress) -> None:
        """Bring the weights of a Hub id into the local cache, unless they are there."""
        values = dict(key.values)
        if checkpoints.is_local(key.model):
            return
        revision, pickled = values["revision"], values["allow_pickle"]
        if not snapshots.is_here(key.model, revision, allow_pickle=pickled):
            # What cannot be is told before its weights are downloaded.
            chosen = self._check_access(key.model, values, self._device(values), progress)
            self._require_known(key.model, chosen, values)
            snapshots.bring(key.model, revision, progress, allow_pickle=pickled)
        folder = checkpoints.folder_of(key.model, revision)
        if folder is not None and key.revision != checkpoints.revision_of(folder):
            self._versions[key.origin, key.model, key.options] = folder, key.revision

    def prefetch(self, key: ResourceKey, progress: Progress) -> None:
        """Read the weights into the system's cache."""
        folder = checkpoints.folder_of(key.model, dict(key.values)["revision"])
        if folder is not None and folder.is_dir():
            read_ahead(sorted(folder.glob("*.safetensors")), progress)

    def _device(self, values: Mapping[str, Any]) -> str:
        mapped = values["device_map"]
        if isinstance(mapped, str) and mapped not in _SPREAD:
            return devices.resolve_device(mapped)
        return devices.resolve_device(values["device"])

    def _dtype(self, values: Mapping[str, Any], device: str) -> str | None:
        """Return the dtype weights are loaded in; None is the checkpoint's own."""
        wanted: str = values["dtype"]
        if wanted != "auto":
            return wanted
        return "float32" if devices.computes_on(device) == "cpu" else None

    # Loading

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Load on the model's own thread, with progress by bytes."""
        values = dict(key.values)
        parallel, device = values.pop("parallel"), self._device(values)
        values["dtype"] = self._dtype(values, device) or "auto"
        if not isinstance(values["device_map"], dict) and values["device_map"] not in _SPREAD:
            values["device_map"] = {"": device}
        values.pop("device")
        loading = staging.Loading(progress, device)
        with ExitStack() as ended, ExitStack() as undone:
            ended.callback(staging.current.reset, staging.current.set(loading))
            undone.callback(loading.undo)
            chosen = self._check_access(key.model, values, device, progress)
            model = self._load_raw(key.model, chosen, values, progress)
            tokenizer = self._tokenizer(key.model, values, progress)
            from nbproviders.runtimes.transformers import TransformersModel

            loaded = TransformersModel(model, tokenizer, threads.claim(), parallel=parallel)
            progress.phase = "warming up"
            progress.check()
            self._warm_up(loaded)
            quantization.own_scales(model)
            loaded.settle(loading.settled(model, key.model, values["revision"]))
            loaded.info = dataclasses.replace(
                loaded.info, notes=(*loading.notes, *loaded.info.notes)
            )
            undone.pop_all()
        return loaded

    def _warm_up(self, loaded: TransformersModel) -> None:
        loaded.warm_up()

    def _note(self, text: str) -> None:
        """Tell the person who loads: in the log, and in the notes of the model that is loading."""
        logger.info("%s: %s", self.name, text)
        loading = staging.current.get()
        if loading is not None:
            loading.notes.append(text)

    def _check_access(
        self, model: str, values: dict[str, Any], device: str, progress: Progress
    ) -> str:
        """Refuse early what cannot be loaded, and return the class to load it with."""
        progress.phase = "checking access"
        settings = values["quantization_config"]
        if settings is not None:
            quantization.require(settings, device)
        self._require_access(model, values["model_class"] or "", values)
        config = _config_of(model, values)
        if settings is not None:
            quantization.require_plain(config, model)
            if values["dtype"] == "auto":  # what 4-bit weights are computed with, too
                values["dtype"] = checkpoints.dtype_of(config)
        loading = staging.current.get()
        if loading is not None:
            loading.quantized = settings is not None or bool(config.get("quantization_config"))
        return values.pop("model_class") or checkpoints.class_of(config)

    def _require_known(self, model: str, chosen: str, values: Mapping[str, Any]) -> None:
        """Have transformers read the config, as its load begins: a new architecture, or code of its own."""
        from transformers import AutoConfig

        revision, trusted = values["revision"], values["trust_remote_code"]
        try:
            AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trusted)
        except Exception as error:  # the library's; raised again as ours
            raise self._explained(model, chosen, error) from foreign(error)

    def _require_access(self, model: str, model_class: str, values: Mapping[str, Any]) -> None:
        """Libraries would retry an unreachable Hub for a minute."""
        pickled = values["allow_pickle"]
        if not checkpoints.is_local(model):
            revision = values["revision"] or ""
            hub.require_model(model, revision, model_class=model_class, allow_pickle=pickled)
            return
        folder = Path(model).expanduser()
        checkpoints.require_weights(folder, model, allow_pickle=pickled)
        config = checkpoints.read_config(folder)
        checkpoints.require_class(config, model_class or checkpoints.class_of(config), model)

    def _tokenizer(self, model: str, values: Mapping[str, Any], progress: Progress) -> Any:
        progress.phase = "tokenizer"
        try:
            return self.load_tokenizer(
                model,
                revision=values["revision"],
                trust_remote_code=values["trust_remote_code"],
            )
        except Exception as error:  # the library's; raised again as ours
            raise self._explained(model, DEFAULT_CLASS, error) from foreign(error)

    def _load_raw(
        self, model: str, chosen: str, values: Mapping[str, Any], progress: Progress
    ) -> Any:
        folder = checkpoints.folder_of(model, values["revision"])
        sizes = checkpoints.read_weights(folder) if folder is not None and folder.is_dir() else None
        progress.phase = "opening"
        try:
            with reporting(progress, sizes.tensors if sizes else {}):
                return self.load_model(model, chosen, **values)
        except (ConfigurationError, ClosedError, InsufficientMemoryError):
            raise
        except Exception as error:  # the library's; raised again as ours
            if is_out_of_memory(error):
                raise InsufficientMemoryError(str(foreign(error))) from foreign(error)
            raise self._explained(model, chosen, error) from foreign(error)

    def load_model(
        self,
        model_id: str,
        model_class: str = DEFAULT_CLASS,
        quantization_config: Any = None,
        device_map: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """Return the transformers model; `kwargs` go to ``from_pretrained``.

        Raises
        ------
        ConfigurationError
            For a class that is none, and for a quantization that cannot be.
        """
        import transformers

        if model_class not in _CLASSES:
            raise ConfigurationError(
                f"model_class={model_class!r} is not one of {', '.join(_CLASSES)}."
            )
        if not kwargs.pop("allow_pickle", False):
            kwargs["use_safetensors"] = True
        given = {k: v for k, v in kwargs.items() if v is not None}
        if device_map == "auto":
            device_map = {"": devices.best_device()}
        if quantization_config is not None:
            given["quantization_config"] = _quantizing(quantization_config, device_map, given)
        loader = getattr(transformers, model_class)
        loading = staging.current.get()
        staged = loading is not None and loading.stages(meant(model_id), device_map, given)
        with alone(loading.progress if loading is not None else None):
            model = loader.from_pretrained(
                meant(model_id),
                device_map=staging.CPU if staged else staging.computing(device_map),
                **given,
            )
        quantization.settle(model)
        if staged and loading is not None:
            loading.place(model, meant(model_id), given.get("revision"))
        return model

    def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
        """Return the tokenizer, padding on the left, with a pad token."""
        from transformers import AutoTokenizer

        given = {k: v for k, v in kwargs.items() if v is not None}
        tokenizer = AutoTokenizer.from_pretrained(meant(model_id), **given)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def validate_model_access(self, model_id: str, model_class: str = DEFAULT_CLASS) -> bool:
        """Return True if a model can be loaded: a folder with weights, the cache, or the Hub.

        Takes 10 s at most. Options given to the constructor count: `revision`, `allow_pickle`.

        Raises
        ------
        ModelAccessError
            With the reason: missing, gated, offline, no weights, damaged, or of the wrong class.
        """
        defaults = {name: option.default for name, option in self.options.items()}
        self._require_access(meant(model_id), model_class, defaults)
        return True


def meant(model: str) -> str:
    """Return what a short name stands for; what is loaded with transformers shares its short names."""
    return aliases.resolve(model, TransformersProvider.name)


def _config_of(model: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's ``config.json``, downloaded if need be; nothing if it cannot be had."""
    folder = checkpoints.folder_of(model, values["revision"])
    if folder is not None and folder.is_dir():
        return checkpoints.read_config(folder)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(model, "config.json", revision=values["revision"])
    except (OSError, ValueError):  # from_pretrained will say it better
        return {}
    return checkpoints.read_config(Path(path).parent)


def _quantizing(config: Any, device_map: Any, given: Mapping[str, Any]) -> Any:
    """Return a quantization as transformers takes it, checked; an object is handed on as it is."""
    settings = quantization.expected_settings(config)
    if settings is None:
        return config
    mapped = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for place in mapped:
        quantization.require(settings, f"cuda:{place}" if isinstance(place, int) else str(place))
    dtype = str(given.get("dtype", "auto")).removeprefix("torch.")
    if isinstance(config, Mapping):
        return quantization.transformers_config(settings, None if dtype == "auto" else dtype)
    return config
