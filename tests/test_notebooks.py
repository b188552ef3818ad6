"""The shipped notebooks: clean as they are stored, and running from top to bottom for a newcomer."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from nbproviders import demo, registry
from nbproviders.runtimes.checkpoints import read_weights

if TYPE_CHECKING:
    import pandas as pd

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
QUICKSTART = NOTEBOOKS / "01_quickstart.ipynb"
QUANTIZATION = NOTEBOOKS / "02_quantization.ipynb"
MEMORY = NOTEBOOKS / "03_memory.ipynb"
PROVIDER = NOTEBOOKS / "06_write_a_provider.ipynb"

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


def executed(path: Path, folder: Path, *needed: str) -> dict[str, Any]:
    """Return the outputs of a notebook by cell, executed in an empty folder without a network."""
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    for name in needed:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    # The extension's own settings and history must not be the user's.
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    # Nor shall another process that has models on a device of the same name take part.
    patch.setenv("XDG_RUNTIME_DIR", str(folder))
    notebook = read(path)
    try:
        client.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    finally:
        patch.undo()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> dict[str, Any]:
    return executed(QUICKSTART, tmp_path_factory.mktemp("lesson"), "transformers")


@pytest.fixture(scope="module")
def quantization(tmp_path_factory) -> dict[str, Any]:
    return executed(QUANTIZATION, tmp_path_factory.mktemp("lesson"), "transformers", "llama_cpp")


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> dict[str, Any]:
    return executed(MEMORY, tmp_path_factory.mktemp("lesson"), "transformers")


@pytest.fixture(scope="module")
def write_a_provider(tmp_path_factory) -> dict[str, Any]:
    return executed(PROVIDER, tmp_path_factory.mktemp("lesson"), "transformers")


@pytest.fixture(params=["quickstart", "quantization", "memory", "write_a_provider"])
def lesson(request) -> dict[str, Any]:
    """Each executed notebook in turn."""
    return request.getfixturevalue(request.param)


def text_of(outputs: Any) -> str:
    """Return what was printed and the cell's value, without what was only shown on the way."""
    printed = [out.text for out in outputs if out.output_type == "stream"]
    values = [out.data["text/plain"] for out in outputs if out.output_type == "execute_result"]
    return "".join(printed + values)


def test_runs_without_error(lesson):
    """No cell fails, nothing is written to stderr that a newcomer would have to understand."""
    kinds = {
        (name, out.output_type, out.get("name"))
        for name, outputs in lesson.items()
        for out in outputs
    }
    assert not [kind for kind in kinds if kind[1] == "error" or kind[2] == "stderr"]
    everything = json.dumps(lesson)
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


def frame_of(outputs: Any) -> pd.DataFrame:
    """Return a table that a cell shows, as numbers, from its plain text."""
    pd = pytest.importorskip("pandas")
    text = text_of(outputs).replace("another text", "another")
    return pd.read_csv(io.StringIO(text), sep=r"\s+")


def intervals(outputs: Any) -> list[tuple[int, int]]:
    """Return the bounds of each model's score in percent, from a comparison's plain text."""
    found = re.findall(r"\[(\d+)\u2013(\d+)%\]", text_of(outputs))
    return [(int(low), int(high)) for low, high in found]


def test_lesson_says_what_it_needs(monkeypatch):
    """Without llama.cpp the first cell ends with what to install, and with nothing else wrong."""
    monkeypatch.setitem(registry._NEEDS, "llama-cpp", (("absent_module",), "llama-cpp"))
    (cell,) = [cell for cell in read(QUANTIZATION).cells if cell.id == "needs"]
    with pytest.raises(AssertionError, match=r"needs llama.cpp.*absent_module.*pip install"):
        exec(cell.source, {})


def test_rounding_is_the_form_s_own():
    """The weights rounded by hand are those of the shipped Q4_0 file, but for the scale's 16 bits."""
    gguf = pytest.importorskip("gguf")
    code = {cell.id: cell.source for cell in read(QUANTIZATION).cells}
    steps = code["weights"].partition("farthest = ")
    names = {"np": np, "weights": shipped_row("demo-xs", "F16", gguf)}
    exec(f"farthest = {steps[2]}", names)
    whole = shipped_row("demo-xs", "Q4_0", gguf)
    assert np.abs(names["rounded"] - whole).max() < np.abs(names["scale"]) * 8 / 1024


def shipped_row(model: str, form: str, gguf: Any) -> Any:
    """Return the first 32 weights that the lesson takes, as a shipped file has them."""
    reader = gguf.GGUFReader(demo.gguf_path(model) / f"{model}-{form}.gguf")
    (tensor,) = [one for one in reader.tensors if one.name == "blk.0.ffn_up.weight"]
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)[0].astype(np.float32)


