"""Charts show what they are given, and harm nothing around them."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET

import pytest
from matplotlib.colors import to_hex

from nbproviders.render import charts
from nbproviders.render.charts import Bar


def drawn(*found: Bar, rate: bool = True) -> charts.Picture:
    ax = charts.axes(len(found))
    charts.bars(ax, found, "title", ".0%" if rate else ".3g", rate=rate)
    return charts.picture(ax, "words")


def words(picture: charts.Picture) -> list[str]:
    (ax,) = picture.figure.axes
    return [text.get_text() for text in (*ax.texts, *ax.get_yticklabels())]


def test_bars_have_their_length_and_colour() -> None:
    """Each model has one bar, the first on top, as long as its value and in its colour."""
    shades = charts.colours(["a", "b"])
    ax = charts.axes(2)
    found = [Bar("a", 0.25, None, None, shades["a"]), Bar("b", 0.5, None, None, shades["b"])]
    assert charts.bars(ax, found, "t", ".0%", rate=True) is ax
    assert [patch.get_width() for patch in ax.patches] == [0.25, 0.5]
    assert [to_hex(p.get_facecolor()).upper() for p in ax.patches] == [*shades.values()]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_whiskers_span_the_interval() -> None:
    """The interval is drawn from its lower to its upper bound, and told in words."""
    picture = drawn(Bar("a", 0.5, 0.25, 0.75, "#000000"), Bar("b", 0.5, None, None, "#000000"))
    (ax,) = picture.figure.axes
    spans = {tuple(path.vertices[:, 0]) for c in ax.collections for path in c.get_paths()}
    assert (0.25, 0.75) in spans
    assert words(picture)[:2] == ["50%  [25\u201375%]", "50%"]


def test_a_model_without_value_keeps_its_row() -> None:
    """A model that failed has no bar, and says so."""
    picture = drawn(Bar("a", None, None, None, "#000000"), Bar("b", 1.0, None, None, "#000000"))
    assert len(picture.figure.axes[0].patches) == 1
    assert words(picture) == ["no value", "100%", "a", "b"]


@pytest.mark.parametrize("values", [[], [0.0], [1e-9, 5.0], [-1.0, 2.0], [3.0] * 5000])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    """None, one, tiny, negative or very many values make a picture without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = charts.axes(2)
        groups = {"a": values, "b": [float("nan")]}
        charts.spread(ax, groups, charts.colours(groups), "seconds")
        assert charts.picture(ax, "w").png().startswith(b"\x89PNG")
        bars = [Bar("a", v, None, None, "#000000") for v in values[:3]]
        assert drawn(*bars, rate=False).png()


def test_spread_tells_the_median() -> None:
    """The median stands beside the points; the axis is logarithmic only for a wide spread."""
    ax = charts.axes(2)
    groups = {"a": [1.0, 3.0, 2.0, 4.0], "b": []}
    charts.spread(ax, groups, charts.colours(groups), "seconds")
    assert [text.get_text() for text in ax.texts] == ["median 2.5", "no value"]
    fast = charts.spread(charts.axes(1), {"a": [1234.4]}, {"a": "#000000"}, "t")
    assert [text.get_text() for text in fast.texts] == ["median 1,234"]
    assert ax.get_xscale() == "linear"
    wide = charts.axes(1)
    charts.spread(wide, {"a": [0.01, 100.0]}, charts.colours("a"), "seconds")
    assert wide.get_xscale() == "log"


def test_a_model_keeps_its_colour() -> None:
    """Colours depend on the models and their order alone, and the first eight differ."""
    models = [f"m{i}" for i in range(8)]
    assert charts.colours(models) == charts.colours(iter(models))
    assert len(set(charts.colours(models).values())) == 8
    assert len(charts.colours([*models, "m8"])) == 9


def test_a_name_is_no_formula_and_no_markup() -> None:
    """Dollars, tags, unknown letters and overrides in a model's name are drawn as text."""
    names = ["$x^2", "$\\frac$", "<script>alert(1)</script>-->", "模型", "a\u202eb"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = drawn(*(Bar(name, 0.5, None, None, "#000000") for name in names))
        picture.png()
        svg = picture.svg()
    assert "$x^2" in words(picture)
    assert "a⟨U+202E⟩b" in words(picture)
    assert {e.tag.rpartition("}")[2] for e in ET.fromstring(svg).iter()}.isdisjoint(
        {"script", "image"}
    )


def test_a_long_name_keeps_both_ends() -> None:
    """A long name loses its middle: names of a family differ at their ends."""
    (label,) = words(drawn(Bar("start" + "x" * 90 + "end", 0.5, None, None, "#000000")))[1:]
    assert label.startswith("start")
    assert label.endswith("end")
    assert len(label) < 40


def test_alt_text_is_escaped() -> None:
    """The words for those who cannot see it stand in every form, as text."""
    ax = charts.axes(1)
    picture = charts.Picture(charts.picture(ax, "").figure, '"><script>x</script>\u202e')
    for shown in (picture.as_html(), picture.svg()):
        assert "<script>" not in shown
        assert "&quot;&gt;&lt;script&gt;x&lt;/script&gt;⟨U+202E⟩" in shown


def test_a_notebook_gets_html_png_and_words() -> None:
    """The bundle holds an image with alt text, the bare PNG, and plain text; no SVG to store."""
    picture = drawn(Bar("a", 0.5, None, None, "#000000"))
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert 'alt="words"' in bundle["text/html"]
    assert bundle["text/plain"] == repr(picture) == "words"
    assert not hasattr(picture, "_repr_svg_")


def test_svg_asks_for_nothing() -> None:
    """The SVG stands in a page as it is: one element, no address to fetch, the page's own ink."""
    svg = drawn(Bar("a", 0.5, 0.2, 0.7, "#0072B2")).svg()
    assert svg.startswith("<svg")
    addresses = re.findall(r"(?:https?:)?//[^\s\"']+", svg)
    assert set(addresses) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "currentColor" in svg


def test_pyplot_is_not_touched() -> None:
    """Drawing never imports pyplot, whose one global figure callbacks would fight over."""
    code = (
        "import sys; from nbproviders.render import charts; ax = charts.axes(1);"
        "charts.spread(ax, {'a': [1, 2]}, {'a': '#000000'}, 't'); charts.picture(ax, 'w').png();"
        "charts.picture(ax, 'w').svg(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
