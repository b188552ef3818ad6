"""Texts in which each token stands on a colour that tells how likely a model found it.

One escaped block of HTML with inline styles; the tokens again as a table, for those who see no colours; plain
text for terminals. Knows tokens, never models.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nbproviders.core.completion import Completion
from nbproviders.core.params import Messages
from nbproviders.core.tokens import Score, Token, token_frame
from nbproviders.errors import InvalidRequestError
from nbproviders.render.tables import Column, as_html, as_text, readable, visible

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
# Least probability and style of each step, likeliest first. The colour is a veil over whatever ground the
# page has, thin enough that the page's own ink keeps a contrast of 4.5 to 1, light or dark. The two least
# likely steps are underlined as well, for those who cannot tell the veils apart.
STEPS = (
    (0.9, "margin-right:1px;background:#d55e000a"),
    (0.5, "margin-right:1px;background:#d55e0026"),
    (0.2, "margin-right:1px;background:#d55e0042"),
    (0.05, "margin-right:1px;background:#d55e005e"),
    (0.01, "margin-right:1px;background:#d55e0079;border-bottom:2px dotted"),
    (0.0, "margin-right:1px;background:#d55e0094;border-bottom:2px solid"),
)
_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}
_UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}  # general categories
# Blank or of no width, though their category does not say so (Unicode, Default_Ignorable_Code_Point), and
# the marks themselves: one that a model wrote is no blank.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
    + "".join(_MARKS.values())
)
_LABEL_CHARACTERS = 30
_TOKEN_CHARACTERS = 200  # of one token in the text
_PROMPT_CHARACTERS = 400
# Of all coloured text, and of all tables, which take 1 kB a row: a cell's output stays below 1 MB.
_MOST_BYTES, _MOST_ROWS = 780_000, 100
_MUTED = "opacity:.75"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9;margin:4px 0"
_COLUMNS = [
    Column("place", "#", "d"),
    Column("token", "token"),
    Column("id", "id", "d"),
    Column("probability", "probability", ".3g"),
    Column("logprob", "log-probability", ".3f"),
]


def plot_tokens(
    scored: Completion | Score | Sequence[Completion | Score] | Mapping[str, Completion | Score],
    *,
    prompt: str | Messages | None = None,
) -> TokenView:
    """Return texts that show how likely each of their tokens was.

    Parameters
    ----------
    scored
        What ``m.generate(prompt, logprobs=True)`` or ``m.score(prompt, continuation)`` returned; or several,
        as a list (each is labelled with its model) or by label.
    prompt
        What stood before; shown in front of each text, without colour.

    Raises
    ------
    InvalidRequestError
        If there are no token probabilities in what was given.
    """
    pairs = [(label or one.spec, _score(one)) for label, one in listed(scored, _is_scored)]
    before = "" if prompt is None else readable(prompt)
    # The turns of a chat stand on lines of their own.
    return TokenView(unique(pairs), before if isinstance(prompt, str | None) else f"{before}\n")


class TokenView:
    """Texts with the probability of each of their tokens, for a notebook or a terminal.

    Attributes
    ----------
    scores
        The texts by label.
    prompt
        What stood before them.
    """

    def __init__(self, scores: Mapping[str, Score], prompt: str = "") -> None:
        self.scores = dict(scores)
        self.prompt = prompt

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each token: ``token``, ``id``, ``probability``, ``logprob``.

        Where there are several texts, ``label`` tells which it is from.
        """
        import pandas as pd

        frames = [token_frame(score.tokens, score.spec) for score in self.scores.values()]
        if len(frames) == 1:
            return frames[0]
        for label, frame in zip(self.scores, frames, strict=True):
            frame.insert(0, "label", label)
            frame.attrs.clear()
        return pd.concat(frames, ignore_index=True)

    def as_html(self) -> str:
        """Return all texts as one block of HTML with inline styles."""
        texts = "".join(self._html(*item) for item in self.scores.items())
        # Without these classes JupyterLab and nbconvert would take two dollars for the ends of a formula.
        return (
            '<div class="tex2jax_ignore mathjax_ignore" style="max-width:60em;margin:4px 0">'
            f"{_legend()}{texts}</div>"
        )

    def as_text(self, width: int = 100) -> str:
        """Return a plain table of the tokens of each text that fits `width` characters."""
        return "\n\n".join(self._text(*item, width) for item in self.scores.items())

    @property
    def _table_rows(self) -> int:
        return max(1, _MOST_ROWS // len(self.scores))

    def _text(self, label: str, score: Score, width: int) -> str:
        rows, more = _rows(score), len(score.tokens) - self._table_rows
        lines = [visible(label), _totals(score), as_text(rows[: self._table_rows], _COLUMNS, width)]
        return "\n".join([*lines, f"({_left_out(more)})"] if more > 0 else lines)

    def _html(self, label: str, score: Score) -> str:
        written, shown = _coloured(score.tokens, _MOST_BYTES // len(self.scores))
        more = len(score.tokens) - shown
        caption = f"Tokens of {label}, in order"
        table = as_html(_rows(score), _COLUMNS, caption, self._table_rows)
        # dir=auto: a text of a right-to-left script starts at the right.
        return (
            f'<div style="margin-top:10px;font-weight:600">{html.escape(visible(label))}</div>'
            f'<div style="{_MUTED}">{_totals(score)}</div>'
            f'<div dir="auto" style="{_TEXT}">{_before(self.prompt)}{written}</div>'
            + (f'<div style="{_MUTED}">{_left_out(more)}</div>' if more else "")
            + f'<details><summary style="cursor:pointer">Tokens as a table</summary>{table}</details>'
        )

    def _repr_html_(self) -> str:
        return self.as_html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.as_html(), "text/plain": self.as_text()}

    def __repr__(self) -> str:
        return self.as_text()


def mark(char: str) -> str:
    """Return a character as it is, or what stands for it where it could not be seen."""
    if char in _MARKS:
        return _MARKS[char]
    if char in _BLANK or unicodedata.category(char) in _UNSEEN:
        return code(char)
    return char


def code(char: str) -> str:
    """Return the code point of a character, in the form that `visible` writes."""
    return f"⟨U+{ord(char):04X}⟩"


def spelt(text: str, as_seen: Callable[[str], str] = mark) -> str:
    r"""Return a token's text on one line with nothing unseen in it.

    Blanks and breaks become marks. What has no width or no shape becomes its code, joiners of emoji and
    of scripts too: two tokens that differ shall look different.

    Examples
    --------
    >>> spelt(" two\n"), spelt("a\u200db"), spelt("")
    ('␣two↵', 'a⟨U+200D⟩b', '⟨empty⟩')
    """
    # An accent that begins a token has no letter to stand on.
    lead = "◌" if text and unicodedata.category(text[0]) in ("Mn", "Me", "Mc") else ""
    return lead + "".join(map(as_seen, text)) or "⟨empty⟩"


def short(text: str, limit: int = _LABEL_CHARACTERS, as_seen: Callable[[str], str] = mark) -> str:
    """Return a token's text as `spelt`, its middle left out when long."""
    if len(text) <= limit:
        whole = spelt(text, as_seen)
        if len(whole) <= limit:
            return whole
    room = (limit - 1) // 2
    head = within(map(as_seen, text[:room]), room)
    tail = within(map(as_seen, reversed(text[-room:])), room)
    return f"{''.join(head)}…{''.join(reversed(tail))}"


def within(units: Iterable[str], room: int) -> list[str]:
    """Return the first units that fit, so that no code is cut in two."""
    kept: list[str] = []
    for unit in units:
        room -= len(unit)
        if room < 0:
            break
        kept.append(unit)
    return kept


def percent(probability: float) -> str:
    """Return a probability in words; only what is certain or impossible reads 100.0% or 0.0%."""
    if 0 < probability < 0.0005:
        return "<0.1%"
    if 0.9995 <= probability < 1:
        return ">99.9%"
    return f"{probability:.1%}"


def listed(given: object, is_one: Any) -> list[tuple[str, Any]]:
    """Return what a user gave to be shown, each with its label; a label of none is empty.

    Raises
    ------
    InvalidRequestError
        If it is empty, or `is_one` refuses one.
    """
    if isinstance(given, Mapping):
        pairs = [(str(label), one) for label, one in given.items()]
    else:
        pairs = [("", one) for one in (given if isinstance(given, (list, tuple)) else [given])]
    for _, one in pairs:
        is_one(one)
    if not pairs:
        is_one(given)
    return pairs


def unique(pairs: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Return values by label; a label met again is numbered."""
    found: dict[str, _T] = {}
    for given, value in pairs:
        label, number = given or "model", 2
        while label in found:
            label, number = f"{given or 'model'} ({number})", number + 1
        found[label] = value
    return found


def _is_scored(one: object) -> None:
    if isinstance(one, Completion | Score) and one.tokens:
        bad = [t for t in one.tokens if math.isnan(t.logprob)]
        if bad:
            raise InvalidRequestError(
                f"The token {short(bad[0].text)} has no probability: its log-probability is nan.",
                hint="The model computed no number; load it with a wider dtype, such as float32.",
            )
        return
    if isinstance(one, Score):
        what, hint = "The score is of an empty text", "Score some text: m.score(prompt, text)"
    elif isinstance(one, Completion):
        what = "The completion carries no token probabilities"
        hint = "Ask for them: m.generate(prompt, logprobs=True)"
    else:
        what = f"A {type(one).__name__} has no token probabilities"
        hint = "Give what m.generate(prompt, logprobs=True) or m.score(prompt, text) returned"
    raise InvalidRequestError(f"{what}.", hint=f"{hint}.")


def _score(one: Completion | Score) -> Score:
    return one if isinstance(one, Score) else Score(one.tokens, one.spec)


def _written(text: str) -> str:
    """Return a token as it stands in its text: blanks between words stay, breaks are shown and break."""
    if not text.strip(" "):
        return spelt(text)
    more = len(text) - _TOKEN_CHARACTERS
    marks = (" " if c == " " else "↵\n" if c == "\n" else mark(c) for c in text[:_TOKEN_CHARACTERS])
    return "".join(marks) + (f"… {more:,} more characters" if more > 0 else "")


def _coloured(tokens: Sequence[Token], room: int) -> tuple[str, int]:
    """Return tokens as HTML of at most so many bytes, and how many there was room for."""
    parts: list[str] = []
    for token in tokens:
        told = (
            f"{short(token.text)} \u00b7 id {token.id} \u00b7 {percent(token.probability)}"
            f" \u00b7 log {token.logprob:.3f}"
        )
        part = (
            f'<span style="{_style(token.probability)}" title="{html.escape(told)}">'
            f"{html.escape(_written(token.text))}</span>"
        )
        room -= len(part.encode())
        if room < 0:
            break
        parts.append(part)
    return "".join(parts), len(parts)


def _style(probability: float) -> str:
    return next(style for least, style in STEPS if probability >= least)


def _legend() -> str:
    tops = (1.0, *(least for least, _ in STEPS))
    words = [
        f"{least:.0%}\u2013{top:.0%}" if least else f"below {top:.0%}"
        for top, (least, _) in zip(tops, STEPS, strict=False)
    ]
    swatches = " ".join(
        f'<span style="{style};padding:1px 7px;white-space:nowrap">{word}</span>'
        for word, (_, style) in zip(words, STEPS, strict=True)
    )
    return f'<div style="line-height:1.9">Probability of each token: {swatches}</div>'


def _before(prompt: str) -> str:
    if not prompt:
        return ""
    cut = prompt[-_PROMPT_CHARACTERS:]
    shown = html.escape(visible(("…" if len(cut) < len(prompt) else "") + cut))
    return f'<span style="{_MUTED}">{shown}</span>'


def _totals(score: Score) -> str:
    try:
        perplexity = score.perplexity
    except OverflowError:  # a mean below -709, as services send -9999 for "never"
        perplexity = math.inf
    n = len(score.tokens)
    return (
        f"{n:,} token{'' if n == 1 else 's'}, total log-probability {score.total:.2f}, "
        f"perplexity {perplexity:,.4g}"
    )


def _left_out(n: int) -> str:
    return f"{n:,} more {'token is' if n == 1 else 'tokens are'} not shown; .frame has them all."


def _rows(score: Score) -> list[dict[str, Any]]:
    return [
        {
            "place": place,
            "token": short(token.text, 2 * _LABEL_CHARACTERS),
            "id": token.id,
            "probability": token.probability,
            "logprob": token.logprob,
        }
        for place, token in enumerate(score.tokens, 1)
    ]
