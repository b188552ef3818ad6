"""`WeightsProvider`: write four methods that load a model and its tokenizer; the rest is done for you."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from nbproviders.authoring.adapted import adapt
from nbproviders.authoring.options import Option
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.core.model import Model
from nbproviders.core.spec import ResourceKey
from nbproviders.core.turns import Turn
from nbproviders.errors import ConfigurationError, ModelAccessError, ProviderError, foreign
from nbproviders.residency.progress import Progress
from nbproviders.runtimes.checkpoints import is_local

WEIGHTS_METHODS = ("load_model", "load_tokenizer", "validate_model_access", "get_provider_name")
DEFAULT_CLASS = "AutoModelForCausalLM"


class WeightsProvider(ResidentProvider):
    """A provider of weights. Any object with these four methods registers as one; subclassing is optional.

    Attributes
    ----------
    uses_transformers
        Whether ``load_model`` calls transformers, which cannot load two models at once; see `alone`. Say
        False if it does not, and models load at the same time.
    """

    uses_transformers: bool = True

    @abstractmethod
    def load_model(
        self,
        model_id: str,
        model_class: str,
        quantization_config: Any = None,
        device_map: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """Return the loaded model.

        Parameters
        ----------
        model_id
            Hub id or local path.
        model_class
            Name of the class to load it with, such as ``AutoModelForCausalLM``.
        quantization_config
            As transformers takes it.
        device_map
            ``auto``, a device, or a map.
        **kwargs
            Further load options.
        """

    @abstractmethod
    def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
        """Return the model's tokenizer; None if it has none."""

    @abstractmethod
    def validate_model_access(self, model_id: str, model_class: str) -> bool:
        """Return True, or raise `ModelAccessError` with the reason."""

    @abstractmethod
    def get_provider_name(self) -> str:
        """Return the provider's name."""

    def load(self, key: ResourceKey, progress: Progress) -> Model:
        """Load model and tokenizer; a failure carries what `validate_model_access` says of it."""
        options = dict(key.values)
        model_class = options.pop("model_class", None) or DEFAULT_CLASS
        quantization = options.pop("quantization_config", None)
        device_map = options.pop("device_map", "auto")
        try:
            with alone(progress) if self.uses_transformers else nullcontext():
                model = self.load_model(
                    key.model,
                    model_class=model_class,
                    quantization_config=quantization,
                    device_map=device_map,
                    **options,
                )
            tokenizer = self.load_tokenizer(key.model)
        except Exception as error:  # the author's code; raised again with what is known of it
            raise self._explained(key.model, model_class, error) from foreign(error)
        return _adapted(model, tokenizer)

    def _explained(self, model_id: str, model_class: str, error: Exception) -> ProviderError:
        """Return a failed load as one of our errors, with the access check's refusal as its hint."""
        ours = error if isinstance(error, ProviderError) else None
        failure = ours or ProviderError(str(foreign(error)))
        if isinstance(error, MemoryError):
            from nbproviders.errors import InsufficientMemoryError

            return InsufficientMemoryError(str(foreign(error)))
        if failure.hint or is_local(model_id):
            return failure
        try:
            if not self.validate_model_access(model_id, model_class):
                failure.hint = f"{self.get_provider_name()} has no access to {model_id!r}."
        except Exception as refusal:  # the author's code; it becomes the hint
            told = refusal if isinstance(refusal, ModelAccessError) else foreign(refusal)
            failure.hint = str(told)
        return failure


_loading = Turn()


@contextmanager
def alone(progress: Progress | None = None) -> Iterator[None]:
    """Let no other model of this process load by transformers meanwhile.

    ``from_pretrained`` takes methods of its own classes away (``no_tie_weights``) and changes torch's default
    type, for all threads, and puts back what it found: of two at once one puts back what the other had
    changed, and from then on every model of tied weights answers nonsense (seen with transformers 5.23).

    Parameters
    ----------
    progress
        Of the load; it says what is waited for, and is asked whether the load is still wanted.

    Raises
    ------
    ClosedError
        If it is not.
    """
    before = progress.phase if progress is not None else ""

    def waiting() -> None:
        if progress is not None:
            progress.phase = "waiting for another load"
            progress.check()

    with _loading.taken(waiting):
        if progress is not None:
            progress.phase = before
        yield


_IDLE_COMPILE = (
    "torch.compile(model) does not reach generate(), which calls the module inside; to compile it, write "
    "model.forward = torch.compile(model.forward)"
)


def _adapted(thing: Any, tokenizer: Any) -> Model:
    """Adapt what was loaded; of what torch.compile made of a module, the module inside."""
    kind = type(thing)
    if not (kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch.")):
        return adapt(thing, tokenizer=tokenizer)
    model = adapt(thing._orig_mod, tokenizer=tokenizer)
    model.info = dataclasses.replace(model.info, notes=(*model.info.notes, _IDLE_COMPILE))
    return model


class WrappedWeights(WeightsProvider):
    """Any object with the four weights methods, as a provider.

    Parameters
    ----------
    wrapped
        The object; attributes that are not the provider's are its own.
    """

    options: Mapping[str, Option] | None = None  # type: ignore[misc]  # any, for any object

    def __init__(self, wrapped: Any) -> None:
        missing = [m for m in WEIGHTS_METHODS if not callable(getattr(wrapped, m, None))]
        if missing:
            raise ConfigurationError(
                f"{type(wrapped).__name__} lacks {', '.join(missing)} of a weights provider.",
                hint=f"It needs {', '.join(WEIGHTS_METHODS)}.",
            )
        self.wrapped = wrapped
        self.uses_transformers = bool(getattr(wrapped, "uses_transformers", True))
        self.name = str(wrapped.get_provider_name()).lower()  # type: ignore[misc]

    def load_model(
        self,
        model_id: str,
        model_class: str,
        quantization_config: Any = None,
        device_map: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """By the object."""
        return self.wrapped.load_model(
            model_id,
            model_class=model_class,
            quantization_config=quantization_config,
            device_map=device_map,
            **kwargs,
        )

    def load_tokenizer(self, model_id: str, **kwargs: Any) -> Any:
        """By the object."""
        return self.wrapped.load_tokenizer(model_id, **kwargs)

    def validate_model_access(self, model_id: str, model_class: str) -> bool:
        """By the object."""
        return bool(self.wrapped.validate_model_access(model_id, model_class))

    def get_provider_name(self) -> str:
        """By the object."""
        return str(self.wrapped.get_provider_name())

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":
            raise AttributeError(name)
        return getattr(self.wrapped, name)
