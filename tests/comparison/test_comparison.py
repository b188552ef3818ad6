"""The result of a comparison: one tidy table that shows itself, charts itself and saves itself."""

from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nbproviders.comparison.comparison import Comparison
from nbproviders.errors import ConfigurationError

COLUMNS = (
    "spec provider model prompt_id prompt expected repeat text finish error queue_s ttft_s total_s "
    "prompt_tokens cached_tokens completion_tokens tokens_per_s cost_usd cost_kind ignored score_right task"
).split()
FAILED = {
    "text": None,
    "finish": None,
    "error": "ServiceUnavailableError: <b>dropped</b>",
    "queue_s": None,
    "ttft_s": None,
    "total_s": None,
    "prompt_tokens": None,
    "completion_tokens": None,
    "tokens_per_s": None,
    "cost_usd": None,
    "cost_kind": None,
    "ignored": None,
    "score_right": None,
}
HOSTILE = [
    '<script>alert("x")</script>',
    "=HYPERLINK(1)",
    'a "quoted", text; with\nlines\r\nand\rmore',
    "NA",
    "nan",
    "",
    "  spaces ",
    "042",
    "\u202eevil",
    "naïve 漢字 👩‍🚀",
    "\\n 'tick",
    "\ra",
]


def row(model: str = "a", place: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "spec": f"echo:{model}",
        "provider": "echo",
        "model": model,
        "prompt_id": place,
        "prompt": f"prompt {place}",
        "expected": "x",
        "repeat": 0,
        "text": "x",
        "finish": "stop",
        "error": None,
        "queue_s": 0.0,
        "ttft_s": 0.1,
        "total_s": 0.2 + place,
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "tokens_per_s": 10.0,
        "cost_usd": 0.0,
        "cost_kind": "free",
        "ignored": "",
        "score_right": place % 2 == 0,
        "task": "odd" if place % 2 else "even",
        **values,
    }


def compared(*rows: dict[str, Any], **values: Any) -> Comparison:
    given = {"score_names": ["right"], "params": {"temperature": 0.0}, "elapsed_s": 1.5, **values}
    return Comparison(rows, **given)


def grid(models: str = "ba", prompts: int = 12) -> Comparison:
    return compared(*(row(model, i) for model in models for i in range(prompts)))


class Elements(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_columns_have_their_order() -> None:
    """Known columns first, scores next, then what came with the prompts; whatever order rows have."""
    backwards = {name: row()[name] for name in reversed(row())}
    assert list(compared(backwards).frame) == COLUMNS
    assert list(Comparison([], score_names=["right"], params={}, elapsed_s=0).frame) == COLUMNS[:-1]


def test_counts_stay_whole_beside_failures() -> None:
    """A failed cell has missing numbers, and turns no other cell's tokens into fractions."""
    frame = compared(row(), row(place=1, **FAILED)).frame
    assert str(frame["completion_tokens"].dtype) == "Int64"
    assert frame["completion_tokens"].tolist() == [2, pd.NA]
    assert frame["total_s"].isna().tolist() == [False, True]


def test_failures_are_the_failed_cells() -> None:
    """Failures are those rows of the frame that have an error, with their place in it."""
    result = compared(row(), row(place=1, **FAILED))
    assert result.failures.index.tolist() == [1]
    assert result.failures["prompt_id"].tolist() == [1]


def test_summary_by_task() -> None:
    """Split by a column, each model has a row for each of its values, and shares add up."""
    summary = grid().summary(by="task")
    assert summary[["spec", "task", "n", "right"]].values.tolist() == [
        ["echo:b", "even", 6, 1.0],
        ["echo:b", "odd", 6, 0.0],
        ["echo:a", "even", 6, 1.0],
        ["echo:a", "odd", 6, 0.0],
    ]
    assert grid().summary(by="spec").equals(grid().summary())


def test_summary_by_lists() -> None:
    """A column of lists, as tags are, can be split by too."""
    summary = compared(row(task=["x"]), row(place=1, task=["y"])).summary(by="task")
    assert summary["task"].tolist() == ['["x"]', '["y"]']


def test_unknown_names_are_our_error() -> None:
    """A metric or column that is not there is told with those that are."""
    with pytest.raises(ConfigurationError, match=r"(?s)'speed'.*right, ttft_s, total_s"):
        grid().chart("speed")
    with pytest.raises(ConfigurationError, match=r"(?s)'topic'.*task"):
        grid().summary(by="topic")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (None, "right"),
        ("right", "right"),
        ("score_right", "right"),
        ("total_s", "time per answer"),
        ("ttft_s", "time to first token"),
        ("tokens_per_s", "tokens per second"),
        ("completion_tokens", "tokens written"),
    ],
)
def test_charts_tell_their_numbers(metric: str | None, words: str) -> None:
    """Every metric has a chart whose words name it and all models."""
    picture = grid().chart(metric)
    assert picture.alt.startswith(words)
    assert picture.alt.index("echo:b") < picture.alt.index("echo:a")
    assert picture.png().startswith(b"\x89PNG")


