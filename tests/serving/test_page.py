"""The page as the server hands it out: to browsers alone, with headers that let it run its own code alone."""

import base64
import hashlib
import re
import tomllib

import pytest

from colora.experiments.report.style import STYLE
from colora.serving.page import page_text, wants_page
from tests.helpers.docs import ROOT
from tests.helpers.run_files import cli
from tests.helpers.servers import serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (BROWSER["Accept"], True),
        ("TEXT/HTML", True),
        ("application/json, text/html;q=0.1", True),
        ("application/json", False),
        ("*/*", False),
        ("text/*", False),
        ("text/htmlx", False),
        ("", False),
        (None, False),
    ],
)
def test_wants_page_is_said_by_naming_html(accept, wanted):
    assert wants_page(accept) is wanted


def test_the_policy_lets_the_page_s_own_style_and_script_run_and_nothing_else(server):
    answer = server.http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"], policy["form-action"]) == ("'none'", "'self'", "'none'")
    assert not [name for name, value in policy.items() if "unsafe" in value or "*" in value or "http" in value]
    for kind in ("style", "script"):
        (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    head = server.http.head("/", headers=BROWSER)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(answer.content)))


def test_the_page_names_no_other_place_and_uses_nothing_that_reads_text_as_html():
    text = page_text()
    assert not re.findall(r"https?:|//[a-z]|@import|url\(", re.sub(r"^\s*// .*$|[^:]// .*$", "", text, flags=re.M))
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|\son[a-z]+=|style=", text)


def test_the_page_has_the_colours_of_the_report():
    def colours(style):
        """Of light and of dark; what the report has for paper comes after them."""
        light, dark, *_ = style.split("prefers-color-scheme")
        return [dict(reversed(re.findall(r"(--[a-z0-9-]+): *(#[0-9a-f]+)", part))) for part in (light, dark)]

    for scheme, known in zip(colours(page_text()), colours(STYLE), strict=True):
        assert len(scheme) > 5
        assert scheme == {name: known[name] for name in scheme}


@pytest.mark.parametrize("accept", ["application/json", "*/*"])
def test_who_asks_for_something_else_finds_nothing_as_ever(server, accept):
    answer = server.http.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "Not Found")
    assert server.http.post("/", headers=BROWSER).status_code == 405


def test_without_the_page_the_root_is_empty(bank):
    with serving(bank, page=False) as server:
        answer = server.http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "Not Found")


@pytest.mark.parametrize(("arguments", "page"), [([], True), (["--no-page"], False)])
def test_the_option_reaches_the_server(monkeypatch, bank, arguments, page):
    asked = []
    monkeypatch.setattr("colora.serving.server.serve", lambda options, listen, log: asked.append(listen.page))
    result = cli("serve", bank, *arguments)
    assert (result.exit_code, asked) == (0, [page]), result.output


def test_what_is_no_code_is_in_the_wheel():
    """setuptools takes along what it is told of, and leaves the rest out without a word."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    told = set(settings["package-data"]["colora"])
    source = ROOT / "src" / "colora"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert {name for name in files if not name.endswith((".py", ".pyc"))} == told