def test_small_model_loses_by_four_bits(quantization):
    """What the lesson says of demo-xs holds: the interval of Q4_0 lies below all others, which overlap."""
    *others, four_bits = intervals(quantization["compare-small"])
    assert len(others) == 3
    assert four_bits[1] < min(low for low, _ in others)
    assert max(low for low, _ in others) < min(high for _, high in others)
    counts = frame_of(quantization["changes"])
    assert list(counts.index) == ["float32", "F16", "Q8_0", "Q4_0"]
    assert counts["another"]["F16"] <= 5
    assert 10 * counts["lost"]["Q8_0"] < counts["lost"]["Q4_0"]
    assert counts["another"]["Q8_0"] > 10
    assert counts["lost"]["Q4_0"] > 3 * counts["gained"]["Q4_0"] > 0


def test_large_model_loses_nothing(quantization):
    """What the lesson says of demo-m holds: four bits lose next to no right answer."""
    assert {high for _, high in intervals(quantization["compare-large"])} == {100}
    assert max(low for low, _ in intervals(quantization["compare-large"])) < 100
    assert frame_of(quantization["changes-large"])["lost"].max() <= 1


def test_sizes_are_the_files(quantization):
    """Each step to fewer bits makes the file smaller, and the table has the bytes of the files."""
    shown = re.findall(r"(\d[\d,]*) +[\d.]+$", text_of(quantization["sizes"]), re.MULTILINE)
    sizes = [int(found.replace(",", "")) for found in shown]
    files = [
        (demo.gguf_path(model) / f"{model}-{form}.gguf").stat().st_size
        for model in demo.GGUF
        for form in demo.QUANTS
    ]
    assert sizes[1:4] + sizes[5:] == files
    assert sizes[:4] == sorted(sizes[:4], reverse=True)
    assert sizes[4:] == sorted(sizes[4:], reverse=True)


def test_probabilities_differ(quantization):
    """On the chosen prompt float32 and Q4_0 put another letter first; Q8_0 keeps that of float32."""
    (shown,) = [out for out in quantization["next-tokens"] if "image/png" in out.get("data", {})]
    first = dict(re.findall(r"(float32|F16|Q8_0|Q4_0): (\S+) [\d.<>]+%", shown.data["text/plain"]))
    assert first["float32"] == first["F16"] == first["Q8_0"] != first["Q4_0"]
    perplexities = [
        float(found)
        for found in re.findall(r"perplexity ([\d.]+)", text_of(quantization["scores"]))
    ]
    assert len(perplexities) == 4
    assert perplexities[3] > max(perplexities[:3])


def test_charts_have_words(quantization):
    """Every chart of the lesson is a picture with alternative text."""
    for name in ("rounding-chart", "size-chart", "next-tokens", "speed", "speed-large"):
        data = quantization[name][-1].data
        assert "image/png" in data
        assert re.search(r'<img alt="[^"]{20,}"', data["text/html"])
    assert set(demo.GGUF) <= set(re.findall(r"demo-\w+", text_of(quantization["residents"])))
    assert int(text_of(quantization["unload"])) > 1_000_000


def states(outputs: Any) -> dict[str, str]:
    """Return the state of each model in a table of residents, from its plain text."""
    found = re.findall(r"^gpu:(\S+) +(\w+)", text_of(outputs), re.MULTILINE)
    return dict(found)


def test_two_of_three_fit(memory):
    """What the lesson says of the sizes holds: any two models fit the device, all three do not."""
    limit = float(text_of(memory["fits"]).splitlines()[2].split()[-2])
    *each, together = map(float, re.findall(r"([\d.]+) MiB", text_of(memory["sum"])))
    assert len(each) == 3
    assert sum(sorted(each)[1:]) < limit < together
    assert limit < 8


def test_one_sleeps_and_wakes(memory):
    """The third model sends the one to sleep that was told before; it wakes quicker than it was loaded."""
    assert states(memory["residents"]) == {"demo-s": "ready", "demo-m": "ready"}
    assert "demo-xs fits once gpu:demo-s sleeps." in text_of(memory["third-fits"])
    after = {"demo-s": "asleep", "demo-m": "ready", "demo-xs": "ready"}
    assert states(memory["third"]) == after
    assert text_of(memory["third"]).startswith("44\n")  # the text calls it wrong
    created, woken = re.findall(r"(?:created|woken) +([\d.]+) s", text_of(memory["wakes"]))
    assert float(woken) < float(created)
    assert text_of(memory["wakes"]).endswith("from host copy\n")
    came_back = int(text_of(memory["by-hand"]).split()[0].replace(",", ""))
    weights = read_weights(demo.path("demo-s"))
    assert weights is not None
    assert 1 <= came_back / weights.bytes_as("float32") < 1.05  # what aligns it comes on top


