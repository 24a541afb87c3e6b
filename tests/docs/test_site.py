"""The site: it builds without a warning, holds the whole interface, asks nobody for anything, and fits a phone."""

import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import colora
from colora.training.config_file import field_rows
from tests.helpers.docs import ROOT, doc

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("COLORA_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = (360, 768, 1280)
PAGES = (
    "index.html",
    "tutorial.html",
    "guide.html",
    "many-tasks.html",
    "task-files.html",
    "reference/python.html",
    "reference/fields.html",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. A warning is an error: a link that leads nowhere, a page that no menu has."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture
def address(site):
    """The site over HTTP, on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_reference_has_every_public_name(site):
    page = (site / "reference" / "python.html").read_text("utf-8")
    assert not [name for name in colora.__all__ if f'id="colora.{name}"' not in page and f'.{name}"' not in page]


def test_the_reference_has_every_field(site):
    page = (site / "reference" / "fields.html").read_text("utf-8")
    assert not [row[0] for row in field_rows() if f"<code>{row[0]}</code>" not in page]


def test_the_reference_has_every_command(site):
    from colora.cli.main import app

    page = (site / "reference" / "commands.html").read_text("utf-8")
    names = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    assert len(names) > 10
    assert not [name for name in names if f"colora {name}</code>" not in page]


def test_no_page_asks_another_host(site):
    """Links may lead elsewhere; what a page loads is in the folder."""
    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]*)"|<link[^>]*rel="?(?:stylesheet|preload|icon|preconnect)[^>]*>'
    )
    found = []
    for page in site.rglob("*.html"):
        for match in loads.finditer(page.read_text("utf-8")):
            if "//" in match[0].replace("data:", ""):
                found.append((page.name, match[0]))
    assert found == []


@pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium, or name one by COLORA_CHROMIUM")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_their_screens(address, scheme):
    """No page scrolls sideways, on a phone either; nothing goes wrong in it, and it asks no other host."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            requests, faults = [], []
            page.on("request", lambda request, found=requests: found.append(request.url))
            page.on("pageerror", lambda error, found=faults: found.append(str(error)))
            for name in PAGES:
                page.goto(f"{address}/{name}")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
            assert faults == []
            page.close()
        browser.close()


def test_the_first_page_leads_to_every_page_of_the_menu():
    """But for single decisions, which their own list has."""
    pages = set(
        re.findall(r"^ +- (?:\w[\w ]*: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    )
    linked = set(re.findall(r"\]\(([\w/.-]+\.md)", doc("index.md")))
    assert {page for page in pages if not page.startswith("decisions/")} - linked == {"index.md"}
