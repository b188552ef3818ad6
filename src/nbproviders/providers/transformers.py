"""`transformers`: models from the Hugging Face Hub or a local folder, on a CPU or a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.authoring.weights import DEFAULT_CLASS, WeightsProvider
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey, canonical
from nbproviders.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    foreign,
)
from nbproviders.residency import residency
from nbproviders.residency.entry import Progress
from nbproviders.runtimes import checkpoints, devices, hub, threads

_CLASSES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
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
        For a default that is no option.
    """

    name = "transformers"
    options: ClassVar[dict[str, Option]] = {
        "dtype": Option((str,), "auto", f"One of {', '.join(_DTYPES)}."),
        "device": Option((str,), "auto", "cpu, cuda:0, mps, or auto: the best there is."),
        "device_map": Option((str, dict), None, "As accelerate takes it; wins over device."),
        "revision": Option((str,), None, "Branch, tag or commit on the Hub."),
        "attn_implementation": Option((str,), None, "sdpa, eager, flash_attention_2 …"),
        "model_class": Option((str,), None, f"One of {', '.join(_CLASSES)}; None finds it."),
        "quantization_config": Option((dict,), None, "As transformers takes it."),
        "trust_remote_code": Option((bool,), False, "Run code that comes with the model."),
        "allow_pickle": Option((bool,), False, "Load pickled weights, which can run any code."),
        "parallel": Option((int,), None, "Most requests in one batch.", loads=False),
    }

    def __init__(self, **defaults: Any) -> None:
        unknown = [name for name in defaults if name not in self.options]
        if unknown:
            raise ConfigurationError(
                f"The provider 'transformers' does not take {', '.join(unknown)}.",
                hint=f"Its options: {', '.join(self.options)}.",
            )
        self._defaults = defaults

    def get_provider_name(self) -> str:
        """Return ``transformers``."""
        return self.name

    # Keys and estimates

    def _key(self, model: str, values: dict[str, Any]) -> tuple[ResourceKey, tuple[Path, ...]]:
        chosen = {
            k: self._defaults.get(k, v) if v == self.options[k].default else v
            for k, v in values.items()
        }
        if chosen["dtype"] not in _DTYPES:
            raise ConfigurationError(
                f"dtype={chosen['dtype']!r} is not one of {', '.join(_DTYPES)}."
            )
        if chosen["parallel"] is not None and chosen["parallel"] < 1:
            raise ConfigurationError(f"parallel={chosen['parallel']} must be at least 1.")
        folder = checkpoints.folder_of(model, chosen["revision"])
        there = folder is not None and folder.is_dir()
        revision = checkpoints.revision_of(folder) if there and folder is not None else ""
        loads = {k: v for k, v in chosen.items() if self.options[k].loads}
        local = str(Path(model).expanduser().resolve()) if checkpoints.is_local(model) else model
        key = ResourceKey(self._origin_of_weights(), local, canonical(loads), revision, chosen)
        return key, checkpoints.watched(folder) if there and folder is not None else ()

    def _origin_of_weights(self) -> str:
        # Defaults are part of the options already: providers that load the same weights share them.
        return self._origin if type(self) is not TransformersProvider else self.name

    def estimate(self, key: ResourceKey) -> Mapping[str, int]:
        """Return bytes by safetensors headers and the dtype they will be loaded in."""
        device = self._device(key.values)
        devices.add_probes(residency.default().memory)
        folder = checkpoints.folder_of(key.model, key.values["revision"])
        if folder is None or not folder.is_dir():
            return {}
        weights = checkpoints.read_weights(folder)
        if weights is None:
            return {}
        return {device: weights.bytes_as(_loaded_dtype(key.values["dtype"], device))}

    def _device(self, values: Mapping[str, Any]) -> str:
        mapped = values["device_map"]
        if isinstance(mapped, str) and mapped not in ("auto", "balanced", "sequential"):
            return devices.resolve_device(mapped)
        return devices.resolve_device(values["device"])

    # Loading

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Load on the model's own thread, with progress by bytes."""
        values = dict(key.values)
        parallel, revision = values.pop("parallel"), values["revision"]
        device = self._device(values)
        if values["device_map"] is None:
            values["device_map"] = {"": device}
        values.pop("device")
        values["dtype"] = _loaded_dtype(values["dtype"], device) or "auto"
        self._check_access(key.model, values, progress)
        folder = checkpoints.folder_of(key.model, revision)
        sizes = checkpoints.read_weights(folder) if folder is not None and folder.is_dir() else None
        progress.phase = "opening"
        with reporting(progress, sizes.tensors if sizes else {}):
            model = self._load_raw(key.model, values)
        tokenizer = self._tokenizer(key.model, values, progress)
        from nbproviders.runtimes.transformers import TransformersModel

        loaded = TransformersModel(model, tokenizer, threads.claim(), parallel=parallel)
        progress.phase = "warming up"
        progress.check()
        loaded.warm_up()
        return loaded

    def _check_access(self, model: str, values: Mapping[str, Any], progress: Progress) -> None:
        """Refuse early what cannot be loaded: libraries would retry an unreachable Hub for a minute."""
        progress.phase = "checking access"
        if not checkpoints.is_local(model):
            hub.require_access(model, values["revision"] or "")
        elif not values["allow_pickle"]:
            checkpoints.require_weights(Path(model), model)

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

    def _load_raw(self, model: str, values: dict[str, Any]) -> Any:
        chosen = values.pop("model_class") or _class_of(model, values)
        try:
            return self.load_model(model, chosen, **values)
        except ConfigurationError:
            raise
        except Exception as error:  # the library's; raised again as ours
            if type(error).__name__ == "OutOfMemoryError":
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
        """Return the transformers model; `kwargs` go to ``from_pretrained``."""
        import transformers

        if model_class not in _CLASSES:
            raise ConfigurationError(
                f"model_class={model_class!r} is not one of {', '.join(_CLASSES)}."
            )
        if not kwargs.pop("allow_pickle", False):
            kwargs["use_safetensors"] = True
        given = {k: v for k, v in kwargs.items() if v is not None}
        if quantization_config is not None:
            given["quantization_config"] = quantization_config
        if device_map == "auto":
            device_map = {"": devices.best_device()}
        loader = getattr(transformers, model_class)
        return loader.from_pretrained(model_id, device_map=device_map, **given)

    def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
        """Return the tokenizer, padding on the left, with a pad token."""
        from transformers import AutoTokenizer

        given = {k: v for k, v in kwargs.items() if v is not None}
        tokenizer = AutoTokenizer.from_pretrained(model_id, **given)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def validate_model_access(self, model_id: str, model_class: str = DEFAULT_CLASS) -> bool:
        """Return True if a model can be reached: a folder with weights, the cache, or the Hub.

        Raises
        ------
        ModelAccessError
            With the reason: missing, gated, offline, no weights, or of the wrong class.
        """
        if checkpoints.is_local(model_id):
            checkpoints.require_weights(Path(model_id).expanduser(), model_id)
            return True
        hub.require_access(model_id, "")
        return True