def test_open_and_pinned_models(memory):
    """An open model is shown with its cell; a pinned one stays although it was used the longest time ago."""
    assert text_of(memory["handle"]) == "egirt\n"
    assert re.search(
        r"^gpu:demo-s +ready .* 1 in In \[\d+\] ", text_of(memory["handle-shown"]), re.M
    )
    after = {"demo-s": "ready", "demo-m": "ready", "demo-xs": "asleep"}
    assert states(memory["pinned"]) == after
    pinned = re.findall(r"^gpu:(\S+) +ready, pinned ", text_of(memory["pinned"]), re.MULTILINE)
    assert pinned == ["demo-m"]


def test_refusals_are_shown(memory):
    """Three at once and a second large one are refused, and the error's table names the pinned model."""
    assert text_of(memory["together"]) == "retto retto\n"
    assert "7.6 MiB on virtual:0" in text_of(memory["not-together"])
    refused = text_of(memory["refused"])
    assert "too much" in refused
    assert re.search(r"^  gpu:demo-m: .*pinned\)$", refused, re.MULTILINE)
    assert "nbp.unload_all()" in refused.splitlines()[-1]


def test_budget_evicts(memory):
    """For the same model the large one first sleeps, and with the budget for copies it is evicted."""
    half = "demo-m?dtype=bfloat16"
    before, after = states(memory["unpin"]), states(memory["budget"])
    assert before == {"demo-s": "ready", "demo-m": "asleep", "demo-xs": "asleep", half: "ready"}
    assert after == {"demo-s": "ready", "demo-xs": "asleep", half: "ready"}
    (shown,) = memory["chart"]
    assert "image/png" in shown.data
    assert re.search(r"gpu:demo-m loaded 1.[^;]*evicted 1., at the end gone", text_of([shown]))


def test_comparison_moves_the_least(memory):
    """The comparison of more models than fit loads each once; the panel after it can be read anywhere."""
    assert "3 loads, 3.6 MiB moved into memory: the least there can be." in text_of(
        memory["comparison"]
    )
    assert text_of(memory["panel"]).startswith("ResidentsPanel\n")
    assert set(states(memory["panel"]).values()) == {"ready", "asleep"}
    assert "gpu:demo-m" in memory["panel"][0].data["text/html"]
    assert int(text_of(memory["unload"]).split()[0].replace(",", "")) > 3_000_000


def test_own_provider_is_set_up_once(write_a_provider):
    """The provider of the lesson is set up by its first use, not again, and torn down when it is unloaded."""
    assert text_of(write_a_provider["ask"]) == "set up: sums\n42\n"
    assert text_of(write_a_provider["again"]) == "6\n42 99\n"
    assert text_of(write_a_provider["unload"]).startswith("torn down: sums\n")
    assert "Take sums or words." in text_of(write_a_provider["refused"])


def test_own_provider_is_picked_and_compared(write_a_provider):
    """It is in the picker, and right in a comparison wherever it has a rule; the rest fails alone."""
    assert "rules:words" in write_a_provider["picker"][0].data["text/html"]
    (shown,) = [o for o in write_a_provider["comparison"] if "text/html" in o.get("data", {})]
    assert re.search(r"rules:sums +70 +50 +100%", shown.data["text/plain"])
    assert re.search(r"rules:words +70 +40 +100%", shown.data["text/plain"])
    by_task = frame_of(write_a_provider["by-task"]).set_index("spec")
    assert list(by_task.index[by_task["rules:sums"] == 1]) == ["add2", "add3"]
    assert list(by_task.index[by_task["rules:words"] == 1]) == ["upper", "reverse", "sort"]
    assert text_of(write_a_provider["streaming"]).replace("|", "") == "rett"


def test_own_provider_is_proved(write_a_provider):
    """The table shows that it keeps its promises; the careless one breaks those that the text names."""
    (shown,) = [o for o in write_a_provider["check"] if "text/html" in o.get("data", {})]
    assert re.search(r"rules:sums: \d\d ok, 0 failed", shown.data["text/plain"])
    broken = re.findall(r"^(\w+): ", text_of(write_a_provider["broken"]), re.MULTILINE)
    assert broken
    assert {name.partition("_")[0] for name in broken} == {"failed"}
    assert "src/my_provider/provider.py" in text_of(write_a_provider["kit"])
