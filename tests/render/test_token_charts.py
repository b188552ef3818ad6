"""Charts of next tokens show each model's list, and never a zero where a model said nothing."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import nbproviders as nbp
from nbproviders import Token
from nbproviders.core.tokens import token_frame
from nbproviders.errors import InvalidRequestError
from nbproviders.render import charts, token_charts
from nbproviders.render.token_charts import plot_next_tokens

HOSTILE = [
    "$x^2$",
    "$\\frac$",
    "\u202eevil",
    "\u200b",
    "",
    "<script>alert(1)</script>",
    "<0xE2>",
    "巴黎",
    "👩\u200d🚀",
    "\u0301",
    "\x1b[31m",
    "x" * 300,
    "_under",
    "\n\t ",
    "שלום",
    "\ud800",
]


def frame(spec: str = "echo:a", **probabilities: float) -> pd.DataFrame:
    return listed([*probabilities.items()], spec)


def listed(pairs: list[tuple[str, float]], spec: str = "echo:a") -> pd.DataFrame:
    return token_frame([Token(t, i, math.log(p)) for i, (t, p) in enumerate(pairs)], spec)


def lengths(ax: Any) -> list[float]:
    return [round(patch.get_width(), 6) for patch in ax.patches]


def names(ax: Any) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def words(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_one_model_is_a_bar_for_each_token() -> None:
    """The likeliest stands on top, each bar is as long as its probability and says it."""
    picture = plot_next_tokens(listed([(" the", 0.25), (" Paris", 0.5), ("\n", 0.1)]))
    (ax,) = picture.figure.axes
    assert names(ax) == ["␣Paris", "␣the", "↵"]
    assert lengths(ax) == [0.5, 0.25, 0.1]
    assert words(ax) == ["50.0%", "25.0%", "10.0%"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert legend(ax) == ["echo:a"]


def test_models_stand_beside_each_other() -> None:
    """Tokens of all lists are ordered by their greatest probability; a model keeps its colour."""
    left, right = frame(x=0.6, y=0.3), frame("echo:b", y=0.5, x=0.4)
    (ax,) = plot_next_tokens([left, right]).figure.axes
    assert names(ax) == ["x", "y"]
    shades = charts.colours(["echo:a", "echo:b"])
    found = [
        (round(p.get_y() + p.get_height() / 2), p.get_width(), to_hex(p.get_facecolor()).upper())
        for p in ax.patches
    ]
    assert [(row, round(width, 6), colour) for row, width, colour in found] == [
        (0, 0.6, shades["echo:a"]),
        (1, 0.3, shades["echo:a"]),
        (0, 0.4, shades["echo:b"]),
        (1, 0.5, shades["echo:b"]),
    ]
    assert legend(ax) == ["echo:a", "echo:b"]


def test_a_missing_token_is_no_zero() -> None:
    """Where a list lacks a token there is no bar, but a dotted line to what it has at most."""
    left, right = frame(x=0.6, y=0.0302), frame("echo:b", z=0.5)
    (ax,) = plot_next_tokens({"left": left, "right": right}).figure.axes
    assert names(ax) == ["x", "z", "y"]
    assert lengths(ax) == [0.6, 0.0302, 0.5]
    assert words(ax) == ["60.0%", "≤ 3.1%", "3.0%", "≤ 50.0%", "50.0%", "≤ 50.0%"]
    ends = [round(path.vertices[1][0], 6) for c in ax.collections for path in c.get_paths()]
    assert ends == [0.0302, 0.5, 0.5]
    assert legend(ax)[:2] == ["left", "right"]
    assert "not in this model's list" in legend(ax)[2]
    (full,) = plot_next_tokens([left, left]).figure.axes
    assert len(legend(full)) == 2


def test_k_counts_for_each_model() -> None:
    """Of each list the first k tokens are drawn; what is known of them beyond k is drawn too."""
    left, right = frame(x=0.6, y=0.3, u=0.1), frame("echo:b", y=0.5, v=0.4, x=0.05)
    (ax,) = plot_next_tokens([left, right], k=1).figure.axes
    assert names(ax) == ["x", "y"]
    assert lengths(ax) == [0.6, 0.3, 0.05, 0.5]


def test_a_chart_stays_low() -> None:
    """Tokens that nobody could look at are left out and counted."""
    many = [listed([(f"{m}-{i}", 0.01) for i in range(100)], f"echo:{m}") for m in range(8)]
    (one,) = plot_next_tokens(many[0]).figure.axes
    assert len(names(one)) == 40
    assert one.get_xlabel() == "60 less likely tokens are not shown"
    picture = plot_next_tokens(many)
    assert len(names(picture.figure.axes[0])) == 10
    assert picture.figure.get_figheight() < 25


def test_alt_text_tells_the_values() -> None:
    """Who cannot see the chart is told the prompt, the models and all values."""
    left, right = frame(x=0.6, y=0.3), frame("echo:b", z=0.5)
    picture = plot_next_tokens([left, right], prompt="A\nb ")
    told = "Next token after “A↵b␣”. echo:a: x 60.0%, y 30.0%; echo:b: z 50.0%."
    assert picture.alt == repr(picture) == told
    bundle = picture._repr_mimebundle_()
    assert f'alt="{told}"' in bundle["text/html"]
    assert set(bundle) == {"text/html", "image/png", "text/plain"}


def test_a_long_prompt_shows_its_end() -> None:
    """The title holds what the tokens follow: the end of the prompt, of a chat its last turn."""
    picture = plot_next_tokens(frame(x=0.6), prompt="start" + "-" * 900 + "end")
    title = picture.figure.axes[0].get_title(loc="left")
    assert title.endswith("-end”")
    assert len(title) < 80
    turns = [{"role": "user", "content": "start" + "-" * 90}, {"role": "user", "content": "hi"}]
    assert plot_next_tokens(frame(x=0.6), prompt=turns).alt.split("”")[0].endswith("↵user: hi")


def test_hostile_text_is_drawn_as_text() -> None:
    """Nothing a model or a prompt writes is a formula, a tag, a missing glyph or a lost label."""
    found = listed([(text, 0.05) for text in HOSTILE], "_$openai:模型_{x}$")
    picture = plot_next_tokens({"_$m$ 模型": found, "b": found}, prompt="".join(HOSTILE))
    (ax,) = picture.figure.axes
    FigureCanvasAgg(picture.figure)
    picture.figure.savefig(io.BytesIO(), format="png")  # a missing glyph would warn
    drawn = names(ax)
    assert {"$x^2$", "⟨U+202E⟩evil", "⟨U+200B⟩", "⟨empty⟩", "<0xE2>", "_under"} <= set(drawn)
    assert {"↵⇥␣", "◌\u0301", "⟨U+D800⟩", f"{'x' * 14}…{'x' * 14}"} <= set(drawn)
    assert legend(ax)[0].startswith("_$m$ ")
    texts = [*ax.get_yticklabels(), *ax.texts, *ax.get_legend().get_texts(), ax._left_title]
    assert not [text for text in texts if text.get_parse_math()]
    assert "<script>" not in picture.as_html()


def test_letters_without_a_font_are_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter that no font has shows as its code; one that another font has is drawn with it."""
    found = listed([("\u2312", 0.5)])  # an arc, which DejaVu Sans lacks
    monkeypatch.setattr(token_charts, "_SCRIPTS", ())
    assert names(plot_next_tokens(found).figure.axes[0]) == ["⟨U+2312⟩"]
    monkeypatch.setattr(token_charts, "_SCRIPTS", ("STIXGeneral", "No Such Font"))
    picture = plot_next_tokens(found, prompt="\u2312")
    assert names(picture.figure.axes[0]) == ["\u2312"]
    assert "⟨U+2312⟩" in picture.figure.axes[0].get_title(loc="left")  # its bold cut lacks the arc
    FigureCanvasAgg(picture.figure)
    picture.figure.savefig(io.BytesIO())


