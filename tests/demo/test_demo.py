"""The shipped models do what their card says, and their lessons are honest."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import nbproviders as nbp
from nbproviders.demo import card, items
from nbproviders.demo.recipe import SIZES, build_tokenizer

pytest.importorskip("torch")

WEIGHTS = Path(nbp.demo.path("demo-m")).parent


def test_no_held_out_item_is_ever_taught() -> None:
    """Training never shows a prompt that the tasks ask, except in the recall tasks."""
    asked = {t["prompt"] for t in nbp.demo.tasks(200) if t["task"] not in nbp.demo.RECALL_TASKS}
    rng = random.Random(5)
    taught = {
        items.training_item(rng, task).prompt
        for task in nbp.demo.TASKS
        if task not in nbp.demo.RECALL_TASKS
        for _ in range(3000)
    }
    assert len(asked) > 500
    assert not asked & taught


def test_expected_answers_are_right() -> None:
    """The answer of each task is what its words say."""
    for task in nbp.demo.tasks(50):
        word = task["prompt"].split()[-1].rstrip(":=")
        want = {
            "upper": word.upper(),
            "reverse": word[::-1],
            "sort": "".join(sorted(word)),
        }.get(task["task"])
        if task["task"].startswith("add"):
            a, b = task["prompt"].rstrip("=").split("+")
            want = str(int(a) + int(b))
        assert want in (None, task["expected"])


def test_tasks_are_the_same_every_time() -> None:
    """Equal seeds give equal items; another seed gives others."""
    assert nbp.demo.tasks(5) == nbp.demo.tasks(5)
    assert nbp.demo.tasks(5) != nbp.demo.tasks(5, seed=1)


def test_the_family_differs_as_its_card_says() -> None:
    """demo-m is right on 95 % of the easy held-out items; demo-xs is clearly worse at sums."""
    shares = {}
    for name in nbp.demo.MODELS:
        with nbp.model(f"transformers:{name}") as model:
            for task in nbp.demo.TASKS:
                asked = nbp.demo.tasks(60, names=(task,))
                said = model.generate_many([t["prompt"] for t in asked], max_tokens=16)
                right = sum(s == t["expected"] for s, t in zip(said, asked, strict=True))
                shares[name, task] = right / len(asked)
        nbp.unload_all()
    easy = [task for task in nbp.demo.TASKS if task not in nbp.demo.HARD_TASKS]
    assert min(shares["demo-m", task] for task in easy) >= 0.95
    assert shares["demo-xs", "add2"] < 0.5 < shares["demo-s", "add2"]
    told = json.loads((WEIGHTS / "scores.json").read_text())
    for (name, task), share in shares.items():
        assert share == pytest.approx(told[name]["scores"][task], abs=0.1)


def test_the_card_tells_the_measured_scores(tmp_path: Path) -> None:
    """The shipped card is what the scores beside it give."""
    (tmp_path / "scores.json").write_text((WEIGHTS / "scores.json").read_text())
    card.write_card(tmp_path)
    assert (tmp_path / "MODEL_CARD.md").read_text() == (WEIGHTS / "MODEL_CARD.md").read_text()


def test_the_family_is_small_and_float16() -> None:
    """Together the models take less than 6 MB, GGUF included; safetensors are float16, with tokenizers."""
    files = [f for f in WEIGHTS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 6e6
    for name in SIZES:
        assert json.loads((WEIGHTS / name / "config.json").read_text())["dtype"] == "float16"
        saved = json.loads((WEIGHTS / name / "tokenizer.json").read_text())
        made = json.loads(build_tokenizer().backend_tokenizer.to_str())
        assert saved["model"] == made["model"]
        assert saved["post_processor"] == made["post_processor"]


def test_the_recipe_trains_and_writes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps of the recipe lower the loss and write a model that loads and a card."""
    import dataclasses

    from nbproviders.demo import recipe

    monkeypatch.setitem(recipe.SIZES, "demo-xs", dataclasses.replace(SIZES["demo-xs"], steps=12))
    recipe.main(["--only", "demo-xs", "--out", str(tmp_path)])
    assert "demo-xs" in (tmp_path / "MODEL_CARD.md").read_text()
    with nbp.model(f"transformers:{tmp_path / 'demo-xs'}") as model:
        assert model.generate("12+30=", max_tokens=2) is not None
    nbp.unload_all()


def test_an_unknown_demo_model() -> None:
    """A name that is not shipped has no path."""
    with pytest.raises(KeyError):
        nbp.demo.path("demo-xxl")