def _loaded_dtype(wanted: str, device: str) -> str | None:
    """Return the dtype weights are loaded in; None is the checkpoint's own."""
    if wanted != "auto":
        return wanted
    return "float32" if device == "cpu" else None


def _class_of(model: str, values: Mapping[str, Any]) -> str:
    """Return the auto class that fits a checkpoint's config."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model, revision=values["revision"], trust_remote_code=values["trust_remote_code"]
        )
    except (OSError, ValueError):  # from_pretrained will say it better
        return DEFAULT_CLASS
    return "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else DEFAULT_CLASS


class reporting:  # noqa: N801  # reads as a verb: with reporting(progress, sizes):
    """Tell a `Progress` of the weights that transformers loads on this thread.

    Parameters
    ----------
    progress
        Told of bytes; it raises when the load is no longer wanted.
    sizes
        Bytes of each tensor by name, as stored.
    """

    _by_thread: ClassVar[dict[int, tuple[Progress, Mapping[str, int]]]] = {}
    _hooked: ClassVar[bool] = False

    def __init__(self, progress: Progress, sizes: Mapping[str, int]) -> None:
        self._told = (progress, sizes)

    def __enter__(self) -> None:
        from transformers.utils import logging

        # The hook is process-wide; each load is told apart by its thread.
        if not reporting._hooked:
            reporting._hooked = True
            logging.set_tqdm_hook(_bar)
        self._by_thread[threading.get_ident()] = self._told

    def __exit__(self, *_: object) -> None:
        self._by_thread.pop(threading.get_ident(), None)


def _bar(factory: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    told = reporting._by_thread.get(threading.get_ident())
    if told is None or not args:
        return factory(*args, **named)
    return _reported(args[0], *told)


def _reported(items: Iterable[Any], progress: Progress, sizes: Mapping[str, int]) -> Iterator[Any]:
    todo = list(items)
    total = sum(sizes.values()) or len(todo)
    mean = total // max(len(todo), 1)
    done = 0
    for item in todo:
        progress.report(min(done, total), total, "weights")
        yield item
        name = item[0] if isinstance(item, tuple) else item
        done += sizes.get(str(name), mean)
    progress.report(total, total, "weights")
