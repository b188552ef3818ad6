"""The residents panel in a real JupyterLab, clicked in a real browser, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import (
    Lab,
    fits,
    notebook,
    open_and_run,
    pytestmark as needs,
    run_cell,
    says,
    screenshot,
)

pytestmark = needs
# Models that say they hold gigabytes; two of three can sleep. It lies beside the notebooks.
LESSON = """import os
from dataclasses import replace

import nbproviders as nbp
from nbproviders.abc import ResidentProvider
from nbproviders.residency.sleeping import Transfer
from tests.scripted import ScriptedModel

os.environ["NBPROVIDERS_BUDGET"] = "gpu:0=24GiB,host=16GiB"

class Sleepy(ScriptedModel):
    def __init__(self, held):
        super().__init__(memory_bytes=held)
        self.info = replace(self.info, can=frozenset({"sleep"}))

    async def sleep(self, progress):
        return Transfer({"host": self.info.memory_bytes["host"]})

    async def wake(self, progress):
        return Transfer(self.info.memory_bytes, 1, "host copy")

class Lesson(ResidentProvider):
    options = None

    def load(self, key, progress):
        if "plain" in key.model:
            return ScriptedModel(memory_bytes={"cpu": 350 * 2**20})
        held = (9 if "large" in key.model else 3) * 2**30
        return Sleepy({"gpu:0": held, "host": held})

nbp.register_provider("lesson", Lesson)
"""
OPEN = """import lesson, nbproviders as nbp
names = "org/large-instruct?dtype=bfloat16", "small", "plain"
models = [await nbp.load(f"lesson:{name}") for name in names]
panel = nbp.ResidentsPanel()
panel"""
AWAIT = """import asyncio, time
began_s = time.monotonic()
def asleep():
    return [one.spec for one in nbp.residents() if one.state == "warm"]
while not asleep() and time.monotonic() - began_s < 30:
    await asyncio.sleep(0.05)
print("asleep while the cell ran:", asleep())"""
AGAIN = """import lesson, nbproviders as nbp
panels = globals().get("panels", []) + [nbp.ResidentsPanel()]
panels[-1]"""
LOOK = "print('on a page:', [(panel._view_count, panel._watch.busy) for panel in panels])"
LOAD = 'm = await nbp.load("lesson:later")'
INLINE = """import lesson, nbproviders as nbp
m = [await nbp.load(f"lesson:{name}") for name in ("org/large-instruct?dtype=bfloat16", "plain")]
nbp.unload("lesson:plain")
display(nbp.residents(), nbp.events())"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    (lab.root / "lesson.py").write_text(LESSON)
    for name in ("clicks", "keyboard"):
        (lab.root / f"{name}.ipynb").write_text(notebook(OPEN))
    (lab.root / "awaiting.ipynb").write_text(notebook(OPEN, AWAIT))
    (lab.root / "again.ipynb").write_text(notebook(AGAIN, LOOK, LOAD))
    (lab.root / "inline.ipynb").write_text(notebook(INLINE))
    with lab.running():
        yield lab


PANEL = "textarea"


def row(page: Any, spec: str) -> Any:
    """Return the row of a model."""
    return page.locator(".widget-hbox", has_text=spec)


def press(page: Any, spec: str, name: str) -> None:
    row(page, spec).get_by_role("button", name=name, exact=True).click()


def lines_up(page: Any) -> bool:
    """Whether the buttons of all rows stand below each other, whole, each beside its own row."""
    return bool(
        page.evaluate(
            """() => {
              const rows = [...document.querySelectorAll('.jp-OutputArea-output .widget-hbox')];
              const lefts = rows.map(row => [...row.querySelectorAll('button')].map(button => {
                const [inner, outer] = [button.getBoundingClientRect(), row.getBoundingClientRect()];
                const whole = inner.right <= outer.right + 1 && inner.top >= outer.top - 1
                  && inner.bottom <= outer.bottom + 1 && button.scrollWidth <= button.clientWidth;
                return whole ? Math.round(inner.left) : NaN;
              }).join());
              return rows.length > 0 && new Set(lefts).size === 1 && !lefts[0].includes('NaN');
            }"""
        )
    )


