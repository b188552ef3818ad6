"""Charts of the tokens that may come next, one model or several side by side.

Tokens are drawn as `nbproviders.render.tokens` spells them; a letter that no installed font has becomes
its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, overload

from nbproviders.core.params import Messages
from nbproviders.errors import InvalidRequestError
from nbproviders.render import charts
from nbproviders.render.charts import FAINT, INK, Picture
from nbproviders.render.tables import readable
from nbproviders.render.tokens import code, listed, mark, percent, short, unique, within

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    Frames = pd.DataFrame | Sequence[pd.DataFrame] | Mapping[str, pd.DataFrame]

# Fonts with letters that matplotlib's own font lacks, as systems and distributions ship them.
_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Segoe UI Symbol",
)
_MOST_ROWS, _FEWEST_ROWS, _MOST_BARS = 40, 10, 60  # what a chart may be high
_PROMPT_CHARACTERS = 56
_MISSING = "≤  not in this model's list, so at most this likely"


@dataclass(frozen=True, slots=True)
class _Ranking:
    """One model's list: probabilities by token, likeliest first.

    A token is its text and how many before it in the list read the same.
    """

    probabilities: dict[tuple[str, int], float]
    ids: dict[tuple[str, int], object]

    @property
    def bound(self) -> float:
        """What a token that is not in the list has at most."""
        return min(self.probabilities.values())


@overload
def plot_next_tokens(
    frames: Frames, *, ax: None = None, k: int | None = None, prompt: str | Messages | None = None
) -> Picture: ...
@overload
def plot_next_tokens(
    frames: Frames, *, ax: Axes, k: int | None = None, prompt: str | Messages | None = None
) -> Axes: ...
def plot_next_tokens(
    frames: Frames,
    *,
    ax: Axes | None = None,
    k: int | None = None,
    prompt: str | Messages | None = None,
) -> Picture | Axes:
    """Draw the tokens that may come next as bars, the likeliest on top.

    Where a model's list lacks a token of another's, a dotted line reaches to the probability that it has at
    most: the least of its list.

    Parameters
    ----------
    frames
        What ``m.next_tokens(prompt)`` returned; or several, as a list or by label.
    ax
        Axes to draw on, which are returned. Default: a figure of its own, which shows itself.
    k
        How many of each model's tokens; default: all. Where that would be too many to look at, the least
        likely are left out and counted.
    prompt
        What they come after; for the title.

    Raises
    ------
    InvalidRequestError
        If a frame is empty, or none of ``next_tokens``.
    """
    if k is not None and (not isinstance(k, Integral) or isinstance(k, bool) or k < 1):
        raise InvalidRequestError(f"k={k!r} is no number of tokens.", hint="Give 1 or more.")
    pairs = [
        (label or str(one.attrs.get("spec", "")), _ranking(one))
        for label, one in listed(frames, _is_frame)
    ]
    lists = unique(pairs)
    every = _union([*lists.values()], k)
    rows = every[: min(_MOST_ROWS, max(_FEWEST_ROWS, _MOST_BARS // len(lists)))]
    left_out = len(every) - len(rows)
    if ax is not None:
        return _drawn(ax, lists, rows, left_out, prompt)
    height = len(rows) * (0.8 if len(lists) == 1 else 0.3 + 0.42 * len(lists))
    own = charts.axes(height + 0.6 * (len(lists) + 1))
    _drawn(own, lists, rows, left_out, prompt)
    return charts.picture(own, _words(lists, rows, prompt))


def _is_frame(one: object) -> None:
    import pandas as pd

    hint = "Give what m.next_tokens(prompt) returned, or several of them."
    if not isinstance(one, pd.DataFrame):
        what = "Nothing" if isinstance(one, Sequence | Mapping) and not one else type(one).__name__
        raise InvalidRequestError(f"{what} cannot be drawn as next tokens.", hint=hint)
    missing = [name for name in ("token", "probability") if name not in one]
    if missing:
        raise InvalidRequestError(f"The frame has no column {' and no '.join(missing)}.", hint=hint)
    if one.empty:
        raise InvalidRequestError("The frame has no rows: there are no next tokens.", hint=hint)
    for value in one["probability"]:
        if not _is_probability(value):
            raise InvalidRequestError(f"{value!r} is no probability from 0 to 1.", hint=hint)


def _is_probability(value: object) -> bool:
    try:
        return 0 <= float(value) <= 1 + 1e-6  # type: ignore[arg-type]  # whatever a frame holds
    except (TypeError, ValueError):
        return False


def _ranking(frame: pd.DataFrame) -> _Ranking:
    found = _Ranking({}, {})
    ordered = frame.sort_values("probability", ascending=False, kind="stable")
    ids = ordered["id"] if "id" in ordered else [""] * len(ordered)
    met: dict[str, int] = {}
    for token, number, value in zip(ordered["token"], ids, ordered["probability"], strict=True):
        text = str(token)
        key = (text, met.setdefault(text, 0))
        met[text] += 1
        found.probabilities[key], found.ids[key] = float(value), number
    return found


def _union(lists: Sequence[_Ranking], k: int | None) -> list[tuple[str, int]]:
    """Return the first `k` tokens of all lists together, by their greatest probability."""
    best: dict[tuple[str, int], float] = {}
    for one in lists:
        for key in [*one.probabilities][:k]:
            best.setdefault(key, 0.0)
    for key in best:
        best[key] = max(one.probabilities.get(key, 0.0) for one in lists)
    return sorted(best, key=lambda key: -best[key])


def _title(prompt: str | Messages | None, as_seen: Callable[[str], str] = mark) -> str:
    """Return the title, with the end of the prompt: what the tokens follow."""
    if prompt is None:
        return "Next token"
    text = readable(prompt)
    end = text.rstrip(" ")
    # A blank at the end changes what comes next, and would not be seen.
    blanks = "␣" * min(3, len(text) - len(end))
    spelt = (char if char == " " else as_seen(char) for char in reversed(end))
    kept = within(spelt, _PROMPT_CHARACTERS)
    dots = "…" if len(kept) < len(end) else ""
    return f"Next token after “{dots}{''.join(reversed(kept))}{blanks}”"


def _words(
    lists: Mapping[str, _Ranking], rows: Sequence[tuple[str, int]], prompt: str | Messages | None
) -> str:
    told = (
        f"{label}: "
        + ", ".join(
            f"{_name(key, lists)} {percent(one.probabilities[key])}"
            for key in sorted(rows, key=lambda key: -one.probabilities.get(key, 0.0))
            if key in one.probabilities
        )
        for label, one in lists.items()
    )
    return f"{_title(prompt)}. {'; '.join(told)}."


def _name(
    key: tuple[str, int],
    lists: Mapping[str, _Ranking],
    as_seen: Callable[[str], str] = mark,
) -> str:
    """Return how a token is called: by its number too, where others read the same."""
    text, place = key
    name = short(text, as_seen=as_seen)
    if place or any((text, 1) in one.ids for one in lists.values()):
        name += f" #{next(one.ids[key] for one in lists.values() if key in one.ids)}"
    return name


def _drawn(
    ax: Axes,
    lists: Mapping[str, _Ranking],
    rows: Sequence[tuple[str, int]],
    left_out: int,
    prompt: str | Messages | None,
) -> Axes:
    families = _families()
    as_seen = _drawable(families)
    names = [_name(key, lists, as_seen) for key in rows]
    # parse_math=False, here and below: a dollar in a token is no formula.
    ax.set_yticks(range(len(rows)), names, parse_math=False, fontfamily=families)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    _scale(ax, max(one.probabilities.get(key, 0.0) for one in lists.values() for key in rows))
    shades = charts.colours(lists)
    thick = 0.62 if len(lists) == 1 else 0.84 / len(lists)
    for nth, (label, one) in enumerate(lists.items()):
        for row, key in enumerate(rows):
            place = row + (nth - (len(lists) - 1) / 2) * thick
            _bar(ax, place, thick, one.probabilities.get(key), one.bound, shades[label])
    if left_out:
        note = f"{left_out:,} less likely tokens are not shown"
        ax.set_xlabel(note, color=FAINT, fontsize=9, loc="left")
    missing = any(key not in one.probabilities for one in lists.values() for key in rows)
    _legend(ax, shades, missing, families, as_seen)
    ax.set_title(
        _title(prompt, _drawable(families, "bold")),
        loc="left",
        fontsize=11,
        fontweight="bold",
        color=INK,
        parse_math=False,
        fontfamily=families,
    )
    return ax


def _scale(ax: Axes, most: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.set_xlim(0, 1 if most > 0.5 or most == 0 else most * 1.05)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _bar(
    ax: Axes, place: float, thick: float, value: float | None, bound: float, colour: str
) -> None:
    end = bound if value is None else value
    if value is None:
        ax.hlines(place, 0, end, color=colour, linestyle=":", linewidth=1.6)
    else:
        ax.barh(place, end, thick * 0.94, color=colour)
    ax.annotate(
        # Rounded up: it is a bound.
        f"≤ {math.ceil(end * 1000 - 1e-6) / 10:.1f}%" if value is None else percent(end),
        (end, place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=9.5 if thick > 0.3 else 8,
        color=FAINT if value is None else INK,
        annotation_clip=False,
        parse_math=False,
    )


def _legend(
    ax: Axes,
    shades: Mapping[str, str],
    missing: bool,
    families: Sequence[str],
    as_seen: Callable[[str], str],
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.transforms import ScaledTranslation

    handles: list[Any] = [Patch(color=colour) for colour in shades.values()]
    words = [
        "".join(c if c == " " else as_seen(c) for c in charts.one_line(label)) for label in shades
    ]
    if missing:
        handles.append(Line2D([], [], color=FAINT, linestyle=":", linewidth=1.6))
        words.append(_MISSING)
    figure = ax.get_figure(root=True)
    assert figure is not None
    below = ScaledTranslation(0, -(40 if ax.get_xlabel() else 26) / 72, figure.dpi_scale_trans)
    legend = ax.legend(
        handles,
        [" "] * len(words),  # older matplotlib leaves out a label that begins with _
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes + below,
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    for text, word in zip(legend.get_texts(), words, strict=True):
        text.set(text=word, parse_math=False, fontfamily=list(families))


def _families() -> list[str]:
    """Return the user's fonts, and behind them those that know more letters."""
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    chosen = [str(name) for name in rcParams["font.family"]]
    return [*chosen, "DejaVu Sans", *(name for name in _SCRIPTS if name in installed)]


def _drawable(families: Sequence[str], weight: str = "normal") -> Callable[[str], str]:
    """Return how a character is drawn with these fonts: as `mark` has it, or its code."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[name], weight=weight))) for name in families]

    def as_seen(char: str) -> str:
        shown = mark(char)
        known = len(shown) > 1 or any(font.get_char_index(ord(shown)) for font in fonts)
        return shown if known else code(char)

    return as_seen
