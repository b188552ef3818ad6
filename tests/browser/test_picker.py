"""The picker in a real JupyterLab, clicked in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import (
    Lab,
    click,
    fits,
    notebook,
    open_and_run,
    pytestmark as needs,
    run_cell,
    says,
    screenshot,
)

pytestmark = needs
PICK = "import nbproviders as nbp\npicker = nbp.ModelPicker()\npicker"
ABSENT = """from nbproviders import registry
registry._NEEDS["llama-cpp"] = (("absent_module",), "llama-cpp")
"""
AWAIT = """import asyncio, time
began_s = time.monotonic()
while picker.model is None and time.monotonic() - began_s < 30:
    await asyncio.sleep(0.05)
print("loaded while the cell ran:", picker.model is not None)"""
# The search of the disk is over: what it finds would replace what a test types.
SEARCHED = "option:text('choose one, or fill in the fields')"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    (lab.root / "picker.ipynb").write_text(notebook(PICK))
    (lab.root / "keyboard.ipynb").write_text(notebook(PICK))
    (lab.root / "on_disk.ipynb").write_text(notebook(ABSENT + PICK))
    (lab.root / "awaiting.ipynb").write_text(notebook(PICK, AWAIT))
    below = lab.home / ".lmstudio" / "models" / "a-publisher" / ("a-long-name-" * 8)
    below.mkdir(parents=True)
    (below / "small-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(2044))
    with lab.running():
        yield lab


@pytest.mark.slow
def test_a_click_on_load_loads_the_model(lab: Lab, page: Any, tmp_path: Path) -> None:
    """Clicking Load loads the model and says so; Unload gives its memory back."""
    open_and_run(page, lab, "picker.ipynb", SEARCHED)
    assert page.get_by_label("Provider").input_value() == "transformers"
    assert page.get_by_label("Model").input_value() == "demo-m"
    assert 'nbp.load("transformers:demo-m")' in page.get_by_label("Code", exact=True).input_value()
    click(page, "Load")
    says(page, "Loaded transformers:demo-m")
    assert fits(page)
    screenshot(page, "picker.png", tmp_path)
    click(page, "Unload")
    says(page, "Unloaded .* came back")


@pytest.mark.slow
def test_the_keyboard_is_enough(lab: Lab, page: Any, tmp_path: Path) -> None:
    """Model, options and Load are reached by Tab; an error is told, readable in the dark theme."""
    lab.theme("JupyterLab Dark")
    open_and_run(page, lab, "keyboard.ipynb", SEARCHED)
    page.get_by_label("Model").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("demo-xs")
    page.keyboard.press("Tab")
    page.keyboard.type("dtyp=float32")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    says(page, "dtyp")
    page.get_by_label("Options").fill("")
    page.get_by_label("Options").press("Enter")
    says(page, "Not loaded")
    page.get_by_label("Options").press("Tab")
    page.keyboard.press("Space")
    says(page, "Loaded transformers:demo-xs")
    assert page.evaluate("document.activeElement.innerText") == "Load"
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("dtyp=float32")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    says(page, "dtyp")
    assert fits(page)
    screenshot(page, "picker-dark.png", tmp_path)
    lab.theme("JupyterLab Light")


@pytest.mark.slow
def test_a_model_on_disk_is_chosen(lab: Lab, page: Any, tmp_path: Path) -> None:
    """A model chosen from those on disk fills the fields and loads; one that cannot run here says why."""
    open_and_run(page, lab, "on_disk.ipynb", SEARCHED)
    found = page.get_by_label("On disk")
    labels = page.locator("option", has_text=" · ")
    labels.first.wait_for(state="attached")
    shown = labels.all_text_contents()  # their blanks are no-break spaces
    (studio,) = [label for label in shown if "small-Q4_K_M" in label]
    found.select_option(label=studio)
    says(page, "absent_module not installed: pip install")
    assert page.get_by_label("Provider").input_value() == "llama-cpp (not available)"
    assert page.get_by_role("button", name="Load", exact=True).is_disabled()
    assert fits(page)
    screenshot(page, "picker-on-disk.png", tmp_path)
    (small,) = [label for label in shown if label.endswith(":demo-xs")]
    found.select_option(label=small)
    says(page, "Not loaded")
    assert page.get_by_label("Model").input_value() == "demo-xs"
    click(page, "Load")
    says(page, "Loaded transformers:demo-xs")


@pytest.mark.slow
def test_a_click_acts_while_a_cell_awaits(lab: Lab, page: Any, tmp_path: Path) -> None:
    """On ipykernel 7.4 a click during an awaiting cell loads the model before the cell is over."""
    import ipykernel

    if ipykernel.version_info < (7, 4):
        pytest.skip("older kernels may act on clicks after the cell")
    open_and_run(page, lab, "awaiting.ipynb", SEARCHED)
    run_cell(page, 1)
    page.locator(".jp-InputPrompt", has_text="[*]").last.wait_for()
    click(page, "Load")
    page.locator(".jp-OutputArea-output", has_text="loaded while the cell ran: True").wait_for()
    screenshot(page, "picker-awaiting.png", tmp_path)
