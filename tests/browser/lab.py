"""A real JupyterLab and a real browser, and what tests do with them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbproviders.runtimes.process import ports

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
        self.root, self.home, self._log = folder / "work", folder / "home", folder / "lab.log"
        self.root.mkdir()
        self._set("notification", fetchNews="false", checkForUpdates=False)
        self.address = f"http://127.0.0.1:{ports.reserve(folder).port}"

    def theme(self, name: str) -> None:
        """Have the next page opened in a theme."""
        self._set("themes", theme=name)

    def _set(self, part: str, **values: object) -> None:
        folder = self.home / "settings" / "@jupyterlab" / "apputils-extension"
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
        jupyter = {f"JUPYTER_{name.upper()}_DIR": str(self.home / name) for name in places}
        return {
            **os.environ,
            **jupyter,
            "HOME": str(self.home),
            "IPYTHONDIR": str(self.home / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(self.home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.home / "workspaces"),
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


def open_and_run(page: Any, lab: Lab, name: str, shows: str) -> None:
    """Open a notebook alone, without side bars, and run its first cell until its output has an element."""
    from playwright.sync_api import TimeoutError

    page.goto(f"{lab.address}/doc/tree/{name}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    taken = page.locator(".jp-InputPrompt").first.filter(has_not_text="[ ]")
    for _ in range(3):  # Lab drops a cell that is run before its kernel is connected
        run_cell(page, 0)
        with contextlib.suppress(TimeoutError):
            taken.wait_for(timeout=5_000)
            # Never a second time: that would replace what a test is typing into.
            page.locator(f".jp-OutputArea-output {shows}").first.wait_for(state="attached")
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
