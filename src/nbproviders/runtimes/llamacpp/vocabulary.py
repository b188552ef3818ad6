"""From text to tokens and back, as a GGUF file's vocabulary has it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

from nbproviders.runtimes.llamacpp.native import library

# Byte-pair vocabularies cut text by a regular expression. For many llama.cpp's engine calls itself for
# each character of a run: at about 27,500 it overflows the stack and ends the process. What makes up a run
# differs, but is always among these: no blank and no punctuation of ASCII; or no letter and no digit.
_LONGEST_RUN = 8_000
_RUNS = re.compile(r"[^\s!-/:-@\[-`{-~]+|[\W_]+")


class Vocabulary:
    """The vocabulary of a loaded model. Valid while the model is.

    Parameters
    ----------
    model
        Pointer to the model.

    Attributes
    ----------
    size
        Tokens in it.
    eos_ids
        Those that end a text.
    beginning
        The token that begins one; None if there is none.
    """

    def __init__(self, model: Any) -> None:
        native = library()
        self._native = native
        self._vocab = native.llama_model_get_vocab(model)
        self.size = int(native.llama_vocab_n_tokens(self._vocab))
        is_end = native.llama_vocab_is_eog
        self.eos_ids = frozenset(i for i in range(self.size) if is_end(self._vocab, i))
        begin = int(native.llama_vocab_bos(self._vocab))
        self.beginning = begin if 0 <= begin < self.size else None
        end = int(native.llama_vocab_eos(self._vocab))
        self.end = end if 0 <= end < self.size else None
        self._by_regex = native.llama_vocab_type(self._vocab) == native.LLAMA_VOCAB_TYPE_BPE
        self._buffer = ctypes.create_string_buffer(4096)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of a text; names of special tokens in it are those tokens.

        Parameters
        ----------
        text
            What cannot be written in UTF-8 (a lone surrogate) becomes ``?``: native code ends the process at
            bytes that are none.
        special
            Add what the model wants around a text, such as its beginning token.
        """
        pieces = _short_runs(text) if self._by_regex and len(text) > _LONGEST_RUN else [text]
        first = self._encode(pieces[0], special)
        return [*first, *(token for piece in pieces[1:] for token in self._encode(piece, False))]

    def _encode(self, text: str, special: bool) -> list[int]:
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 8
        tokens = (ctypes.c_int32 * room)()
        count = self._native.llama_tokenize(self._vocab, raw, len(raw), tokens, room, special, True)
        if count < 0:
            tokens = (ctypes.c_int32 * -count)()
            count = self._native.llama_tokenize(
                self._vocab, raw, len(raw), tokens, -count, special, True
            )
        return list(tokens[:count])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        if not ids:
            return ""
        if self._by_regex:
            # Not by llama_detokenize: for these vocabularies it also takes blanks before commas away.
            return b"".join(map(self._plain, ids)).decode("utf-8", "replace")
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        size = self._detokenize(tokens)
        if size < 0:
            self._buffer = ctypes.create_string_buffer(-size)
            size = self._detokenize(tokens)
        return self._buffer.raw[:size].decode("utf-8", "replace")

    def _detokenize(self, tokens: Any) -> int:
        room = len(self._buffer)
        return int(
            self._native.llama_detokenize(
                self._vocab, tokens, len(tokens), self._buffer, room, False, False
            )
        )

    def shown(self, token: int) -> str:
        """Return what a token writes in the middle of a text; a piece of a character as ``<0xE2>``."""
        raw = self.piece(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token, special ones by their names."""
        return self._piece(token, True)

    def _plain(self, token: int) -> bytes:
        return self._piece(token, False)

    def _piece(self, token: int, special: bool) -> bytes:
        room = len(self._buffer)
        size = self._native.llama_token_to_piece(self._vocab, token, self._buffer, room, 0, special)
        if size < 0:
            self._buffer = ctypes.create_string_buffer(-size)
            return self._piece(token, special)
        return self._buffer.raw[:size]


def _short_runs(text: str) -> list[str]:
    """Return a text in pieces, cut only within runs of like characters that are too long."""
    cuts = [0]
    for found in _RUNS.finditer(text):
        if found.end() - found.start() > _LONGEST_RUN:
            cuts.extend(range(found.start() + _LONGEST_RUN, found.end(), _LONGEST_RUN))
    return [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
