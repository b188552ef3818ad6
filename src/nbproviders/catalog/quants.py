"""Quantizations as the names of GGUF files tell them, and which of several files is meant.

Goes by names alone: no file is opened, no folder read, no network asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from nbproviders.errors import ModelAccessError

# What llama.cpp's quantize tool and its forks write, and the mixtures that publishers make of it. The
# last form, a bare number of bits, counts only where nothing better stands in a name.
_QUANTIZED = (
    r"(?:UD-)?(?:"
    r"I?Q\d_K(?:SS?|T|L|V)?(?:_(?:XXS|XS|XL|S|M|L|R4|R8))?"
    r"|IQ\d_(?:XXS|XS|NL|S|M)"
    r"|T?Q\d_[01](?:_\d_\d)?"
    r"|MXFP4(?:_MOE)?|NVFP4"
    r")"
)
_FLOAT = r"(?:UD-)?(?:BF16|FP?16|FP?32)"
_BARE = r"I?Q[1-8]"


def _named(form: str) -> re.Pattern[str]:
    return re.compile(rf"(?i)(?<![A-Z0-9])(?:{form})(?![A-Z0-9])")


_FORMS = tuple(_named(form) for form in (_QUANTIZED, _FLOAT, _BARE))
_PART = re.compile(r"(?i)-(\d{5})-of-(\d{5})$")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MOST_LISTED = 40

# What is taken if nobody says: as good as four to five bits get, then eight, then what is left.
_ORDER = tuple(
    "Q4_K_M Q4_K_L Q4_K_XL Q4_K_S Q4_K IQ4_NL IQ4_XS MXFP4 MXFP4_MOE NVFP4 Q4_1 Q4_0 Q4 "
    "Q5_K_S Q5_K_M Q5_K Q5_K_L Q5_K_XL Q5_0 Q5_1 Q5 Q8_0 Q8 Q8_K_XL Q6_K Q6_K_L Q6_K_XL Q6 "
    "Q3_K_XL Q3_K_L Q3_K_M Q3_K Q3_K_S IQ3_M IQ3_S IQ3_XS IQ3_XXS F16 BF16 "
    "Q2_K_XL Q2_K_L Q2_K Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS TQ2_0 TQ1_0 IQ1_M IQ1_S F32".split()
)


def quant_of(file_name: str) -> str:
    """Return the quantization that a GGUF file's name tells, in capitals; empty if it tells none.

    A file that has none in its own name takes that of its folder, as large models are laid out.

    Examples
    --------
    >>> quant_of("model-q4_k_m-00001-of-00003.gguf")
    'Q4_K_M'
    >>> quant_of("UD-Q4_K_XL/model-00001-of-00002.gguf")
    'UD-Q4_K_XL'
    >>> quant_of("stories260k.gguf")
    ''
    """
    *folders, _ = parts = file_name.replace("\\", "/").split("/")
    for text in (stem(parts[-1]), *folders[-1:]):
        for form in _FORMS:
            found = form.findall(text)
            if found:
                return _canonical(found[-1])
    return ""


def is_model(file_name: str) -> bool:
    """Whether a name is that of a GGUF model's only or first file: no projector, no later part."""
    low = PurePosixPath(file_name.replace("\\", "/")).name.lower()
    if not low.endswith(".gguf") or "mmproj" in low or "imatrix" in low:
        return False
    part = _PART.search(low.removesuffix(".gguf"))
    return part is None or int(part[1]) == 1


def stem(file_name: str) -> str:
    """Return a GGUF file's name without folders, ``.gguf`` and the number of its part."""
    last = PurePosixPath(file_name.replace("\\", "/")).name
    return _PART.sub("", re.sub(r"(?i)\.gguf$", "", last))


