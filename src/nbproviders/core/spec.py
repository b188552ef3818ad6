"""Names of models: `ModelSpec`, the reference as written, and `ResourceKey`, what it loads.

A reference reads ``provider:model?option=value&…``. It is normalised (provider in lower case, options
typed and sorted) and compared as text. A `ResourceKey` adds what decides what is loaded; residency
goes by it.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote

from nbproviders.errors import ConfigurationError

_SECRET_NAME = re.compile(r"(?i)(^|_)(api_?key|token|secret|password|authorization|credentials?)$")
_SECRET_VALUE = re.compile(r"^(sk|hf|gsk|ghp|xox[abp])[-_][A-Za-z0-9_-]{8,}$")
_END_BLANKS = re.compile(r"^\s+|\s+$")
_PROCESS_KEY = secrets.token_bytes(32)


def is_secret(name: str, value: object = None) -> bool:
    """Whether an option of this name, or with this value, must not be shown or written down."""
    return bool(
        _SECRET_NAME.search(name) or (isinstance(value, str) and _SECRET_VALUE.match(value))
    )


def holds_secret(name: str, value: object) -> bool:
    """Whether an option is a secret, or has one anywhere inside."""
    if is_secret(name, value):
        return True
    if isinstance(value, Mapping):
        return any(holds_secret(str(k), v) for k, v in value.items())
    return isinstance(value, (list, tuple)) and any(holds_secret("", v) for v in value)


def secret_digest(value: object) -> str:
    """Return a stand-in for a secret: equal for equal secrets in this process, useless elsewhere."""
    text = json.dumps(value, default=str).encode()
    return "secret:" + hmac.new(_PROCESS_KEY, text, hashlib.sha256).hexdigest()[:16]


@dataclass(frozen=True)
class ModelSpec:
    """A model reference as written, normalised.

    Parameters
    ----------
    provider
        Name of the provider, lower case.
    model
        A Hub id, path, alias or service's model name: whatever the provider takes.
    options
        ``(name, value)`` pairs, sorted; values are JSON values.

    Examples
    --------
    >>> str(ModelSpec.parse("Echo:echo?seed=07&delay_s=0.50", known=("echo",)))
    'echo:echo?delay_s=0.5&seed=07'
    >>> ModelSpec.of("echo", "echo", {"stop": ["a", "b"]}).text
    'echo:echo?stop=["a","b"]'
    """

    provider: str
    model: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, provider: str, model: str, options: Mapping[str, Any] | None = None) -> ModelSpec:
        """Return the reference to a model with options, checked and normalised.

        Raises
        ------
        ConfigurationError
            For an empty model name, or a secret among the options.
        """
        if not isinstance(model, str) or not model.strip():
            raise ConfigurationError(
                f"A model needs a name, not {model!r}", hint='For example "transformers:demo-m".'
            )
        chosen = options or {}
        for name, value in chosen.items():
            if holds_secret(name, value):
                raise ConfigurationError(
                    f"The option {name!r} of model {model!r} is a secret; a model reference is shown "
                    "in tables and files.",
                    hint=f"Give it to the provider: nbp.create_provider({provider!r}, {name}=…).",
                )
        return cls(provider.lower(), model, tuple(sorted(chosen.items())))

    @classmethod
    def parse(cls, text: str, known: Collection[str]) -> ModelSpec:
        """Return the reference that a text means.

        Parameters
        ----------
        text
            ``provider:model?option=value&…``.
        known
            Names of the providers that may stand before the first colon.

        Raises
        ------
        ConfigurationError
            If no known provider stands there, or an option cannot be read.
        """
        __tracebackhide__ = True
        if not isinstance(text, str):
            raise ConfigurationError(
                f"A model reference is a str, not {type(text).__name__}: {text!r:.60}",
                hint='For example "transformers:demo-m".',
            )
        provider, colon, rest = text.strip().partition(":")
        if not colon or provider.lower() not in known:
            wrong = f"Unknown provider {provider!r}" if colon else "No provider is named"
            guess = f"{did_you_mean(provider, known)} ".lstrip() if colon else ""
            raise ConfigurationError(
                # Not its options: a key may stand there, which is refused further on.
                f"{wrong} in the model reference {text.partition('?')[0]!r}.",
                hint=f"{guess}Write 'provider:model', with one of: {', '.join(sorted(known))}.",
            )
        model, options = split_options(rest)
        return cls.of(provider, model, options)

    @cached_property
    def text(self) -> str:
        """The normalised reference."""
        return f"{self.provider}:{self.name}"

    @cached_property
    def name(self) -> str:
        """Model and options, without the provider: what ``provider.model()`` takes."""
        query = "&".join(f"{name}={_write(value)}" for name, value in self.options)
        model = self.model.replace("%", "%25").replace("?", "%3F")
        model = _END_BLANKS.sub(lambda blanks: quote(blanks[0]), model)
        return f"{model}?{query}" if query else model

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelSpec) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def did_you_mean(name: str, known: Iterable[str], alike: float = 0.75) -> str:
    """Return the question whether another name was meant; empty if none is so much alike, from 0 to 1."""
    near = difflib.get_close_matches(name.lower(), list(known), 1, alike)
    return f"Did you mean {near[0]!r}?" if near else ""


def split_options(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``model?option=value&…`` into the model's name and typed options.

    Raises
    ------
    ConfigurationError
        For an option without ``=``, or given twice.
    """
    model, mark, query = text.partition("?")
    options: dict[str, Any] = {}
    for part in query.split("&") if mark and query else ():
        name, equals, value = part.partition("=")
        if not equals or not name or name in options:
            wrong = "is given twice" if name in options else "is not of the form name=value"
            raise ConfigurationError(
                f"The option {name!r} of {model!r} {wrong}.",
                hint="Options read model?name=value&other=value.",
            )
        options[name] = _read(unquote(value))
    return unquote(model), options