@pytest.mark.slow
def test_buttons_do_what_they_say(lab: Lab, page: Any, tmp_path: Path) -> None:
    """Sleep, Pin and Unload act on their own row, tell it, show the code, and say why one is disabled."""
    open_and_run(page, lab, "clicks.ipynb", PANEL)
    assert row(page, "lesson:plain").get_by_role("button", name="Sleep").is_disabled()
    reason = row(page, "lesson:plain").get_by_role("button", name="Sleep").get_attribute("title")
    assert "cannot sleep" in reason
    press(page, "org/large", "Pin")
    says(page, "stays in memory until it is unpinned")
    assert row(page, "org/large").get_by_role("button", name="Sleep").is_disabled()
    press(page, "lesson:small", "Sleep")
    says(page, "lesson:small is asleep: 3.0 GiB came back")
    row(page, "lesson:small").get_by_text("asleep").wait_for()
    assert page.get_by_label("Code", exact=True).input_value() == 'nbp.sleep("lesson:small")'
    assert fits(page)
    assert lines_up(page)
    screenshot(page, "residents.png", tmp_path)
    page.set_viewport_size({"width": 480, "height": 1000})
    assert fits(page)
    assert lines_up(page)
    screenshot(page, "residents-narrow.png", tmp_path)
    press(page, "lesson:plain", "Unload")
    says(page, "Unloaded lesson:plain: 350.0 MiB came back")
    row(page, "lesson:plain").wait_for(state="detached")


@pytest.mark.slow
def test_the_keyboard_is_enough(lab: Lab, page: Any, tmp_path: Path) -> None:
    """Buttons are pressed by keys and keep the focus when their words change; readable in the dark theme."""
    lab.theme("JupyterLab Dark")
    open_and_run(page, lab, "keyboard.ipynb", PANEL)
    row(page, "lesson:small").get_by_role("button", name="Sleep").focus()
    page.keyboard.press("Enter")
    says(page, "is asleep")
    assert page.evaluate("document.activeElement.innerText") == "Wake"
    page.keyboard.press("Space")
    says(page, "lesson:small is ready")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    says(page, "stays in memory")
    assert page.evaluate("document.activeElement.innerText") == "Unpin"
    assert fits(page)
    screenshot(page, "residents-dark.png", tmp_path)
    lab.theme("JupyterLab Light")


@pytest.mark.slow
def test_a_click_acts_while_a_cell_awaits(lab: Lab, page: Any) -> None:
    """On ipykernel 7.4 a click during an awaiting cell puts a model to sleep before the cell is over."""
    import ipykernel

    if ipykernel.version_info < (7, 4):
        pytest.skip("older kernels may act on clicks after the cell")
    open_and_run(page, lab, "awaiting.ipynb", PANEL)
    run_cell(page, 1)
    page.locator(".jp-InputPrompt", has_text="[*]").last.wait_for()
    press(page, "lesson:small", "Sleep")
    page.locator(".jp-OutputArea-output", has_text="cell ran: ['lesson:small']").wait_for()


@pytest.mark.slow
def test_a_cell_run_again_leaves_no_watch(lab: Lab, page: Any) -> None:
    """Only the panel that is on the page looks; it shows what another cell loads."""
    open_and_run(page, lab, "again.ipynb", PANEL)
    run_cell(page, 1)
    page.locator(".jp-OutputArea-output", has_text="on a page: [(1, True)]").wait_for()
    run_cell(page, 0)
    page.locator(".jp-InputPrompt", has_text="[3]").wait_for()
    page.locator(f".jp-OutputArea-output {PANEL}").wait_for()
    run_cell(page, 1)
    page.locator(".jp-OutputArea-output", has_text="[(0, False), (1, True)]").wait_for()
    run_cell(page, 2)
    row(page, "lesson:later").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_the_lists_are_readable(lab: Lab, page: Any, tmp_path: Path, theme: str) -> None:
    """Residents and events as a cell's output fit, in both themes; the chart has words of its own."""
    lab.theme(f"JupyterLab {theme}")
    page.set_viewport_size({"width": 900, "height": 1400})
    open_and_run(page, lab, "inline.ipynb", "table")
    chart = page.locator(".jp-OutputArea-output img")
    chart.wait_for()
    assert "lesson:plain loaded" in chart.get_attribute("alt")
    assert page.get_by_role("img", name="idle models 9.0 GiB").count() > 0
    assert fits(page)
    screenshot(page, f"residents-inline-{theme.lower()}.png", tmp_path)
    lab.theme("JupyterLab Light")
