"""What a caller may ask of a generation: parameters, messages, and the request that carries both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Required, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nbproviders.errors import InvalidRequestError

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a chat."""

    role: Required[str]
    content: Required[str]


Messages = Sequence[Mapping[str, str]]


class GenerationParams(BaseModel):
    r"""How to generate. ``None`` leaves a choice to the model (see each field).

    Parameters
    ----------
    temperature
        0 (greedy) to 2. None: the model's own generation config, greedy if it has none.
    max_tokens
        Most new tokens, at least 1. None: until the model ends or its context is full.
    top_p
        Share of probability to sample from, above 0, at most 1. None: all of it.
    stop
        Strings that end the text; they are cut off.
    seed
        Of the sampling, 0 or more. None: a fresh one, recorded in the completion.

    Raises
    ------
    InvalidRequestError
        For a value out of bounds or an unknown field.

    Examples
    --------
    >>> GenerationParams(temperature=0, stop="\n").stop
    ('\n',)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: tuple[str, ...] = ()
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidRequestError(_explain(error, values), hint=_HINT) from None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list_of_one(cls, value: object) -> object:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop string would end every text at once")
        return value

    def merged(self, **overrides: Any) -> GenerationParams:
        """Return these parameters with some replaced; validated anew."""
        if not overrides:
            return self
        return GenerationParams(**{**self.model_dump(), **overrides})

    def given(self) -> dict[str, Any]:
        """Return only what was asked for: no None, no empty stop."""
        # Not by a dump, which takes six times as long: it is asked for at each call.
        fields = self.__dict__.items()
        return {name: value for name, value in fields if value is not None and value != ()}


_HINT = (
    "temperature is 0 to 2, max_tokens at least 1, top_p above 0 and at most 1, "
    "stop one or more strings, seed 0 or more."
)


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Say in one line which field was wrong, what it was, and why."""
    parts = []
    for detail in error.errors(include_url=False, include_context=False):
        field = str(detail["loc"][0]) if detail["loc"] else "parameters"
        if detail["type"] == "extra_forbidden":
            known = ", ".join(GenerationParams.model_fields)
            parts.append(f"unknown parameter {field!r} (known: {known})")
        else:
            parts.append(f"{field}={values.get(field)!r:.60}: {detail['msg']}")
    return "Cannot generate with " + "; ".join(parts)


_UNSAID = GenerationParams()


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to generate, as the waist carries it.

    Attributes
    ----------
    prompt
        Text, or the turns of a chat.
    params
        How to generate.
    chat
        Whether a text is put through the chat template as one user turn. None: if there is one.
    whole
        The caller reads only the end: a backend may save itself the chunks between.
    alone
        Never batch it with others, so that its text cannot depend on them.
    logprobs
        Tell each token of the completion with its probability.
    """

    prompt: str | tuple[Message, ...]
    params: GenerationParams = _UNSAID
    chat: bool | None = None
    whole: bool = False
    alone: bool = False
    logprobs: bool = False


def as_request(
    prompt: str | Messages | Request,
    params: GenerationParams | None = None,
    *,
    raw: bool = False,
    whole: bool = False,
    logprobs: bool = False,
    **overrides: Any,
) -> Request:
    """Return what a caller wrote as a `Request`, checked.

    Raises
    ------
    InvalidRequestError
        For a prompt that is neither text nor turns, or a parameter out of bounds.
    """
    if isinstance(prompt, Request):
        same = params is None and not (raw or overrides)
        if same and whole <= prompt.whole and logprobs <= prompt.logprobs:
            return prompt
        base = prompt.params if params is None else params
        chat = False if raw else prompt.chat
        return replace(
            prompt,
            params=base.merged(**overrides),
            chat=chat,
            whole=whole or prompt.whole,
            logprobs=logprobs or prompt.logprobs,
        )
    if params is not None and not isinstance(params, GenerationParams):
        if not isinstance(params, Mapping):
            raise InvalidRequestError(
                f"params must be GenerationParams, not {type(params).__name__}",
                hint="Write params=nbp.GenerationParams(temperature=0), or temperature=0 itself.",
            )
        params = GenerationParams(**params)
    merged = _of(overrides) if params is None else params.merged(**overrides)
    chat = False if raw else None
    return Request(_checked(prompt), merged, chat, whole, logprobs=logprobs)


def _of(values: dict[str, Any]) -> GenerationParams:
    """Return parameters; those of the last calls are made once, for a loop asks alike again and again."""
    try:
        return _remembered(**values)
    except TypeError:  # a list of stop strings cannot be looked up
        return GenerationParams(**values)


@lru_cache(maxsize=256, typed=True)
def _remembered(**values: Any) -> GenerationParams:
    return GenerationParams(**values) if values else _UNSAID


def _checked(prompt: object) -> str | tuple[Message, ...]:
    if isinstance(prompt, str):
        return str(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise InvalidRequestError(
            f"A prompt is a str or a list of messages, not {type(prompt).__name__}: {prompt!r:.60}",
            hint='Write "text", or [{"role": "user", "content": "text"}].',
        )
    if not prompt:
        raise InvalidRequestError(
            "An empty list of messages has nothing to answer.",
            hint='Write [{"role": "user", "content": "text"}].',
        )
    return tuple(_message(turn) for turn in prompt)


def _message(turn: object) -> Message:
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise InvalidRequestError(
            f"A message is a dict with 'role' and 'content', not {turn!r:.80}",
            hint='Write {"role": "user", "content": "text"}.',
        )
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise InvalidRequestError(
            f"Unknown role {role!r} in a message", hint="Roles are " + ", ".join(ROLES) + "."
        )
    if not isinstance(content, str):
        raise InvalidRequestError(
            f"The content of a message is text, not {type(content).__name__}: {content!r:.60}"
        )
    return Message(role=role, content=str(content))
