"""Token probabilities as people see them: in a real JupyterLab, in a real browser, light and dark."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import Score, Token
from tests.browser.lab import (
    Lab,
    fits,
    notebook,
    open_and_run,
    pytestmark as needs,
    screenshot,
)

pytestmark = needs
HEIGHT = 900
MADE = """import math
import nbproviders as nbp
from nbproviders.core.tokens import token_frame
def tokens(*pairs):
    return [nbp.Token(text, i, math.log(p)) for i, (text, p) in enumerate(pairs)]
"""
TEXT = (
    MADE
    + """nbp.plot_tokens(nbp.Score(tuple(tokens(
    ("The", .95), (" capital", .6), (" is", .3), (" Paris", .1), (",", .02), (" $x$", .001), ("\\n", .3),
    ("<b>bold</b>", .2), ("\\u202eright", .04), ("<0xE2>", .004), (" " + "long" * 60, .4),
)), "echo:echo"), prompt="Question: which?\\n")"""
)
CHART = (
    MADE
    + """one = token_frame(tokens((" Paris", .6), ("\\u5df4\\u9ece", .1), ("$x^2$", .05)), "echo:a")
two = token_frame(tokens((" the", .4), (" Paris", .3), ("\\n", .1)), "echo:b")
nbp.plot_next_tokens([one, two], prompt="The capital of France is")"""
)
# Each token's text colour, and the colours behind it from the page forward.
COLOURS = """[...document.querySelectorAll('.jp-OutputArea-output span[title]')].map(span => {
  const grounds = [];
  for (let box = span; box; box = box.parentElement)
    grounds.unshift(getComputedStyle(box).backgroundColor);
  return [getComputedStyle(span).color, grounds];
})"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    (lab.root / "text.ipynb").write_text(notebook(TEXT))
    (lab.root / "chart.ipynb").write_text(notebook(CHART))
    with lab.running():
        yield lab


def mixed(colours: list[str]) -> list[float]:
    """Return the colour that is seen when all lie upon one another."""
    seen = [255.0, 255.0, 255.0]
    for colour in colours:
        red, green, blue, *share = map(float, re.findall(r"[\d.]+", colour))
        part = share[0] if share else 1.0
        seen = [b * (1 - part) + c * part for b, c in zip(seen, (red, green, blue), strict=True)]
    return seen


def luminance(colour: list[float]) -> float:
    shares = (c / 255 for c in colour)
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrasts(page: Any) -> list[float]:
    found = []
    for ink, grounds in page.evaluate(COLOURS):
        low, high = sorted((luminance(mixed([*grounds, ink])), luminance(mixed(grounds))))
        found.append((high + 0.05) / (low + 0.05))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_text_can_be_read(lab: Lab, page: Any, tmp_path: Path, theme: str) -> None:
    """Every token has a contrast of 4.5 to 1 in Lab's own themes; dollars and tags stay text."""
    lab.theme(f"JupyterLab {theme}")
    open_and_run(page, lab, "text.ipynb", "span[title]")
    page.get_by_text("Tokens as a table").click()
    page.get_by_role("cell", name="⟨U+202E⟩right").wait_for()
    found = contrasts(page)
    assert len(found) == 11
    assert min(found) >= 4.5
    dark = luminance(mixed(page.evaluate(COLOURS)[0][1])) < 0.2
    assert dark == (theme == "Dark")
    shown = page.locator(".jp-OutputArea-output").inner_text()
    assert "$x$" in shown
    assert "<b>bold</b>" in shown
    assert page.locator(".jp-OutputArea-output mjx-container").count() == 0
    assert fits(page)
    screenshot(page, f"tokens-{theme.lower()}.png", tmp_path)


@pytest.mark.slow
def test_a_chart_is_shown_with_its_words(lab: Lab, page: Any, tmp_path: Path) -> None:
    """The chart is one picture that fits the cell and says its values to who cannot see it."""
    lab.theme("JupyterLab Light")
    open_and_run(page, lab, "chart.ipynb", "img")
    picture = page.locator(".jp-OutputArea-output img")
    assert picture.count() == 1
    alt = picture.get_attribute("alt")
    assert "echo:a: ␣Paris 60.0%, 巴黎 10.0%, $x^2$ 5.0%; echo:b: ␣the 40.0%" in alt
    assert page.locator(".jp-OutputArea-output", has_text=re.compile("Warning|Error")).count() == 0
    assert fits(page)
    screenshot(page, "next-tokens.png", tmp_path)


@pytest.mark.slow
def test_a_stranger_s_notebook_keeps_the_colours(lab: Lab, page: Any, tmp_path: Path) -> None:
    """In a notebook that Lab does not trust, and so strips, colours, lines and tooltips remain."""
    pairs = [("likely", 0.95), ("middling", 0.3), ("rare", 0.02), ("odd", 0.001), ("$x$", 0.3)]
    score = Score(tuple(Token(t, i, math.log(p)) for i, (t, p) in enumerate(pairs)), "echo:echo")
    made = json.loads(notebook("view"))
    data = nbp.plot_tokens(score)._repr_mimebundle_()
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    made["cells"][0]["outputs"] = [output]
    (lab.root / "stranger.ipynb").write_text(json.dumps(made))
    lab.theme("JupyterLab Light")
    page.goto(f"{lab.address}/doc/tree/stranger.ipynb")
    page.locator(".jp-OutputArea-output span[title]").first.wait_for()
    tokens = page.locator(".jp-OutputArea-output span[title]")
    styles = tokens.evaluate_all(
        "all => all.map(x => [getComputedStyle(x).backgroundColor, getComputedStyle(x).borderBottomStyle])"
    )
    assert len({ground for ground, _ in styles}) == 4
    assert [line for _, line in styles] == ["none", "none", "dotted", "solid", "none"]
    assert tokens.nth(2).get_attribute("title") == "rare · id 2 · 2.0% · log -3.912"
    assert page.locator(".jp-OutputArea-output mjx-container").count() == 0
    screenshot(page, "tokens-untrusted.png", tmp_path)
