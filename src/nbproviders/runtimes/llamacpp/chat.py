"""Chat templates: the one in the GGUF file's metadata (Jinja), or one that llama.cpp knows by name."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from nbproviders.core.params import Message
from nbproviders.errors import ConfigurationError, InvalidRequestError, foreign
from nbproviders.runtimes.llamacpp.native import library


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
        self._name = _builtin(chat_format) if chat_format else ""
        self._source, self._begin, self._end = source, begin, end
        self._formatter: Any = None

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
        import jinja2

        try:
            return str(self._jinja()(messages=[dict(turn) for turn in turns]).prompt)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            raise InvalidRequestError(
                f"The chat template of {spec} does not take these messages: {foreign(error)}",
                hint="Try other roles, or plain text: m.generate(text, raw=True), or ?chat_format=chatml.",
            ) from None

    def _jinja(self) -> Any:
        if self._formatter is None:
            from llama_cpp.llama_chat_format import Jinja2ChatFormatter

            self._formatter = Jinja2ChatFormatter(
                template=self._source, eos_token=self._end, bos_token=self._begin
            )
        return self._formatter

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


def _builtin(name: str) -> str:
    """Return llama.cpp's name of a format; llama-cpp-python's spelling ``llama-2`` is taken too."""
    known = builtin_formats()
    for spelling in (name, name.lower(), name.lower().replace("-", "")):
        if spelling in known:
            return spelling
    raise ConfigurationError(
        f"chat_format={name!r} is not one that llama.cpp knows.",
        hint=f"Leave it out for the file's own template, or choose: {', '.join(known)}.",
    )
