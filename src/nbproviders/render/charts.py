"""Charts of models side by side, drawn without pyplot, so that no callback can corrupt another's plot.

A chart function takes and returns Axes and never shows anything. A `Picture` holds the finished figure
with the words that stand for it. All colours are set here: a user's dark style cannot make the text
unreadable on our light ground.
"""

from __future__ import annotations

import base64
import html
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from nbproviders.render.tables import number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision (https://jfly.uni-koeln.de/color/), without
# black and with yellow last: it is weak on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#F0E442")
_HATCHES = ("", "///", "...", "xxx")  # the second and later rounds through the palette

_INK, _FAINT, _GRID, _GROUND = "#24292f", "#6a737d", "#dfe3e8", "#ffffff"
_DPI = 180
_WIDTH_IN = 7.2
_LABEL_CHARS = 34
_POINTS_MOST = 400  # of one model; more would only blacken the strip


@dataclass(frozen=True, slots=True)
class Look:
    """How one model is drawn, in every chart of a comparison."""

    colour: str
    hatch: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes
    ----------
    label
        The model.
    value
        Its length; NaN: no bar, and the text says why.
    text
        Stands to its right.
    low, high
        Ends of the whisker; NaN: none.
    """

    label: str
    value: float
    text: str = ""
    low: float = math.nan
    high: float = math.nan


class Picture:
    """A finished figure that shows itself, with the words for those who cannot see it.

    A notebook gets a PNG, with ``alt`` text in its HTML form. SVG only where asked for by `svg`: IPython
    would store it beside the PNG in every notebook file.
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure = figure
        self.alt = visible(alt)

    def png(self) -> bytes:
        """Return the picture in pixels, on a light ground."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(self.figure)
        return self._saved(format="png", dpi=_DPI, facecolor=_GROUND)

    def svg(self) -> str:
        """Return an ``<svg>`` element to stand in a page: its ink is the text colour of the page."""
        nothing = dict.fromkeys(("Format", "Type", "Creator", "Date"))
        svg = self._saved(format="svg", transparent=True, metadata=nothing).decode()
        svg = re.sub(r"<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        label = f'<svg role="img" aria-label="{html.escape(self.alt)}"'
        return svg.replace("<svg", label, 1).replace(_INK, "currentColor")

    def html(self) -> str:
        """Return an ``<img>`` that carries the PNG within itself."""
        width = round(self.figure.get_figwidth() * 100)
        return (
            f'<img alt="{html.escape(self.alt)}" width="{width}" '
            'style="max-width:100%;height:auto;background:#fff;border-radius:4px" '
            f'src="data:image/png;base64,{_base64(self.png())}">'
        )

    def _saved(self, **how: Any) -> bytes:
        buffer = BytesIO()
        with warnings.catch_warnings():
            # A model may be named in letters that the font lacks: it is drawn with boxes for them.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            self.figure.savefig(buffer, **how)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/html": self.html(),
            "image/png": _base64(self.png()),
            "text/plain": self.alt,
        }

    def __repr__(self) -> str:
        return self.alt


def looks(models: Iterable[str]) -> dict[str, Look]:
    """Return how to draw each model: the first eight by colour alone, further ones also by hatching."""
    found = {}
    for place, model in enumerate(models):
        turn = place // len(PALETTE) % len(_HATCHES)
        found[model] = Look(PALETTE[place % len(PALETTE)], _HATCHES[turn])
    return found


def canvas(rows: int) -> Axes:
    """Return empty axes in a figure of its own, high enough for so many models."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, 1.0 + 0.42 * max(1, rows)), layout="constrained")
    axes = figure.add_subplot()
    return _plain(axes)


def picture(axes: Axes, alt: str) -> Picture:
    """Return the figure of these axes as a picture."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes come from `canvas`
    return Picture(figure, alt)


def bars(
    axes: Axes,
    rows: Sequence[Bar],
    looks: Mapping[str, Look],
    *,
    title: str,
    unit: str = "",
    rate: bool = False,
) -> Axes:
    """Draw one horizontal bar a model, the first on top, with its value in words at the right.

    Parameters
    ----------
    axes
        Empty ones.
    rows
        The bars.
    looks
        By label.
    title
        Says what is measured.
    unit
        Of the values' axis.
    rate
        Whether values are shares of 1; the axis then goes from 0 to 100 %.
    """
    places = range(len(rows))
    _names(axes, [row.label for row in rows])
    for place, row in zip(places, rows, strict=True):
        look = looks[row.label]
        if math.isfinite(row.value):
            axes.barh(place, row.value, 0.62, color=look.colour, hatch=look.hatch, edgecolor="#fff")
        if math.isfinite(row.low) and math.isfinite(row.high):
            _whisker(axes, place, row.low, row.high)
        _beside(axes, place, row.text)
    ends = [e for row in rows for e in (row.value, row.low, row.high) if math.isfinite(e)]
    if rate:
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    elif ends:
        axes.set_xlim(min(0.0, min(ends)) * 1.05, max(0.0, max(ends)) * 1.05 or 1.0)
    return _titled(axes, title, "" if rate else unit)


def strips(
    axes: Axes,
    groups: Mapping[str, Sequence[float]],
    looks: Mapping[str, Look],
    *,
    title: str,
    unit: str = "",
) -> Axes:
    """Draw each model's values as points, with a box of quartiles and its median in words.

    The axis is logarithmic where the values spread over more than a factor of 50.
    """
    _names(axes, list(groups))
    for place, (label, values) in enumerate(groups.items()):
        finite = sorted(v for v in values if math.isfinite(v))
        if finite:
            _strip(axes, place, finite, looks[label])
        _beside(axes, place, _median_text(finite, unit) if finite else "no values")
    every = [v for values in groups.values() for v in values if math.isfinite(v)]
    if every and min(every) > 0 and max(every) > 50 * min(every):
        _logarithmic(axes)
    elif every:
        axes.set_xlim(0, max(every) * 1.05 or 1.0)
    return _titled(axes, title, unit)


def _strip(axes: Axes, place: int, values: Sequence[float], look: Look) -> None:
    axes.boxplot(
        [values],
        positions=[place],
        orientation="horizontal",
        widths=0.5,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": look.colour + "33", "edgecolor": look.colour, "hatch": look.hatch},
        medianprops={"color": _INK, "linewidth": 1.8},
        whiskerprops={"color": look.colour},
        capprops={"color": look.colour},
    )
    step = -(-len(values) // _POINTS_MOST)
    points = values[::step]
    # A fixed scatter, not a random one: the same comparison gives the same picture.
    heights = [place + 0.34 * ((i * 0.618034) % 1 - 0.5) for i in range(len(points))]
    axes.scatter(points, heights, s=11, color=look.colour, alpha=0.75, linewidths=0, zorder=3)


def _median_text(values: Sequence[float], unit: str) -> str:
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    return f"median {number(float(median))} {unit}".rstrip()


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> Axes:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x", color=_FAINT, alpha=0.25, linewidth=0.8, linestyle="-")
    axes.tick_params(axis="x", colors=_INK, labelsize=9, length=0)
    axes.tick_params(axis="y", colors=_INK, labelsize=10, length=0)
    return axes


def _names(axes: Axes, labels: Sequence[str]) -> None:
    # parse_math=False: a dollar in a model's name is no formula.
    axes.set_yticks(range(len(labels)), [_label(label) for label in labels], parse_math=False)
    axes.set_ylim(max(1, len(labels)) - 0.5, -0.5)


def _label(text: str) -> str:
    """Return a name on one line, its middle left out when long: names differ at their ends."""
    line = visible(text).replace("\n", " ")
    if len(line) <= _LABEL_CHARS:
        return line
    half = (_LABEL_CHARS - 1) // 2
    return f"{line[:half]}…{line[-half:]}"


def _whisker(axes: Axes, place: int, low: float, high: float) -> None:
    # White below the ink: the whisker stays visible on a dark bar and on the ground alike.
    for colour, width in (("#ffffff", 3.4), (_INK, 1.4)):
        axes.hlines(place, low, high, color=colour, linewidth=width, zorder=4, clip_on=False)
        for end in (low, high):
            axes.vlines(
                end,
                place - 0.12,
                place + 0.12,
                color=colour,
                linewidth=width,
                zorder=4,
                clip_on=False,
            )


def _beside(axes: Axes, place: int, text: str) -> None:
    axes.text(
        1.02,
        place,
        visible(text),
        transform=axes.get_yaxis_transform(),
        va="center",
        ha="left",
        fontsize=9.5,
        color=_INK,
        parse_math=False,
    )


def _titled(axes: Axes, title: str, unit: str) -> Axes:
    axes.set_title(
        visible(title), loc="left", fontsize=11, fontweight="bold", color=_INK, parse_math=False
    )
    if unit:
        axes.set_xlabel(visible(unit), fontsize=9, color=_INK, parse_math=False)
    return axes


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