def test_default_chart_without_scores_is_speed() -> None:
    """Without scorers the chart is of tokens a second."""
    result = Comparison([row()], score_names=[], params={}, elapsed_s=1)
    assert result.chart().alt.startswith("tokens per second")


def test_a_scorer_may_be_named_like_a_time() -> None:
    """The bare name means the time, the column's name the score."""
    result = compared(row(score_total_s=True), score_names=["total_s"])
    assert result.chart("total_s").alt.startswith("time per answer")
    assert result.chart("score_total_s").alt.startswith("total_s (share right")


def test_inline_form() -> None:
    """A cell's value shows a table, a chart within itself with words for it, and what it cost."""
    bundle = compared(*(row(m, i) for m in "ab" for i in range(12)))._repr_mimebundle_()
    elements = Elements(bundle["text/html"])
    (image,) = [attributes for tag, attributes in elements.found if tag == "img"]
    assert str(image["alt"]).startswith("right (share right")
    kind, _, data = str(image["src"]).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert not {"script", "style", "link"} & {tag for tag, _ in elements.found}
    for text in (elements.text, bundle["text/plain"]):
        assert "24 answers, 72 tokens read and 48 written in 1.5 s; temperature=0." in text
        assert "50% [25\u201375%]" in text
    assert bundle["text/plain"] == repr(compared(*(row(m, i) for m in "ab" for i in range(12))))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answers_are_only_text(text: str, tmp_path: Path) -> None:
    """Text of a model, prompt, answer, error or task cannot add an element to cell or page."""
    clean, dirty = (
        compared(
            row(t, prompt=t, expected=t, text=t, task=t, error=t),
            row("b", 1, task="y"),
            notes=[f"note: {t}"],
        )
        for t in ("plain", text)
    )
    paths = [
        one.to_html(tmp_path / "r.html", title=t).read_text()
        for one, t in ((clean, "p"), (dirty, text))
    ]
    inline = [one._repr_mimebundle_()["text/html"] for one in (clean, dirty)]
    for before, after in (paths, inline):
        tags = [tag for tag, _ in Elements(after).found if tag not in ("path", "use", "g", "defs")]
        expected = [t for t, _ in Elements(before).found if t not in ("path", "use", "g", "defs")]
        assert sorted(tags) == sorted(expected)
        assert "\u202e" not in after


