"""Chat templates: the one in the GGUF file's metadata (Jinja), or one that llama.cpp knows by name."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn

from nbproviders.core.params import Message
from nbproviders.errors import ConfigurationError, InvalidRequestError, foreign
from nbproviders.runtimes.llamacpp.native import library

_LONGEST_S = 5.0
_MOST_PARTS = 10_000_000
_MOST_BITS = 10_000
_TICK = "_nbproviders_tick"  # called in each pass of a loop


class Template:
    """Turns the turns of a chat into text.

    Parameters
    ----------
    source
        The file's own template; empty if it has none.
    chat_format
        A name of llama.cpp's built-in templates; wins over the file's.
    begin, end
        The names of the beginning and the end token, which templates write.

    Raises
    ------
    ConfigurationError
        For a name that llama.cpp does not know.
    """

    def __init__(self, source: str, chat_format: str | None, begin: str, end: str) -> None:
        self._name = builtin(chat_format) if chat_format else ""
        self._source, self._begin, self._end = source, begin, end
        self._compiled: Any = None

    def __bool__(self) -> bool:
        return bool(self._name or self._source)

    def render(self, turns: Sequence[Message], spec: str) -> str:
        """Return the text, ending where the assistant's turn begins.

        Raises
        ------
        InvalidRequestError
            If the template refuses these turns, with its reason.
        """
        if self._name:
            return self._render_builtin(turns, spec)
        try:
            return self._render_own(turns)
        except Exception as error:  # the template is the file's code: it may raise anything
            raise InvalidRequestError(
                f"The chat template of {spec} does not take these messages: {foreign(error)}",
                hint="Try other roles, or plain text: m.generate(text, raw=True), or ?chat_format=chatml.",
            ) from None

    def _render_own(self, turns: Sequence[Message]) -> str:
        if self._compiled is None:
            self._compiled = _environment().from_string(self._source)
        end_s = time.monotonic() + _LONGEST_S

        def tick() -> str:
            if time.monotonic() > end_s:
                raise ValueError(f"it takes longer than {_LONGEST_S:g} s")
            return ""

        return str(
            self._compiled.render(
                messages=[dict(turn) for turn in turns],
                bos_token=self._begin,
                eos_token=self._end,
                add_generation_prompt=True,
                raise_exception=_refuse,
                strftime_now=lambda form: datetime.now().strftime(form),
                tools=None,
                tool_choice=None,
                functions=None,
                function_call=None,
                **{_TICK: tick},
            )
        )

    def _render_builtin(self, turns: Sequence[Message], spec: str) -> str:
        native = library()
        # Kept in this frame: the structs hold their addresses alone.
        texts = [
            (turn["role"].encode(), turn["content"].encode("utf-8", "replace").replace(b"\0", b""))
            for turn in turns
        ]
        messages = (native.llama_chat_message * len(texts))(
            *(native.llama_chat_message(role=role, content=content) for role, content in texts)
        )
        room = 2 * sum(len(content) + 64 for _, content in texts) + 256
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            size = native.llama_chat_apply_template(
                self._name.encode(), messages, len(texts), True, buffer, room
            )
            if size <= room:
                break
            room = size
        if size < 0:
            raise InvalidRequestError(
                f"The chat format {self._name!r} of {spec} does not take these messages.",
                hint="Try other roles, or plain text: m.generate(text, raw=True).",
            )
        return buffer.raw[:size].decode("utf-8", "replace")


def builtin_formats() -> list[str]:
    """Return the names of llama.cpp's own chat templates."""
    native = library()
    count = native.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * count)()
    native.llama_chat_builtin_templates(names, count)
    return sorted(name.decode() for name in names if name)


def builtin(name: str) -> str:
    """Return llama.cpp's name of a format; llama-cpp-python's spelling ``llama-2`` is taken too.

    Raises
    ------
    ConfigurationError
        For a name that llama.cpp does not know; the hint lists those it does.
    """
    known = builtin_formats()
    for spelling in (name, name.lower(), name.lower().replace("-", "")):
        if spelling in known:
            return spelling
    raise ConfigurationError(
        f"chat_format={name!r} is not one that llama.cpp knows.",
        hint=f"Leave it out for the file's own template, or choose: {', '.join(known)}.",
    )


def _refuse(reason: object) -> NoReturn:
    raise ValueError(str(reason))


def _environment() -> Any:
    """Return what templates are compiled in: as transformers does it, in a sandbox, and with bounds."""
    from jinja2 import Environment, ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _require_small(operator, left, right)
            return super().call_binop(context, operator, left, right)

    class Generation(ext.Extension):
        """The tag that marks what an assistant wrote, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012  # as the base class has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Bounded(ext.Extension):
        """Has every pass of a loop look at the clock."""

        def filter_stream(self, stream: Any) -> Any:
            return _with_ticks(stream)

    made: Environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, Bounded, ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    return made


def _with_ticks(stream: Any) -> Iterator[Any]:
    """Yield a template's tokens, with a call behind each tag that begins a loop."""
    from jinja2.lexer import Token

    call = ("variable_begin", "{{"), ("name", _TICK), ("lparen", "("), ("rparen", ")")
    before, looping = "", False
    for token in stream:
        yield token
        if token.type == "name" and token.value == "for" and before == "block_begin":
            looping = True
        elif token.type == "block_end" and looping:
            looping = False
            for kind, value in (*call, ("variable_end", "}}")):
                yield Token(token.lineno, kind, value)
        before = token.type


def _require_small(operator: str, left: Any, right: Any) -> None:
    """Refuse products that would fill the memory or never be done."""
    if operator == "**":
        bits = left.bit_length() if isinstance(left, int) else 1
        if bits * right > _MOST_BITS:
            raise ValueError(f"a power of more than {_MOST_BITS} bits")
        return
    for text, times in ((left, right), (right, left)):
        long = hasattr(text, "__len__") and isinstance(times, int)
        if long and len(text) * times > _MOST_PARTS:
            raise ValueError(f"a text or list of more than {_MOST_PARTS} parts")


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)