def _read(text: str) -> Any:
    """Return the JSON value that a text means; what is not JSON is the text itself."""
    if text.lower() in {"true", "false", "none", "null"}:
        return {"true": True, "false": False}.get(text.lower())
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return text
    return value


def _write(value: Any) -> str:
    if isinstance(value, str) and _read(value) == value:
        text = value
    else:
        text = json.dumps(value, separators=(",", ":"), sort_keys=True, default=str)
    written = quote(text, safe='/:,.[]{}"@~ +*()!$;\\')
    return _END_BLANKS.sub(lambda blanks: quote(blanks[0]), written)


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """What is loaded: two references with one key share one model in memory.

    Attributes
    ----------
    origin
        Identity of the provider: its class and canonical constructor arguments.
    model
        The resolved model: after aliases, a real path or a Hub id.
    options
        Load options after defaults, sorted, as JSON text.
    revision
        Commit of a Hub id or digest of local files; empty where neither is known.
    values
        The load options themselves, for whoever loads; not compared, not shown.
    """

    origin: str
    model: str
    options: str
    revision: str = ""
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """A short name of this key, for file names and rows (16 hexadecimal digits)."""
        parts = (self.origin, self.model, self.options, self.revision)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def canonical(value: object) -> str:
    """Return the canonical JSON text of a value, secrets replaced by their digest.

    Raises
    ------
    TypeError
        For a value that has no canonical form (an open file, a client, a function).
    """
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:  # not a number, or infinite
        raise TypeError("a number that JSON cannot write has no canonical form") from None


def _plain(value: object, name: str = "") -> object:
    if name and value is not None and is_secret(name, value):
        return secret_digest(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return secret_digest(value) if is_secret("", value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, str(k)) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(v) for v in value), key=repr)
    if isinstance(value, Iterable) and isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    plain = getattr(value, "__fspath__", None)
    if plain is not None:
        return str(plain())
    # `__canonical__` is ours: a configuration whose dump leaves its secrets out is not equal without them.
    to_dict = next(
        (
            getattr(value, n)
            for n in ("__canonical__", "to_dict", "model_dump")
            if hasattr(value, n)
        ),
        None,
    )
    if to_dict is not None and not isinstance(value, type):
        return {
            "": type(value).__name__,
            **{str(k): _plain(v, str(k)) for k, v in to_dict().items()},
        }
    text = str(value)
    # torch.dtype, torch.device and enum members print their whole identity.
    if type(value).__module__.partition(".")[0] == "torch" and "object at" not in text:
        return text
    raise TypeError(f"{type(value).__name__} has no canonical form")