@pytest.mark.parametrize("text", HOSTILE)
def test_csv_brings_every_text_back(text: str, tmp_path: Path) -> None:
    """Read as the docstring says, each answer and expected text is what the model wrote, to the letter."""
    result = compared(row(text=text, expected=text), row(place=1, **FAILED))
    path = result.to_csv(tmp_path / "r.csv")
    back = pd.read_csv(
        path, keep_default_na=False, na_values=[""], dtype={"expected": str, "text": str}
    )
    assert list(back) == COLUMNS
    assert back["text"].fillna("").tolist() == [text, ""]
    assert back["expected"].fillna("")[0] == text
    assert back["error"].isna().tolist() == [True, False]
    assert back["total_s"].isna().tolist() == [False, True]
    with path.open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["text"] == text


def test_csv_numbers_come_back(tmp_path: Path) -> None:
    """Times and scores read back equal, and counts read back whole."""
    result = grid()
    back = pd.read_csv(result.to_csv(tmp_path / "r.csv"))
    for name in ("total_s", "ttft_s", "completion_tokens", "score_right", "prompt_id"):
        assert back[name].tolist() == result.frame[name].tolist()


def test_chats_are_json_in_csv_and_lines_on_screen(tmp_path: Path) -> None:
    """A prompt of several turns is read back as JSON, and read by people as lines."""
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    result = compared(row(prompt=turns))
    back = pd.read_csv(result.to_csv(tmp_path / "r.csv"))
    assert json.loads(back["prompt"][0]) == list(turns)
    assert (
        "system: Be brief.\nuser: Hi"
        in Elements(result.to_html(tmp_path / "r.html").read_text()).text
    )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_csv_for_spreadsheets_runs_nothing(text: str, tmp_path: Path) -> None:
    """Only where asked for, text that looks like a formula is defused; numbers stay numbers."""
    result = compared(row(text=text, queue_s=-1.0))
    path = result.to_csv(tmp_path / "r.csv", spreadsheet=True)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = next(csv.DictReader(file))
    assert found["text"] == f"'{text}"
    assert found["queue_s"] == "-1.0"


def test_report_stands_alone(tmp_path: Path) -> None:
    """The page shows summary, split, charts and all answers, and asks for nothing from outside."""
    path = grid().to_html(tmp_path / "deep" / "r.html")
    source = path.read_text(encoding="utf-8")
    elements = Elements(source)
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert headings == ["Summary", "right by task", "Charts", "Answers"]
    assert [tag for tag, _ in elements.found].count("svg") == 3
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in elements.found}
    addresses = [
        str(v) for _, a in elements.found for k, v in a.items() if k.endswith(("src", "href"))
    ]
    assert all(address.startswith("#") for address in addresses)
    assert elements.text.count("prompt 11") == 2


def test_report_keeps_answers_to_a_prompt_together(tmp_path: Path) -> None:
    """Answers are sorted by prompt in the order given, models side by side."""
    rows = [row(model, place) for model in "ab" for place in (10, 9)]
    text = Elements(compared(*rows).to_html(tmp_path / "r.html").read_text()).text
    answers = text[text.index("Answers") :]
    assert re.findall(r"prompt (\d+)echo:(.)", answers) == [
        ("10", "a"),
        ("10", "b"),
        ("9", "a"),
        ("9", "b"),
    ]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (compared(), "No answers."),
        (compared(stopped=True), "Stopped before the first answer was there."),
        (compared(row(**FAILED), row("b", **FAILED)), "2 answers, 2 failed"),
        (compared(row(), row("b", **FAILED)), "Failed: echo:b: ServiceUnavailableError"),
        (compared(row(), stopped=True, notes=["Mind this."]), "Stopped before the end"),
        (compared({"spec": "echo:a"}), "1 answer, 0 tokens"),
    ],
)
def test_what_went_wrong_still_shows(result: Comparison, words: str, tmp_path: Path) -> None:
    """Empty, stopped and failed comparisons show, save and chart like others, and say what happened."""
    assert words in repr(result)
    assert words in Elements(result._repr_mimebundle_()["text/html"]).text
    assert words in Elements(result.to_html(tmp_path / "r.html").read_text()).text
    assert result.to_csv(tmp_path / "r.csv").exists()
    assert result.chart().png()
    assert all(note in repr(result) for note in result.notes)


