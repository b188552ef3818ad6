"""The shipped notebooks: clean as they are stored, and running from top to bottom for a newcomer."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
QUICKSTART = NOTEBOOKS / "01_quickstart.ipynb"

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def read(path: Path) -> Any:
    return nbformat.read(str(path), as_version=4)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_stored_clean(path):
    """A notebook is stored valid, in the current format, without outputs, counts or widget state."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> dict[str, Any]:
    """The outputs of the quickstart by cell, executed once in an empty folder without a network."""
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    folder = tmp_path_factory.mktemp("lesson")
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    # The extension's own settings and history must not be the user's.
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = read(QUICKSTART)
    try:
        client.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    finally:
        patch.undo()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text_of(outputs: Any) -> str:
    """Return what was printed and the cell's value, without what was only shown on the way."""
    printed = [out.text for out in outputs if out.output_type == "stream"]
    values = [out.data["text/plain"] for out in outputs if out.output_type == "execute_result"]
    return "".join(printed + values)


def test_runs_without_error(quickstart):
    """No cell fails, nothing is written to stderr that a newcomer would have to understand."""
    kinds = {
        (name, out.output_type, out.get("name"))
        for name, outputs in quickstart.items()
        for out in outputs
    }
    assert not [kind for kind in kinds if kind[1] == "error"]
    everything = json.dumps(quickstart)
    assert "model not found" not in everything.lower()
    assert "Traceback" not in everything
    assert "Warning" not in everything


def test_answers_are_right(quickstart):
    """The first answers a newcomer sees are the right ones."""
    assert text_of(quickstart["first"]) == "42\n"
    assert text_of(quickstart["second"]).startswith("retto ")
    assert "equal to 'retto': True" in text_of(quickstart["knows"])
    assert text_of(quickstart["streaming"]).replace("|", "") == "Oslo"
    assert text_of(quickstart["turns"]) == "'OTTER'"
    assert "'bread': 'abder'" in text_of(quickstart["batch"])


def test_second_opening_is_instant(quickstart):
    """A model that is in memory is opened in far less than a load takes."""
    found = re.search(r"opened in (\d+) µs", text_of(quickstart["second"]))
    assert found is not None
    assert int(found[1]) < 50_000


def test_picker_has_a_static_form(quickstart):
    """The picker's output can be read where no kernel and no widget is."""
    (shown,) = quickstart["picker"]
    assert "transformers:demo-m" in shown.data["text/html"]


def test_comparison_is_table_and_chart(quickstart):
    """The comparison is an HTML table of the three models with a PNG chart, and plain text beside it."""
    (shown,) = [out for out in quickstart["comparison"] if "text/html" in out.get("data", {})]
    page = shown.data["text/html"]
    assert "<table" in page
    assert "data:image/png;base64," in page
    assert "<script" not in page
    rates = [
        int(found)
        for found in re.findall(r"transformers:demo-\w+ .*? (\d+)%", shown.data["text/plain"])
    ]
    assert len(rates) == 3
    assert rates[0] < rates[2]


def test_more_tables_and_a_chart(quickstart):
    """The split by task and the wrong answers are tables; the chart of times is a picture."""
    for name in ("by-task", "mistakes", "sums", "residents"):
        assert "<table" in quickstart[name][-1].data["text/html"]
    assert {"image/png"} <= set(quickstart["chart"][-1].data)


def test_unload_gives_memory_back(quickstart):
    """Unloading tells the bytes that came back, and the model is gone from the table."""
    assert int(text_of(quickstart["unload"])) > 1_000_000
    assert "demo-m" in text_of(quickstart["residents"])
    assert "demo-m" not in text_of(quickstart["after"])
