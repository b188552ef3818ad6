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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from nbproviders.render.tables import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision (https://jfly.uni-koeln.de/color/), without
# black and with yellow last: it is weak on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#F0E442")

INK, FAINT, GROUND = "#24292f", "#6a737d", "#ffffff"
_DPI = 180
_WIDTH_IN = 7.2
_LABEL_CHARS = 34
_MOST_POINTS = 400  # of one model; more would only blacken the strip


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes
    ----------
    label
        The model.
    value
        Its length; None: no bar, and words in its place.
    low, high
        Ends of the whisker; None: none.
    colour
        The model's own, from `colours`.
    """

    label: str
    value: float | None
    low: float | None
    high: float | None
    colour: str


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
        return self._saved(format="png", dpi=_DPI, facecolor=GROUND)

    def svg(self) -> str:
        """Return an ``<svg>`` element to stand in a page, in the page's own colours, light or dark."""
        nothing = dict.fromkeys(("Format", "Type", "Creator", "Date"))
        svg = self._saved(format="svg", transparent=True, metadata=nothing).decode()
        svg = re.sub(r"<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        label = f'<svg role="img" aria-label="{html.escape(self.alt)}"'
        svg = svg.replace(INK, "currentColor").replace(GROUND, "Canvas")
        return svg.replace("<svg", label, 1)

    def as_html(self) -> str:
        """Return an ``<img>`` that carries the PNG within itself."""
        width = round(self.figure.get_figwidth() * 100)
        return (
            f'<img alt="{html.escape(self.alt)}" width="{width}" '
            'style="max-width:100%;height:auto;background:#fff;border-radius:4px" '
            f'src="data:image/png;base64,{_base64(self.png())}">'
        )

    def _saved(self, **how: Any) -> bytes:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(self.figure)
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
            "text/html": self.as_html(),
            "image/png": _base64(self.png()),
            "text/plain": self.alt,
        }

    def __repr__(self) -> str:
        return self.alt


def colours(models: Iterable[str]) -> dict[str, str]:
    """Return a colour for each model, the same whenever they come in the same order."""
    return {model: PALETTE[place % len(PALETTE)] for place, model in enumerate(models)}


def axes(rows: float) -> Axes:
    """Return empty axes in a figure of its own, high enough for so many models."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
    figure = Figure(figsize=(_WIDTH_IN, 1.0 + 0.42 * max(1, rows)), layout=layout)
    return _plain(figure.add_subplot())


def picture(ax: Axes, alt: str) -> Picture:
    """Return the figure of these axes as a picture."""
    return Picture(cast("Figure", ax.get_figure(root=True)), alt)


def bars(ax: Axes, found: Sequence[Bar], title: str, form: str, *, rate: bool = False) -> Axes:
    """Draw one horizontal bar a model, the first on top, with its value in words at the right.

    Parameters
    ----------
    ax
        Empty ones.
    found
        The bars.
    title
        Says what is measured.
    form
        A format specification for the values, such as ``.0%``.
    rate
        Whether values are shares of 1; the axis then goes from 0 to 100 %.
    """
    _names(ax, [bar.label for bar in found])
    for place, bar in enumerate(found):
        if bar.value is not None:
            ax.barh(place, bar.value, 0.62, color=bar.colour)
        if bar.low is not None and bar.high is not None:
            _whisker(ax, place, bar.low, bar.high)
        _beside(ax, place, _told(bar, form))
    ends = [e for bar in found for e in (bar.value, bar.low, bar.high) if e is not None]
    if rate:
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    elif any(ends):
        ax.set_xlim(min(0.0, *ends) * 1.05, max(0.0, *ends) * 1.05)
    return _titled(ax, title)


def spread(
    ax: Axes, values: Mapping[str, Sequence[float]], shades: Mapping[str, str], title: str
) -> Axes:
    """Draw each model's values as points, with a box of quartiles and its median in words.

    The axis is logarithmic where the values spread over more than a factor of 50.
    """
    _names(ax, list(values))
    every: list[float] = []
    for place, (label, given) in enumerate(values.items()):
        finite = sorted(float(v) for v in given if math.isfinite(v))
        every += finite
        if finite:
            _strip(ax, place, finite, shades[label])
        _beside(ax, place, f"median {three_figures(median(finite))}" if finite else "no value")
    if every and min(every) > 0 and max(every) > 50 * min(every):
        _logarithmic(ax)
    elif any(every):
        ax.set_xlim(0, max(every) * 1.05)
    return _titled(ax, title)


def three_figures(value: float) -> str:
    """Return a number to three figures; from a thousand on in full, where a power of ten would stand.

    Examples
    --------
    >>> three_figures(0.01234), three_figures(49.5), three_figures(1234.5)
    ('0.0123', '49.5', '1,234')
    """
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def one_line(text: str) -> str:
    """Return a name on one line, its middle left out when long: names differ at their ends."""
    line = visible(text).replace("\n", " ")
    if len(line) <= _LABEL_CHARS:
        return line
    half = (_LABEL_CHARS - 1) // 2
    return f"{line[:half]}…{line[-half:]}"


def _told(bar: Bar, form: str) -> str:
    if bar.value is None:
        return "no value"
    value = format(bar.value, form)
    if bar.low is None or bar.high is None:
        return value
    return f"{value}  [{format(bar.low, form).rstrip('%')}\u2013{format(bar.high, form)}]"


def _strip(ax: Axes, place: int, values: Sequence[float], colour: str) -> None:
    # Drawn by hand: matplotlib's boxplot asks for every setting, and so imports pyplot.
    import numpy as np

    low, middle, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    reach = 1.5 * (high - low)  # Tukey's whiskers: the outermost values within it
    ends = [v for v in values if low - reach <= v <= high + reach]
    ax.hlines([place, place], [ends[0], high], [low, ends[-1]], color=colour, linewidth=1)
    ax.vlines([ends[0], ends[-1]], place - 0.12, place + 0.12, color=colour, linewidth=1)
    ax.barh(place, high - low, 0.5, left=low, facecolor=colour + "33", edgecolor=colour)
    ax.vlines(middle, place - 0.25, place + 0.25, color=INK, linewidth=1.8, zorder=4)
    points = values[:: -(-len(values) // _MOST_POINTS)]
    # A fixed scatter, not a random one: the same comparison gives the same picture.
    heights = [place + 0.34 * ((i * 0.618034) % 1 - 0.5) for i in range(len(points))]
    ax.scatter(points, heights, s=11, color=colour, alpha=0.75, linewidths=0, zorder=3)


def _logarithmic(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _plain(ax: Axes) -> Axes:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
    ax.set_facecolor("none")
    ax.set_axisbelow(True)
    ax.grid(visible=False)
    ax.grid(visible=True, axis="x", color=FAINT, alpha=0.25, linewidth=0.8, linestyle="-")
    ax.tick_params(axis="x", which="both", colors=INK, labelsize=9, length=0)
    ax.tick_params(axis="y", colors=INK, labelsize=10, length=0)
    return ax


def _names(ax: Axes, labels: Sequence[str]) -> None:
    # parse_math=False: a dollar in a model's name is no formula.
    ax.set_yticks(range(len(labels)), [one_line(label) for label in labels], parse_math=False)
    ax.set_ylim(max(1, len(labels)) - 0.5, -0.5)


def _whisker(ax: Axes, place: int, low: float, high: float) -> None:
    # White below the ink: the whisker stays visible on a dark bar and on the ground alike.
    for colour, width in ((GROUND, 3.4), (INK, 1.4)):
        style: dict[str, Any] = {"color": colour, "linewidth": width, "zorder": 4, "clip_on": False}
        ax.hlines(place, low, high, **style)
        ax.vlines([low, high], place - 0.12, place + 0.12, **style)


def _beside(ax: Axes, place: int, text: str) -> None:
    ax.text(
        1.02,
        place,
        visible(text),
        transform=ax.get_yaxis_transform(),
        va="center",
        ha="left",
        fontsize=9.5,
        color=INK,
        parse_math=False,
    )


def _titled(ax: Axes, title: str) -> Axes:
    ax.set_title(
        visible(title), loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False
    )
    return ax


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
