"""`unsloth`: transformers models with Unsloth's kernels; needs a CUDA GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.authoring.weights import DEFAULT_CLASS, alone
from nbproviders.core.spec import ResourceKey
from nbproviders.errors import ConfigurationError
from nbproviders.providers.transformers import TransformersProvider, meant
from nbproviders.residency.progress import Progress
from nbproviders.runtimes import devices, quantization


class UnslothProvider(TransformersProvider):
    """Loads with ``FastLanguageModel.from_pretrained``, set up for inference.

    Parameters
    ----------
    **defaults
        Load options for every model of this provider; those of a single model win.

    Raises
    ------
    ConfigurationError
        For a default that is no option, or has a wrong value.
    """

    name = "unsloth"
    options: ClassVar[dict[str, Option]] = {
        # Unsloth brings its own attention.
        **{k: v for k, v in TransformersProvider.options.items() if k != "attn_implementation"},
        "quantization": Option((str,), None, "nf4 or int8."),
        "max_seq_length": Option((int,), 2048, "Most tokens of prompt and completion together."),
    }

    def _settled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        chosen = super()._settled(values)
        settings = chosen["quantization_config"]
        if settings is not None and quantization.word_of(settings) == "fp4":
            raise ConfigurationError(
                "unsloth does not quantize to fp4.", hint="Use quantization=nf4 or int8."
            )
        if chosen["max_seq_length"] < 1:
            raise ConfigurationError(
                f"max_seq_length={chosen['max_seq_length']} must be at least 1."
            )
        return chosen

    def _device(self, values: Mapping[str, Any]) -> str:
        require_unsloth()
        return super()._device(values)

    def fetch_files(self, key: ResourceKey, progress: Progress) -> None:
        """Bring nothing: of many models Unsloth takes files of its own."""

    def load_model(
        self,
        model_id: str,
        model_class: str = DEFAULT_CLASS,
        quantization_config: Any = None,
        device_map: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """Return Unsloth's form of a causal model.

        Raises
        ------
        ConfigurationError
            Where Unsloth cannot run, and for a class other than ``AutoModelForCausalLM``.
        """
        require_unsloth()
        if model_class != DEFAULT_CLASS:
            raise ConfigurationError(
                f"unsloth loads {DEFAULT_CLASS} only, not {model_class!r}.",
                hint="Use the provider transformers for it.",
            )
        import torch
        from unsloth import FastLanguageModel  # type: ignore[import-not-found,unused-ignore]

        settings = quantization.expected_settings(quantization_config) or {}
        dtype = str(kwargs.get("dtype") or "auto").removeprefix("torch.")
        with alone():
            model, _ = FastLanguageModel.from_pretrained(
                model_name=meant(model_id),
                max_seq_length=kwargs.get("max_seq_length", 2048),
                dtype=None if dtype == "auto" else getattr(torch, dtype),
                load_in_4bit=bool(settings.get("load_in_4bit")),
                load_in_8bit=bool(settings.get("load_in_8bit")),
                device_map=device_map,
                revision=kwargs.get("revision"),
                trust_remote_code=bool(kwargs.get("trust_remote_code")),
                use_safetensors=None if kwargs.get("allow_pickle") else True,
            )
        FastLanguageModel.for_inference(model)
        return model


def require_unsloth() -> None:
    """Check that Unsloth can run here.

    Raises
    ------
    ConfigurationError
        Without the package, or without a CUDA GPU.
    """
    reasons = []
    if importlib.util.find_spec("unsloth") is None:
        reasons.append("the package unsloth is not installed")
    if not devices.cuda_count():
        reasons.append("there is no CUDA GPU")
    if reasons:
        raise ConfigurationError(
            f"unsloth cannot run here: {', and '.join(reasons)}.",
            hint='On a machine with a CUDA GPU: pip install "nbproviders[unsloth]". Here, use the '
            "provider transformers.",
        )