def choose(names: Sequence[str], wanted: str | None) -> str:
    """Return which of a repository's or folder's files is to be loaded.

    Parameters
    ----------
    names
        All the names there are, with folders where they lie in some.
    wanted
        A quantization, a file's name or its stem, in capitals or not. None takes the best default:
        Q4_K_M, else another of four to five bits, else Q8_0, else what there is.

    Returns
    -------
    str
        One of `names`: of a model in several files the first.

    Raises
    ------
    ModelAccessError
        If there is no such file, or several; the message lists what there is.
    """
    models = sorted({name for name in names if is_model(name)})
    if not models:
        raise ModelAccessError(
            f"There is no GGUF model among the {len(names)} files: {_listed(names) or 'none'}.",
            hint="Choose a repository or folder that holds .gguf files.",
        )
    if wanted is not None:
        return _wished(models, wanted)
    if len({_base(name) for name in models}) > 1:
        raise ModelAccessError(
            f"There are several GGUF models: {_listed(models)}.", hint=_hint(stem(models[0]))
        )
    best = min(map(_rank, models))
    return _only([name for name in models if _rank(name) == best], best[2] or "without a name")


def split_quant(model: str) -> tuple[str, str | None]:
    r"""Split the quantization, or the file's name, off a Hub id or a folder's path.

    A colon that belongs to the name stays: a drive's, a scheme's, a tag's. Whether a path as it stands
    exists is for the caller to see first, for a file's name may hold a colon.

    Examples
    --------
    >>> split_quant("org/name:Q4_K_M")
    ('org/name', 'Q4_K_M')
    >>> split_quant("C:/models:Q8_0")
    ('C:/models', 'Q8_0')
    >>> split_quant(r"C:\m.gguf") == (r"C:\m.gguf", None)
    True
    >>> split_quant("llama3:8b")
    ('llama3:8b', None)
    """
    if "://" in model:
        return model, None
    hub, _, inside = model.partition(":")
    if _HUB_NAME.fullmatch(hub):
        return (hub, inside) if inside else (model, None)
    place, _, name = model.rpartition(":")
    if not place or not name or re.search(r"[/\\]", name):  # as what follows a drive's
        return model, None
    is_path = re.search(r"[/\\]", place) or place in {".", "..", "~"}
    if is_path or any(form.fullmatch(name) for form in _FORMS):
        return place, name
    return model, None


def _canonical(quant: str) -> str:
    return quant.upper().replace("FP16", "F16").replace("FP32", "F32")


def _base(name: str) -> str:
    """Return what the names of one model's quantizations have in common."""
    text = stem(name)
    for form in _FORMS:
        text = form.sub("", text)
    return re.sub(r"[\W_]+", "", text).lower()


def _rank(name: str) -> tuple[int, bool, str]:
    quant = quant_of(name)
    plain = quant.removeprefix("UD-")
    place = _ORDER.index(plain) if plain in _ORDER else len(_ORDER) + (not quant)
    return place, quant != plain, quant


def _wished(models: list[str], wanted: str) -> str:
    text = wanted.replace("\\", "/").strip()
    low, quant = text.lower(), _canonical(text)
    same_path = [name for name in models if name.replace("\\", "/").lower() == low]
    same_stem = [name for name in models if stem(name).lower() == stem(text).lower()]
    same_quant = [name for name in models if quant_of(name) == quant]
    # The publisher's own mixtures are often asked for without the prefix.
    near_quant = [name for name in models if quant_of(name) == f"UD-{quant}"]
    for found in (same_path, same_stem if "/" not in text else [], same_quant, near_quant):
        if found:
            return _only(found, wanted)
    raise ModelAccessError(
        f"There is no {wanted!r} among the GGUF files: {_listed(_short(models))}.",
        hint=_hint(_short(models)[0]),
    )


def _only(found: list[str], wanted: str) -> str:
    if len(found) > 1:
        raise ModelAccessError(
            f"{wanted!r} could be any of these GGUF files: {_listed(found)}.",
            hint=_hint(stem(found[0]) if len(set(map(stem, found))) > 1 else found[0]),
        )
    return found[0]


def _short(models: list[str]) -> list[str]:
    """Return the shortest names that tell the models apart: quantizations, else stems."""
    quants = [quant_of(name) for name in models]
    return quants if all(quants) and len(set(quants)) == len(quants) else models


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    rest = f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else ""
    return ", ".join(known[:_MOST_LISTED]) + rest


def _hint(name: str) -> str:
    return f"Write the one you mean after a colon, such as :{name}."
