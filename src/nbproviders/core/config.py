"""`ProviderConfig`: how a service is reached. Typed and bounded; its key never shows itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from nbproviders.errors import ConfigurationError

MASK = "****"


class Secret(str):
    """A text that may be used but not shown: its ``repr`` is masked.

    In an f-string it is itself, as a header needs it; in a container or a log's ``%r`` it is ``****``.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class ProviderConfig(BaseModel):
    """What a provider of a service is made of.

    Fields can be assigned (each is checked again); there are no others.

    Parameters
    ----------
    name
        Of the provider, for logs and tables.
    api_key
        Kept out of ``repr``, dumps and errors. A usable ``str``: ``f"Bearer {config.api_key}"``.
    base_url
        Where the service is: ``https://…`` without user and password.
    timeout
        Seconds for each phase of a request, above 0, at most 3600.
    max_retries
        Attempts after the first, 0 to 20.
    verify_ssl
        Whether certificates are checked.
    model
        The model's name at the service.
    scope, folder_id
        What GigaChat and YandexGPT ask for besides.

    Raises
    ------
    ConfigurationError
        For an unknown field, a wrong type or a value out of bounds; never with the key in it.

    Examples
    --------
    >>> config = ProviderConfig(name="mine", api_key="abc", model="large")
    >>> f"Bearer {config.api_key}", [config.api_key], "abc" in repr(config)
    ('Bearer abc', ['****'], False)
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, hide_input_in_errors=True, protected_namespaces=()
    )

    name: str = Field(min_length=1)
    api_key: Secret | None = Field(default=None, repr=False, exclude=True)
    base_url: str | None = None
    timeout: float = Field(default=60.0, gt=0, le=3600)
    max_retries: int = Field(default=3, ge=0, le=20)
    verify_ssl: bool = True
    model: str | None = None
    scope: str | None = None
    folder_id: str | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, values), hint=_HINT) from None

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, {name: value}), hint=_HINT) from None

    def __canonical__(self) -> dict[str, Any]:
        """Return all fields, the key among them, for `nbproviders.core.spec.canonical`, which digests it."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @field_validator("base_url")
    @classmethod
    def _a_plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _port_fits(parts):
            raise ValueError("must be a URL such as https://api.example.com/v1")
        if parts.username or parts.password:
            raise ValueError("must not hold a user or password; give api_key")
        return value.rstrip("/")


def _port_fits(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


_HINT = "Fields: " + ", ".join(ProviderConfig.model_fields) + "."


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Say in one line which field was wrong and why; values are told only where none can be secret."""
    parts = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        field = str(detail["loc"][0]) if detail["loc"] else "configuration"
        if detail["type"] in ("extra_forbidden", "no_such_attribute"):
            parts.append(f"unknown field {field!r}")
            continue
        told = "" if field in ("api_key", "base_url") else f"={values.get(field)!r}"
        parts.append(f"{field}{told}: {detail['msg'].removeprefix('Value error, ')}")
    return "Wrong provider configuration: " + "; ".join(parts)
