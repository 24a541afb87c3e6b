"""The page in a real browser: Chromium without a window, driven by playwright, on a wide screen, a phone, and paper."""

import re
from pathlib import Path

import pytest

from colora.experiments.report.build import write_report
from colora.experiments.trial import write_trial_records
from tests.helpers.browser import CHROMIUM, browsing, needs_browser
from tests.helpers.trial_records import rich_records

pytestmark = needs_browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_trial_records(folder / "main.jsonl", rich_records())
    write_report(folder / "main.jsonl", folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


@pytest.fixture
def visit(browser, address):
    """Opens the page at a width; nothing may go wrong in it, and nothing but the file may be asked for."""
    opened = []

    def visit(width, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        faults, requests = [], []
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        opened.append((page, faults, requests))
        return page

    yield visit
    for page, faults, requests in opened:
        page.close()
        assert faults == []
        assert [one for one in requests if not one.startswith("data:")] == [address]


def test_the_page_and_every_figure_show(visit):
    page = visit(1200)
    assert page.title() == "CoLoRA report: main"
    assert page.get_by_role("heading", name="Where collaboration does not help").is_visible()
    shown = "all => all.filter(one => one.checkVisibility()).map(one => one.getBoundingClientRect().toJSON())"
    closed = page.eval_on_selector_all("figure svg", shown)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    boxes = page.eval_on_selector_all("figure svg", shown)
    assert len(boxes) > len(closed) > 4  # the appendix is folded
    assert all(box["width"] > 200 and box["height"] > 100 for box in boxes)
    drawn = page.eval_on_selector_all("figure svg", "all => all.map(one => one.getBBox().width)")
    assert all(width > 100 for width in drawn)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_answer_comes_first(visit, width):
    """The sentence is on the first screen, a figure begins on it, and the table follows before anything else."""
    page = visit(width)
    tops = {name: page.locator(name).first.bounding_box()["y"] for name in ("p.lead", "figure", "table")}
    assert tops["p.lead"] < tops["figure"] < min(tops["table"], 700)
    assert page.locator("table").first.evaluate("one => one.closest('section').id") == "section-0"


def test_the_names_of_a_wide_table_stay_in_sight_on_a_phone(visit):
    page = visit(360)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    left = page.evaluate(
        "() => {const w = [...document.querySelectorAll('.wide')].find(one => one.scrollWidth > one.clientWidth + 100);"
        " w.scrollLeft = 90; return w.querySelector('tbody th').getBoundingClientRect().left"
        " - w.getBoundingClientRect().left}"
    )
    assert left == 0


def test_no_text_of_a_figure_runs_out_of_it(visit):
    page = visit(360)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    beyond = page.evaluate(
        "() => [...document.querySelectorAll('figure svg')].flatMap(svg => [...svg.querySelectorAll('text')]"
        ".filter(one => one.getBoundingClientRect().right > svg.getBoundingClientRect().right + 1"
        " || one.getBoundingClientRect().left < svg.getBoundingClientRect().left - 1).map(one => one.textContent))"
    )
    assert beyond == []


def test_a_link_leads_to_its_section(visit):
    page = visit(1200)
    page.get_by_role("link", name="Where collaboration does not help").click()
    assert page.evaluate("document.querySelector(location.hash).innerText").startswith("Where collaboration")
    assert page.evaluate("scrollY") > 1000


@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_is_no_wider_than_the_screen(visit, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    beyond = page.evaluate(
        "width => [...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, svg')"
        " && one.getBoundingClientRect().right > width + 0.5).map(one => one.outerHTML.slice(0, 80))",
        width,
    )
    assert beyond == []


def test_a_wide_table_scrolls_by_itself_on_a_phone(visit):
    page = visit(375)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    tables = page.eval_on_selector_all(".wide", "all => all.map(one => [one.scrollWidth, one.clientWidth])")
    assert max(inside - outside for inside, outside in tables) > 200
    moved = page.evaluate(
        "() => {const w = [...document.querySelectorAll('.wide')].find(one => one.scrollWidth > one.clientWidth + 200);"
        " w.scrollLeft = 150; return w.scrollLeft}"
    )
    assert moved == 150


def test_ink_and_ground_change_with_the_scheme(visit):
    read = (
        "() => [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('svg text:not([class])')).fill]"
    )
    light, dark = visit(800).evaluate(read), visit(800, "dark").evaluate(read)
    assert light == ["rgb(255, 255, 255)", "rgb(27, 27, 27)"]
    assert dark == ["rgb(22, 24, 27)", "rgb(232, 232, 232)"]


def test_it_prints(visit, tmp_path):
    page = visit(1200)
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 1
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    beyond = page.eval_on_selector_all("table", "all => Math.max(...all.map(one => one.getBoundingClientRect().right))")
    assert beyond <= 718


def test_what_is_looked_for_is_a_file():
    assert Path(CHROMIUM).exists()
