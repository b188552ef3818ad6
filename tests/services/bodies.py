"""Judging request bodies by a type that somebody else wrote: an SDK's parameters, or a published schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator


@dataclass(frozen=True)
class Fault:
    """What is wrong with a body: where (``messages.0.role``), of what kind, and in words.

    `expected` is the name of a type, or the values that would do; `given` is what was there instead.
    """

    field: str
    kind: Literal["unknown", "missing", "wrong"]
    message: str
    expected: str | tuple[str, ...] = ""
    given: Any = None


class Judge:
    """Tells what is wrong with a body, as strictly as JSON is: no number in a text, no unknown field.

    The SDKs type lists as iterables, which pydantic would validate only when they are read, and which a
    text is too; here they are lists.
    """

    def __init__(self, kind: Any) -> None:
        self._validator = SchemaValidator(_lists(TypeAdapter(kind).core_schema))

    def fault(self, body: Any) -> Fault | None:
        """Return the fault that is nearest to what the body means to be, or None."""
        try:
            self._validator.validate_json(json.dumps(body), strict=True, extra="forbid")
        except ValidationError as error:
            return _nearest(error, body)
        return None


def _lists(schema: Any) -> Any:
    """Return a schema with a list wherever it has a generator."""
    if isinstance(schema, Mapping):
        made = {name: _lists(value) for name, value in schema.items()}
        return {**made, "type": "list"} if made.get("type") == "generator" else made
    if isinstance(schema, list | tuple):
        return type(schema)(_lists(each) for each in schema)
    return schema


def _nearest(error: ValidationError, body: Any) -> Fault:
    """Return one error: of a union's branches, that of the branch which the body's own tag names."""
    errors = error.errors(include_url=False)
    tagged = {each["loc"][:-1] for each in errors if _is_tag(each)}
    near = [each for each in errors if each["loc"][:-1] not in tagged] or errors
    # of what is left, the deepest; an unknown field tells more than another branch's missing one
    chosen = max(near, key=lambda each: (each["type"] == "extra_forbidden", len(each["loc"])))
    name, message, given = _name(chosen, body), chosen["msg"], chosen["input"]
    if chosen["type"] == "extra_forbidden":
        return Fault(name, "unknown", message, given=given)
    if chosen["type"] == "missing":
        return Fault(name, "missing", message)
    if chosen["type"] != "literal_error":
        return Fault(name, "wrong", message, chosen["type"].removesuffix("_type"), given)
    same = [each for each in near if each["type"] == "literal_error" and _name(each, body) == name]
    values = tuple(dict.fromkeys(str(each["ctx"]["expected"]) for each in same))
    return Fault(name, "wrong", f"Input should be {' or '.join(values)}", values, given)


def _name(error: Any, body: Any) -> str:
    return ".".join(str(part) for part in _place(error["loc"], body))


def _is_tag(error: Any) -> bool:
    return error["type"] == "literal_error" and error["loc"][-1] in ("role", "type")


def _place(location: tuple[int | str, ...], body: Any) -> list[int | str]:
    """Return an error's path within the body, without the names of the branches that were tried."""
    path: list[int | str] = []
    at = body
    for count, part in enumerate(location):
        named = isinstance(at, Mapping) and (part in at or count == len(location) - 1)
        if named or (isinstance(at, list) and isinstance(part, int)):
            path.append(part)
            at = at.get(part) if isinstance(at, Mapping) else at[part]
    return path
