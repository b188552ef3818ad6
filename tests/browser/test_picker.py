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
AWAIT = """import asyncio, time
began_s = time.monotonic()
while picker.model is None and time.monotonic() - began_s < 30:
    await asyncio.sleep(0.05)
print("loaded while the cell ran:", picker.model is not None)"""


def notebook(*cells: str) -> str:
    made = [
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


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """A JupyterLab of its own, without token, on the loopback; its address."""
    (tmp_path / "light.ipynb").write_text(notebook(PICK))
    (tmp_path / "awaiting.ipynb").write_text(notebook(PICK, AWAIT))
    port = free_port()
    home = tmp_path / "home"
    # PYTHONPATH: the kernel finds what this process finds.
    env = os.environ | {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    arguments = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    arguments += [f"--ServerApp.port={port}", "--IdentityProvider.token="]
    arguments += ["--ServerApp.password=", f"--ServerApp.root_dir={tmp_path}"]
    arguments += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class="]
    arguments[-1] += "jupyterlab.NeverCheckForUpdate"
    log = tmp_path / "lab.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments],
            stdout=out,
            stderr=out,
            env=env,
            start_new_session=True,
        )
        try:
            wait_until_up(f"http://127.0.0.1:{port}/lab", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(10)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 900, "height": 800})
            page.set_default_timeout(30_000)
            yield page
            screenshot(page, "picker-last-seen.png", tmp_path)
        finally:
            browser.close()


def open_and_run(page: Any, address: str) -> None:
    """Open a notebook alone, without Lab's side bar, and run all its cells."""
    page.goto(address)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("Python 3").first.wait_for()
    page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    page.locator(".widget-dropdown").wait_for()


def screenshot(page: Any, name: str, tmp_path: Path) -> None:
    """Save what is seen, where NBPROVIDERS_SCREENSHOTS says or beside the test's files."""
    folder = Path(os.environ.get("NBPROVIDERS_SCREENSHOTS", tmp_path))
    page.screenshot(path=str(folder / name))


def fits(page: Any) -> bool:
    """Whether no output has to be scrolled sideways."""
    return bool(
        page.evaluate(
            "[...document.querySelectorAll('.jp-OutputArea-output')]"
            ".every(box => box.scrollWidth <= box.clientWidth + 1)"
        )
    )


@pytest.mark.slow
def test_a_click_on_load_loads_the_model(lab: str, page: Any, tmp_path: Path) -> None:
    """Clicking Load loads the model and says so, in the light and in the dark theme."""
    open_and_run(page, f"{lab}/lab/tree/light.ipynb")
    page.get_by_role("button", name="Load", exact=True).click()
    status = page.locator("[role=status]", has_text="Loaded transformers:demo-m")
    status.wait_for()
    assert page.get_by_label("Provider").input_value() == "transformers"
    assert page.get_by_label("Model").input_value() == "demo-m"
    assert 'nbp.load("transformers:demo-m")' in page.get_by_label("Same in code").input_value()
    assert fits(page)
    screenshot(page, "picker-light.png", tmp_path)
    page.evaluate("document.body.dataset.jpThemeLight")
    page.get_by_role("button", name="Unload", exact=True).click()
    page.locator("[role=status]", has_text=re.compile("Unloaded .* came back")).wait_for()


@pytest.mark.slow
def test_a_click_acts_while_a_cell_awaits(lab: str, page: Any, tmp_path: Path) -> None:
    """On ipykernel 7.4 a click during an awaiting cell loads the model before the cell is over."""
    import ipykernel

    if ipykernel.version_info < (7, 4):
        pytest.skip("older kernels act on clicks after the cell")
    open_and_run(page, f"{lab}/lab/tree/awaiting.ipynb")
    page.keyboard.press("Shift+Enter")
    page.locator(".jp-InputPrompt", has_text="[*]").last.wait_for()
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("loaded while the cell ran: True").last.wait_for()
    screenshot(page, "picker-awaiting.png", tmp_path)
