"""The picker in a real JupyterLab, clicked in a real browser."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("jupyterlab", "playwright") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICK = "import nbproviders as nbp\npicker = nbp.ModelPicker()\npicker"
ABSENT = """from nbproviders import registry
registry._NEEDS["llama-cpp"] = (("absent_module",), "llama-cpp")
"""
AWAIT = """import asyncio, time
began_s = time.monotonic()
while picker.model is None and time.monotonic() - began_s < 30:
    await asyncio.sleep(0.05)
print("loaded while the cell ran:", picker.model is not None)"""


def notebook(*cells: str) -> str:
    made: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "id": f"cell{i}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": cell,
        }
        for i, cell in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made}
    return json.dumps(whole)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    began_s = time.monotonic()
    while time.monotonic() - began_s < 60:
        assert server.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


class Lab:
    """A JupyterLab of its own, without token, on the loopback."""

    def __init__(self, folder: Path) -> None:
        self.root, self._home, self._log = folder / "work", folder / "home", folder / "lab.log"
        self.root.mkdir()
        (self.root / "picker.ipynb").write_text(notebook(PICK))
        (self.root / "keyboard.ipynb").write_text(notebook(PICK))
        (self.root / "on_disk.ipynb").write_text(notebook(ABSENT + PICK))
        (self.root / "awaiting.ipynb").write_text(notebook(PICK, AWAIT))
        below = self._home / ".lmstudio" / "models" / "a-publisher" / ("a-long-name-" * 8)
        below.mkdir(parents=True)
        (below / "small-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(2044))
        self._set("notification", fetchNews="false", checkForUpdates=False)
        self.address = f"http://127.0.0.1:{free_port()}"

    def theme(self, name: str) -> None:
        """Have the next page opened in a theme."""
        self._set("themes", theme=name)

    def _set(self, part: str, **values: object) -> None:
        folder = self._home / "settings" / "@jupyterlab" / "apputils-extension"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.jupyterlab-settings").write_text(json.dumps(values))

    @contextlib.contextmanager
    def running(self) -> Iterator[Lab]:
        """Start it; end it with all its kernels."""
        with self._log.open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *self._arguments()],
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
            try:
                wait_until_up(f"{self.address}/lab", server, self._log)
                yield self
            finally:
                end(server)

    def _arguments(self) -> list[str]:
        return [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.address.rpartition(':')[2]}",
            "--ServerApp.port_retries=0",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={self.root}",
        ]

    def _environment(self) -> dict[str, str]:
        places = ("config", "runtime", "data")
        jupyter = {f"JUPYTER_{name.upper()}_DIR": str(self._home / name) for name in places}
        return {
            **os.environ,
            **jupyter,
            "HOME": str(self._home),
            "IPYTHONDIR": str(self._home / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(self._home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self._home / "workspaces"),
            # The kernel finds what this process finds.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }


def end(server: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")).running() as running:
        yield running


def open_and_run(page: Any, lab: Lab, name: str, shows: str = "select") -> None:
    """Open a notebook alone, without side bars, and run its first cell until its output has an element."""
    from playwright.sync_api import TimeoutError

    page.goto(f"{lab.address}/doc/tree/{name}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    for _ in range(3):  # Lab drops a cell that is run before its kernel is connected
        run_cell(page, 0)
        with contextlib.suppress(TimeoutError):
            page.locator(f".jp-OutputArea-output {shows}").first.wait_for(timeout=10_000)
            return
    raise AssertionError("the cell did not run")


def run_cell(page: Any, index: int) -> None:
    page.locator(".jp-Notebook .jp-Cell .cm-content").nth(index).click()
    page.keyboard.press("Control+Enter")


def screenshot(page: Any, name: str, tmp_path: Path) -> None:
    """Save what is seen, where NBPROVIDERS_SCREENSHOTS says or beside the test's files."""
    folder = Path(os.environ.get("NBPROVIDERS_SCREENSHOTS", tmp_path))
    page.screenshot(path=str(folder / name))


def fits(page: Any) -> bool:
    """Whether no output has to be scrolled sideways; a line to type in scrolls within itself."""
    return bool(
        page.evaluate(
            "[...document.querySelectorAll('.jp-OutputArea-output, .jp-OutputArea-output *')]"
            ".filter(box => getComputedStyle(box).overflowX !== 'visible' && !box.matches('input'))"
            ".every(box => box.scrollWidth <= box.clientWidth + 1)"
        )
    )


def click(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def says(page: Any, words: str) -> None:
    page.locator("[role=status]", has_text=re.compile(words)).wait_for()


@pytest.mark.slow
def test_a_click_on_load_loads_the_model(lab: Lab, page: Any, tmp_path: Path) -> None:
    """Clicking Load loads the model and says so; Unload gives its memory back."""
    open_and_run(page, lab, "picker.ipynb")
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
    open_and_run(page, lab, "keyboard.ipynb")
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
    open_and_run(page, lab, "on_disk.ipynb")
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
    open_and_run(page, lab, "awaiting.ipynb")
    run_cell(page, 1)
    page.locator(".jp-InputPrompt", has_text="[*]").last.wait_for()
    click(page, "Load")
    page.locator(".jp-OutputArea-output", has_text="loaded while the cell ran: True").wait_for()
    screenshot(page, "picker-awaiting.png", tmp_path)
