"""Texts in colour tell the probability of each token to everyone, and hostile tokens harm nobody."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import pytest

import nbproviders as nbp
from nbproviders import Completion, Score, Token
from nbproviders.core.completion import Finish
from nbproviders.errors import InvalidRequestError
from nbproviders.render.tokens import STEPS, percent, short, spelt

HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)" \'',
    "</span></div><img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp;",
]
# Text and ground: JupyterLab's own, light and dark; Visual Studio Code's dark; our report's.
GROUNDS = [("#212121", "#ffffff"), ("#ffffff", "#111111"), ("#cccccc", "#1f1f1f")]
GROUNDS += [("#1c1c1c", "#ffffff"), ("#e4e4e4", "#181818")]


class Page(HTMLParser):
    """The elements of a page with their attributes and the text inside each."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[int] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(len(self.found))
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.found[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.texts[place] += data

    def tokens(self) -> list[tuple[str, str, str]]:
        """Text, tooltip and style of each token."""
        return [
            (text, attributes["title"], attributes["style"])
            for (_, attributes), text in zip(self.found, self.texts, strict=True)
            if "title" in attributes
        ]

    def named(self, tag: str) -> list[str]:
        return [t for (name, _), t in zip(self.found, self.texts, strict=True) if name == tag]


def scored(*pairs: tuple[str, float], spec: str = "echo:echo") -> Score:
    tokens = (Token(text, i, math.log(p)) for i, (text, p) in enumerate(pairs))
    return Score(tuple(tokens), spec, 3)


def shown(*pairs: tuple[str, float]) -> Page:
    return Page(nbp.plot_tokens(scored(*pairs)).as_html())


def test_each_token_stands_on_its_step() -> None:
    """Each token has the colour of its probability, likelier ones a thinner one."""
    page = shown(("a", 0.95), ("b", 0.6), ("c", 0.3), ("d", 0.1), ("e", 0.02), ("f", 0.001))
    assert [text for text, _, _ in page.tokens()] == list("abcdef")
    assert [style for _, _, style in page.tokens()] == [style for _, style in STEPS]
    veils = [int(style.partition("#d55e00")[2][:2], 16) for _, style in STEPS]
    assert veils == sorted(set(veils))


def test_the_legend_names_every_step() -> None:
    """The scale is told in words, on the colours that it explains."""
    page = shown(("a", 0.5))
    swatches = {
        text: attributes["style"]
        for (_, attributes), text in zip(page.found, page.texts, strict=True)
        if "nowrap" in attributes.get("style", "") and "\u2013" in text + "\u2013"
    }
    named = [swatches[word] for word in ("90%\u2013100%", "5%\u201320%", "1%\u20135%", "below 1%")]
    for words, (_, style) in zip(named, [STEPS[0], *STEPS[3:]], strict=True):
        assert words.startswith(style)


def linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def luminance(colour: str, veil: str = "#00000000") -> float:
    share = int(veil[7:9], 16) / 255
    mixed = (
        linear((int(colour[i : i + 2], 16) * (1 - share) + int(veil[i : i + 2], 16) * share) / 255)
        for i in (1, 3, 5)
    )
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), mixed, strict=True))


