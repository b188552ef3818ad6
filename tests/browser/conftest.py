"""A browser window for each test; what it showed last is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import CHROMIUM, FLAGS, screenshot


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A page of its own; its module's ``HEIGHT`` says how high, in pixels."""
    from playwright.sync_api import sync_playwright

    name = request.module.__name__.rpartition("test_")[2]
    size = {"width": 900, "height": getattr(request.module, "HEIGHT", 800)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport=size)
            page.set_default_timeout(30_000)
            yield page
            screenshot(page, f"{name}-last-seen.png", tmp_path)
        finally:
            browser.close()
