"""A real browser for tests of pages: Chromium without a window, driven by playwright. Without one they are skipped."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["CHROMIUM", "browsing", "needs_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("COLORA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
# It asks nobody for anything but what a page asks for.
ALONE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser: install chromium, or name one by the environment variable COLORA_CHROMIUM"
)


@contextmanager
def browsing() -> "Iterator[Browser]":
    """A browser with a profile of its own, which ends with the block."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ALONE))
        yield browser
        browser.close()