@pytest.mark.parametrize(("ink", "ground"), GROUNDS)
@pytest.mark.parametrize("style", [style for _, style in STEPS])
def test_text_can_be_read_on_every_step(ink: str, ground: str, style: str) -> None:
    """The contrast is 4.5 to 1 or more, on light pages and dark ones (WCAG 2, 1.4.3)."""
    veil = style[style.index("#") :][:9]
    low, high = sorted((luminance(ink), luminance(ground, veil)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_least_likely_are_underlined() -> None:
    """Who sees no colours sees lines: dotted below 5 %, solid below 1 %, none above."""
    page = shown(("a", 0.9), ("b", 0.06), ("c", 0.04), ("d", 0.009))
    lines = [style.partition("border-bottom:")[2] for _, _, style in page.tokens()]
    assert lines == ["", "", "2px dotted", "2px solid"]


def test_a_tooltip_tells_the_token() -> None:
    """Text, id, probability and logarithm stand in the tooltip."""
    ((_, title, _),) = shown((" Paris", 0.25)).tokens()
    assert title == "␣Paris · id 0 · 25.0% · log -1.386"


def test_totals_stand_above() -> None:
    """The number of tokens, the logarithm of the whole and the perplexity are told."""
    view = nbp.plot_tokens(scored(("a", 0.5), ("b", 0.125)))
    for form in (view.as_html(), str(view)):
        assert "2 tokens, total log-probability -2.77, perplexity 4" in form


def test_endless_perplexity_is_told() -> None:
    """A service's -9999 for "never" is no failure."""
    view = nbp.plot_tokens(Score((Token("a", 1, -9999.0),)))
    assert "perplexity inf" in view.as_html()
    assert "1 token, " in str(view)


def test_line_breaks_are_shown_and_break() -> None:
    """A token with a newline shows a mark and goes to the next line; blanks between words stay."""
    page = shown(("a", 0.5), ("\n", 0.5), (" b", 0.5), (".\n\n", 0.5), ("  ", 0.5), ("\t", 0.5))
    texts = [text for text, _, _ in page.tokens()]
    assert texts == ["a", "↵\n", " b", ".↵\n↵\n", "␣␣", "⇥"]
    (body,) = [a["style"] for tag, a in page.found if a.get("dir") == "auto" and tag == "div"]
    assert "white-space:pre-wrap" in body


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_tokens_are_only_text(text: str) -> None:
    """A token, label or prompt adds no element and no attribute of its own."""
    view = nbp.plot_tokens({text: scored((text, 0.5))}, prompt=text)
    page = Page(view.as_html())
    ours = set("div span details summary table caption thead tbody tr th td".split())
    assert {tag for tag, _ in page.found} <= ours
    known = {"style", "title", "dir", "class", "scope", "colspan"}
    assert {name for _, attributes in page.found for name in attributes} <= known
    assert page.texts[0].count(text) >= 4  # label, prompt, token, caption


def test_dollars_are_no_formula() -> None:
    """Notebooks typeset what stands between dollars: the block asks them not to."""
    (_, attributes), *_ = shown(("$x$", 0.5)).found
    assert attributes["class"].split() == ["tex2jax_ignore", "mathjax_ignore"]


@pytest.mark.parametrize("char", "\u202e\u200b\u200d\ufe0f\u00a0\u3000\x1b\r\ud800\ue000\u115f␣")
def test_unseen_characters_are_codes(char: str) -> None:
    """What has no width, no shape or is another blank shows as its code, in every form."""
    view = nbp.plot_tokens(scored((f"a{char}b", 0.5)))
    for form in (spelt(f"a{char}b"), short(f"a{char}b"), view.as_html(), str(view)):
        assert f"a⟨U+{ord(char):04X}⟩b" in form
        form.encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [("<0xE2>", "<0xE2>"), ("", "⟨empty⟩"), ("\u0301", "◌\u0301"), (" naïve 漢字", "␣naïve␣漢字")],
)
def test_tokens_are_spelt(text: str, said: str) -> None:
    """Pieces of characters, nothing at all, lone accents and letters of any script can be read."""
    assert spelt(text) == said


def test_long_tokens_keep_both_ends() -> None:
    """A long token loses its middle, and no code is cut in two."""
    assert short("a" * 500 + "b") == f"{'a' * 14}…{'a' * 13}b"
    cut = short("\u200b" * 500)
    assert len(cut) <= 30
    assert cut == "⟨U+200B⟩…⟨U+200B⟩"
    (text, _, _), *_ = shown(("x" * 900, 0.5)).tokens()
    assert text == "x" * 200 + "… 700 more characters"


def test_percents_are_honest() -> None:
    """Only what is certain or impossible reads as 100 or 0."""
    told = [percent(p) for p in (0.0, 1e-9, 0.0012, 0.5, 0.9999, 1.0)]
    assert told == ["0.0%", "<0.1%", "0.1%", "50.0%", ">99.9%", "100.0%"]


def test_a_table_tells_the_same() -> None:
    """Folded below stand all tokens in a table with heads."""
    page = shown((" a", 0.5), ("\n", 0.25))
    assert page.named("summary") == ["Tokens as a table"]
    assert page.named("th") == ["#", "token", "id", "probability", "log-probability", "1", "2"]
    assert page.named("td") == ["␣a", "0", "0.5", "-0.693", "↵", "1", "0.25", "-1.386"]


def test_a_completion_is_shown_with_its_model() -> None:
    """A Completion made with logprobs is taken as it is."""
    one = scored((" yes", 0.5))
    view = nbp.plot_tokens(Completion(" yes", end=Finish(tokens=one.tokens), spec="echo:m"))
    assert str(view).splitlines()[0] == "echo:m"
    assert view.frame.attrs["spec"] == "echo:m"
    assert view.frame["token"].tolist() == [" yes"]


def test_several_texts_are_stacked() -> None:
    """Each has its label, two of one model are told apart, and the frame says which is which."""
    a, b = scored(("x", 0.5)), scored(("y", 0.25), ("z", 0.5))
    view = nbp.plot_tokens([a, b])
    assert list(view.scores) == ["echo:echo", "echo:echo (2)"]
    assert view.frame["label"].tolist() == ["echo:echo", "echo:echo (2)", "echo:echo (2)"]
    page = Page(view.as_html())
    assert [text for text, _, _ in page.tokens()] == ["x", "y", "z"]
    assert len(page.named("details")) == 2
    assert page.texts[0].count("below 1%") == 1
    assert list(nbp.plot_tokens({"left": a, "right": b}).scores) == ["left", "right"]


def test_the_prompt_stands_in_front() -> None:
    """What came before is shown without colour: its end, when it is long; a chat turn by turn."""
    page = Page(nbp.plot_tokens(scored(("x", 0.5)), prompt="p" * 900).as_html())
    assert [text for text, _, _ in page.tokens()] == ["x"]
    assert "…" + "p" * 400 + "x" in page.texts[0]
    assert "p" * 401 not in page.texts[0]
    turns = [{"role": "user", "content": "hi"}]
    assert (
        "user: hi\nx" in Page(nbp.plot_tokens(scored(("x", 0.5)), prompt=turns).as_html()).texts[0]
    )


def test_a_long_text_stays_small() -> None:
    """5,000 tokens are all in colour below a megabyte; the table stops and says so."""
    view = nbp.plot_tokens(scored(*[(" <token>", 0.004)] * 5000))
    bundle = view._repr_mimebundle_()
    assert sum(len(form.encode()) for form in bundle.values()) < 1_000_000
    page = Page(bundle["text/html"])
    assert len(page.tokens()) == 5000
    assert len(page.named("tr")) == 1 + 100 + 1
    assert "4,900 more tokens are not shown; .frame has them all." in str(view)
    assert "4,900 more rows are not shown; .frame has them all." in page.texts[0]
    assert len(view.frame) == 5000


@pytest.mark.parametrize(
    ("texts", "tokens", "text"), [(1, 30_000, " word"), (6, 3000, "\u200b" * 9)]
)
def test_an_endless_text_is_cut(texts: int, tokens: int, text: str) -> None:
    """However long and however many: below a megabyte, and what is left out is counted."""
    view = nbp.plot_tokens([scored(*[(text, 0.5)] * tokens)] * texts)
    assert len(view.as_html().encode()) < 1_000_000
    page = Page(view.as_html())
    left = tokens - len(page.tokens()) // texts
    assert page.texts[0].count(f"{left:,} more tokens are not shown; .frame has them all.") == texts
    assert len(view.frame) == tokens * texts


def test_a_notebook_gets_html_and_words() -> None:
    """The bundle holds one block of HTML without script or address, and plain text."""
    view = nbp.plot_tokens(scored(("a", 0.5)))
    bundle = view._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/html"] == view._repr_html_()
    assert bundle["text/plain"] == str(view) == repr(view)
    assert str(view).splitlines()[2:] == [
        "#  token  id  probability  log-probability",
        "1  a       0          0.5           -0.693",
    ]
    assert not [word for word in ("<script", "<style", "http", "url(") if word in view.as_html()]


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        (Completion("text"), "carries no token probabilities", "m.generate(prompt, logprobs=True)"),
        (Score(()), "empty text", "m.score(prompt, text)"),
        ("text", "A str has no token", "m.generate(prompt, logprobs=True)"),
        ([], "A list has no token", "m.score(prompt, text)"),
        ([scored(("a", 0.5)), None], "A NoneType", "m.score"),
        (Score((Token("a", 1, math.nan),)), "a has no probability", "float32"),
    ],
)
def test_what_has_no_probabilities_is_refused(given: Any, says: str, hint: str) -> None:
    """The error tells what was given and what to give."""
    with pytest.raises(InvalidRequestError) as caught:
        nbp.plot_tokens(given)
    assert says in caught.value.message
    assert hint in caught.value.hint
