"""`optimized`: transformers models in bfloat16, with flash attention and torch.compile where they help.

Each step can be switched off, and steps back with a reason where it cannot run or does not pay; the
reason is logged and stands in the model's ``info.notes``.
"""

from __future__ import annotations

import importlib.util
import re
import time
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from nbproviders.authoring.options import Option
from nbproviders.authoring.weights import DEFAULT_CLASS
from nbproviders.errors import ProviderError, mapped
from nbproviders.providers.transformers import TransformersProvider
from nbproviders.runtimes import devices, quantization, virtual

if TYPE_CHECKING:
    from nbproviders.runtimes.transformers import TransformersModel

# What lies between the caches: everywhere else tensors change their shape with each token.
_PARTS = re.compile(r"(MLP|FeedForward|FFN|DenseActDense|DenseGatedActDense|RMSNorm)$")
_AMPERE = (8, 0)  # the first CUDA capability with bfloat16 and flash attention 2
_TRIAL_ROWS = (1, 8)
_TRIAL_TOKENS = 6
_REASON_CHARACTERS = 200


class OptimizedProvider(TransformersProvider):
    """As ``transformers``, made faster. Subclasses add steps of their own in `_apply_custom_optimizations`.

    Parameters
    ----------
    **defaults
        Load options for every model of this provider; those of a single model win.

    Raises
    ------
    ConfigurationError
        For a default that is no option, or has a wrong value.
    """

    name = "optimized"
    options: ClassVar[dict[str, Option]] = {
        **TransformersProvider.options,
        "bfloat16": Option((bool,), True, "Compute in bfloat16; a dtype that is given wins."),
        "flash_attention": Option(
            (bool,), True, "Use flash_attention_2; an attn_implementation that is given wins."
        ),
        "compile": Option((bool,), None, "Use torch.compile; None does so on a GPU only."),
        "custom_optimizations": Option((bool,), True, "Apply what a subclass adds."),
    }

    def _dtype(self, values: Mapping[str, Any], device: str) -> str | None:
        wanted = values["dtype"] == "auto" and values["bfloat16"]
        useless = no_bfloat16(devices.computes_on(device))
        return "bfloat16" if wanted and not useless else super()._dtype(values, device)

    def load_model(
        self,
        model_id: str,
        model_class: str = DEFAULT_CLASS,
        quantization_config: Any = None,
        device_map: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """Return the optimized transformers model; `kwargs` go to ``from_pretrained``."""
        steps = {
            name: kwargs.pop(name, option.default)
            for name, option in self.options.items()
            if name not in TransformersProvider.options
        }
        device = _main_device(device_map)
        if steps["bfloat16"]:
            self._choose_bfloat16(kwargs, device)
        flash = steps["flash_attention"] and kwargs.get("attn_implementation") is None
        model = self._loaded(
            flash and not no_flash_attention(device, kwargs.get("dtype")),
            model_id,
            model_class,
            quantization_config,
            device_map,
            **kwargs,
        )
        used = getattr(model.config, "_attn_implementation", "")
        if flash and used != "flash_attention_2":
            reason = no_flash_attention(device, kwargs.get("dtype"))
            self._note(f"flash_attention_2: {reason or 'this model has none'}; {used} is used")
        if steps["custom_optimizations"]:
            model = self._customized(model)
        if steps["compile"] is None and not device.startswith("cuda"):
            self._note(f"torch.compile: {_NOT_WORTH_IT.format(device=device)}")
        elif steps["compile"] is not False:
            self._compile(model)
        return model

    def _choose_bfloat16(self, kwargs: dict[str, Any], device: str) -> None:
        reason = no_bfloat16(device)
        if reason:
            self._note(f"bfloat16: {reason}; {kwargs.get('dtype') or 'auto'} is used")
        elif kwargs.get("dtype") in (None, "auto"):
            kwargs["dtype"] = "bfloat16"

    def _loaded(self, flash: bool, *arguments: Any, **kwargs: Any) -> Any:
        if flash:
            try:
                return super().load_model(
                    *arguments, **{**kwargs, "attn_implementation": "flash_attention_2"}
                )
            except (ImportError, ValueError) as error:
                if "flash" not in str(error).lower():
                    raise
        return super().load_model(*arguments, **kwargs)

    def _customized(self, model: Any) -> Any:
        changed = self._apply_custom_optimizations(model)
        if changed is None:
            raise ProviderError(
                f"{type(self).__name__}._apply_custom_optimizations returned None.",
                hint="Return the model that it was given, or the one to use instead.",
            )
        return changed

    def _apply_custom_optimizations(self, model: Any) -> Any:
        """Return the model, changed as a subclass likes; called once, before anything is compiled."""
        return model

    def _compile(self, model: Any) -> None:
        """Have the parts between the caches compiled when they are first called."""
        import torch

        if quantization.is_quantized(model):
            self._note("torch.compile: layers in 4 or 8 bits are not compiled; plain is used")
            return
        parts = [part for part in model.modules() if _PARTS.search(type(part).__name__)]
        if not parts or any(hasattr(part, "_hf_hook") for part in parts):
            reason = "it is spread over devices" if parts else "no part is known that gains by it"
            self._note(f"torch.compile: {type(model).__name__}: {reason}; plain is used")
            return
        codes: dict[types.CodeType, types.CodeType] = {}
        try:
            with mapped("it failed"):  # where it does not support this Python, say
                made = {
                    part: CompiledForward(torch.compile(_own(part.forward, codes), dynamic=True))
                    for part in parts
                }
        except ProviderError as error:
            self._note(f"torch.compile: {_shortly(error)}; plain is used")
            return
        _compiled(made)

    def _warm_up(self, loaded: TransformersModel) -> None:
        """Compile by generating. What fails then, or is slower, steps back before anyone waits for it."""
        parts = {
            part: part.forward
            for part in loaded.raw.modules()  # type: ignore[attr-defined]  # a module
            if isinstance(vars(part).get("forward"), CompiledForward)
        }
        if parts:
            reason = _trial(loaded.raw, parts)
            if reason:
                _plain(parts)
                self._note(f"torch.compile: {reason}; plain is used")
        super()._warm_up(loaded)


_NOT_WORTH_IT = (
    "on {device} it takes seconds and was slower in every measurement; plain is used "
    "(?compile=true tries it)"
)


class CompiledForward:
    """A compiled ``forward`` in place of a module's own, told apart from those of others."""

    def __init__(self, function: Any) -> None:
        self._function = function
        # By this name torch's own compiled functions tell what they are.
        self._torchdynamo_orig_callable = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it."""
        return self._function(*arguments, **named)


def _own(method: Any, codes: dict[types.CodeType, types.CodeType]) -> Any:
    """Return a method with code of its own, the same for all layers of a model.

    torch keeps 8 compiled forms of each piece of code and then gives up, with a line in its log. A class of
    transformers serves all models of its kind: the third one would not be compiled any more.
    """
    if not isinstance(method, types.MethodType) or not isinstance(
        method.__func__, types.FunctionType
    ):
        return method
    function = method.__func__
    code = codes.setdefault(function.__code__, function.__code__.replace())
    own = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return types.MethodType(own, method.__self__)


def _plain(parts: Mapping[Any, CompiledForward]) -> None:
    for part in parts:
        del part.forward


def _compiled(parts: Mapping[Any, CompiledForward]) -> None:
    for part, forward in parts.items():
        part.forward = forward


def _trial(model: Any, parts: Mapping[Any, CompiledForward]) -> str:
    """Return why compiled parts should not be used: they fail, or are slower; leaves them in place."""
    try:
        with mapped("it failed"):
            _seconds(model)
    except ProviderError as error:
        return _shortly(error)
    fast, slow = [], []
    for _ in range(3):  # in turn, so that other work on the machine meets both
        fast.append(_seconds(model))
        _plain(parts)
        slow.append(_seconds(model))
        _compiled(parts)
    if min(fast) <= min(slow):
        return ""
    tokens = _TRIAL_TOKENS * len(_TRIAL_ROWS)
    with_it, without = (1000 * min(taken) / tokens for taken in (fast, slow))
    return f"{with_it:.1f} ms a step with it, {without:.1f} ms without"


def _shortly(error: ProviderError) -> str:
    return " ".join(error.message.split())[:_REASON_CHARACTERS]


def _seconds(model: Any) -> float:
    """Return how long it takes to generate a few tokens, alone and in a batch."""
    import torch

    parameters = sum(p.numel() for p in model.parameters())
    pad = model.config.get_text_config().pad_token_id
    began_s = time.perf_counter()
    for rows in _TRIAL_ROWS:
        ids = torch.full((rows, 9), pad or 0, device=model.device)
        if model.device.type == "cpu":
            devices.suit_threads(parameters * rows)
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=_TRIAL_TOKENS,
                min_new_tokens=_TRIAL_TOKENS,
                do_sample=False,
                pad_token_id=pad or 0,
            ).cpu()
    return time.perf_counter() - began_s


def _main_device(device_map: Any) -> str:
    """Return the device of a map's first entry, as torch calls it."""
    found = (
        next(iter(device_map.values()), "auto") if isinstance(device_map, Mapping) else device_map
    )
    if isinstance(found, int):
        return f"cuda:{found}"
    if isinstance(found, str) and virtual.is_virtual(found):
        return devices.computes_on(found)
    return str(found) if str(found).startswith(("cpu", "cuda", "mps")) else devices.best_device()


def no_bfloat16(device: str) -> str:
    """Return why a device does not compute well in bfloat16; empty if it does."""
    import torch

    if device.startswith("cuda"):
        if torch.cuda.get_device_capability(device) >= _AMPERE:
            return ""
        return f"{torch.cuda.get_device_name(device)} computes no bfloat16"
    if device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ""
    return "this CPU has no instructions for it"


def no_flash_attention(device: str, dtype: Any) -> str:
    """Return why flash attention 2 cannot be used; empty if nothing is known against it."""
    import torch

    reasons = []
    if importlib.util.find_spec("flash_attn") is None:
        reasons.append("the package flash_attn is not installed")
    if not device.startswith("cuda"):
        reasons.append(f"it needs a CUDA GPU, not {device}")
    elif torch.cuda.get_device_capability(device) < _AMPERE:
        reasons.append(f"{torch.cuda.get_device_name(device)} is too old for it")
    if str(dtype).removeprefix("torch.") == "float32":
        reasons.append("it computes in bfloat16 or float16, not float32")
    return ", and ".join(reasons)