def test_tokens_that_read_the_same_are_told_apart() -> None:
    """Two tokens of one text are two bars, named by their numbers."""
    (ax,) = plot_next_tokens(listed([("", 0.5), ("a", 0.3), ("", 0.1)])).figure.axes
    assert names(ax) == ["⟨empty⟩ #0", "a", "⟨empty⟩ #2"]
    assert lengths(ax) == [0.5, 0.3, 0.1]


def test_axes_that_are_given_are_drawn_on() -> None:
    """With axes of the user's own the function returns them, and makes no figure."""
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_next_tokens(frame(x=0.6), ax=right) is right
    assert lengths(right) == [0.6]
    assert not left.patches
    assert not left.get_title(loc="left")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (frame(), "no rows"),
        (pd.DataFrame({"token": ["a"]}), "no column probability"),
        (pd.DataFrame({"x": ["a"]}), "no column token and no probability"),
        (pd.DataFrame({"token": ["a"], "probability": [73.2]}), "73.2 is no probability"),
        (pd.DataFrame({"token": ["a"], "probability": [math.nan]}), "nan is no probability"),
        (pd.DataFrame({"token": ["a"], "probability": [None]}), "None is no probability"),
        ([], "Nothing cannot be drawn"),
        ({}, "Nothing cannot be drawn"),
        ("Paris", "str cannot be drawn"),
        ([frame(x=0.5), None], "NoneType cannot be drawn"),
    ],
)
def test_what_is_no_list_is_refused(given: Any, says: str) -> None:
    """The error tells what was wrong and what to give."""
    with pytest.raises(InvalidRequestError) as caught:
        nbp.plot_next_tokens(given)
    assert says in caught.value.message
    assert "m.next_tokens(prompt)" in caught.value.hint


@pytest.mark.parametrize("k", [0, -1, True, 2.5, "3"])
def test_k_is_a_number_of_tokens(k: Any) -> None:
    """Anything but 1 or more is refused with its value."""
    with pytest.raises(InvalidRequestError, match=r"k="):
        nbp.plot_next_tokens(frame(x=0.5), k=k)


@pytest.mark.parametrize("values", [[1.0], [1e-12], [0.0], [0.5, 0.0]])
def test_any_probability_can_be_drawn(values: list[float]) -> None:
    """Certain, vanishing and impossible tokens make a picture without a warning."""
    found = pd.DataFrame({"token": [str(i) for i in range(len(values))], "probability": values})
    assert plot_next_tokens(found).png().startswith(b"\x89PNG")


def test_pyplot_is_not_touched() -> None:
    """Drawing never imports pyplot, whose one global figure callbacks would fight over."""
    code = (
        "import sys, pandas as pd; from nbproviders import plot_next_tokens as p;"
        "p(pd.DataFrame({'token': ['a'], 'probability': [0.5]})).png();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