def test_plain_text_fits() -> None:
    """The text form stays within its width, whatever models are called."""
    result = compared(*(row("m" * 200 + str(i), i) for i in range(3)))
    assert max(map(len, result.as_text(width=100).splitlines()[:4])) <= 100


def test_few_prompts_are_not_ranked() -> None:
    """With fewer than ten prompts the display says so, with ten it does not."""
    assert "9 prompts are too few to rank models" in repr(grid(prompts=9))
    assert "too few" not in repr(grid(prompts=10))


def paid(model: str, place: int, usd: float | None, kind: str, **values: Any) -> dict[str, Any]:
    return row(model, place, cost_usd=usd, cost_kind=kind, **values)


def test_what_it_cost_is_told_as_well_as_it_is_known() -> None:
    """The sum is of what is known and estimated; the line beside the table tells what is not in it."""
    result = compared(
        paid("a", 0, 0.0102, "known"),
        paid("a", 1, 0.0000364, "estimated"),
        paid("b", 0, None, "unpriced"),
        paid("b", 1, None, "unpriced"),
        row("c", 0),
        row("c", 1, **FAILED),
    )
    assert result.cost_usd == pytest.approx(0.0102364)
    assert "\nCost: $0.0102 (1 answer estimated, 2 answers unpriced).\n" in result.as_text()
    summed = result.summary().set_index("spec")["cost_usd"]
    assert summed["echo:a"] == pytest.approx(0.0102364)
    assert summed["echo:c"] == 0
    assert summed.isna()["echo:b"]
    table = result.as_text().splitlines()
    assert table[0].endswith("cost, $")
    told = {line.split()[0]: line.split()[-1] for line in table[1:] if line.startswith("echo:")}
    assert told == {"echo:a": "0.0102", "echo:b": "\u2013", "echo:c": "0.0000"}


def test_what_nobody_knows_is_no_zero() -> None:
    """Where no answer has a price, there is no sum."""
    result = compared(paid("a", 0, None, "unpriced"), row("b", 0))
    assert result.cost_usd is None
    assert "Cost: unknown (1 answer unpriced)." in result.as_text()


def test_what_is_free_is_not_talked_about() -> None:
    """Local models cost 0 dollars, and neither a column nor a line says so."""
    result = grid()
    assert result.cost_usd == 0
    assert "cost" not in result.as_text().lower()
    assert "cost" not in result._repr_mimebundle_()["text/html"].lower()


def test_what_a_model_did_not_take_is_told() -> None:
    """Each model's ignored parameters once, by name, and none where all were taken."""
    result = compared(
        row("a", 0, ignored="seed, top_p"), row("a", 1, ignored="seed"), row("b", 0), row("b", 1)
    )
    assert "echo:a took no seed, top_p." in result.as_text()
    assert "echo:b took" not in result.as_text()
    assert list(result.frame["ignored"]) == ["seed, top_p", "seed", "", ""]


def test_dollars_are_no_formulas() -> None:
    """Two amounts in a text are not set as mathematics by JupyterLab: a class says so."""
    result = compared(paid("a", 0, 1.5, "known"), notes=["Budget: $1.50 of $2.00 spent."])
    shown = result._repr_mimebundle_()["text/html"]
    assert re.search(
        r'<div class="tex2jax_ignore mathjax_ignore"[^>]*>(<div>[^<]*</div>)*<div>Cost: \$1\.50',
        shown,
    )


def test_costs_are_drawn() -> None:
    """A chart of what answers cost tells its medians; what has no price has no value."""
    result = compared(paid("a", 0, 0.25, "known"), paid("b", 0, None, "unpriced"))
    told = result.chart("cost_usd").alt
    assert "cost (US dollars)" in told
    assert "echo:a 0.25" in told
    assert "echo:b no value" in told
