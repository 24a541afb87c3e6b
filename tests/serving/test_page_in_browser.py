"""The page in a real browser, on a real server: choosing, asking, streaming, keys, faults, keyboard, narrow screens."""

import json
import re

import pytest

from colora.serving.access import add_tenant
from tests.helpers.browser import browsing, needs_browser
from tests.helpers.servers import ask, make_bank, process, serving
from tests.helpers.tiny import readable_llama

pytestmark = [needs_browser, pytest.mark.filterwarnings("ignore::FutureWarning")]

NAMES = ("legal", "billing", "sales", *(f"user-{number:03}" for number in range(120)))
TEMPLATE = "Q: {input}\nA: {output}"
EVIL = "<img src=x onerror=\"document.title='stolen'\"><b>bold</b>&amp;"
# What of the page's text has less contrast with its ground than WCAG's AA asks for: 4.5, or 3 for large letters.
FAINT_TEXTS = """() => {
  const light = c => c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const rgb = text => text.match(/[0-9.]+/g).map(Number);
  const ground = one => { for (; one; one = one.parentElement) {
    const c = rgb(getComputedStyle(one).backgroundColor); if (c.length === 3 || c[3] === 1) return c.slice(0, 3); }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && !one.disabled
      && one.tagName !== 'OPTION' && [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(one => { const style = getComputedStyle(one);
      const [a, b] = [light(rgb(style.color).slice(0, 3)), light(ground(one))].sort((x, y) => y - x);
      const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
      return [one.tagName + ' ' + one.textContent.slice(0, 30), (a + 0.05) / (b + 0.05), large ? 3 : 4.5]; })
    .filter(([, ratio, least]) => ratio < least);
}"""


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    bank = make_bank(tmp_path_factory.mktemp("bank"), NAMES, make_base=readable_llama)
    info = json.loads((bank / "bank.json").read_text())
    (bank / "bank.json").write_text(json.dumps(info | {"prompts": {"sales": TEMPLATE}}))
    return bank


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, {
        name: add_tenant(path, name, tasks) for name, tasks in (("all", ["*"]), ("some", ["legal", "user-*"]))
    }


@pytest.fixture(scope="module")
def locked(bank, keys):
    with serving(bank, keys=keys[0]) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


@pytest.fixture
def visit(browser):
    """Opens the page of a server; nothing may go wrong in it, and it may ask its own server alone."""
    opened = []

    def visit(server, width=1280, height=800, expected="Failed to load resource", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(60_000)
        page = context.new_page()
        faults, requests = [], []
        page.on(
            "console",  # the browser says of every refusal and every lost connection that there was one
            lambda said: (
                faults.append(said.text) if said.type in ("error", "warning") and expected not in said.text else None
            ),
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{server.url}/")
        opened.append((context, server, faults, requests))
        return page

    yield visit
    for context, server, faults, requests in opened:
        context.close()
        assert faults == []
        assert [url for url in requests if not url.startswith((f"{server.url}/", "data:"))] == []


def choose(page, *names):
    for name in names:
        page.get_by_role("combobox").fill(name)
        page.get_by_role("option", name=name, exact=True).click()
    page.get_by_role("combobox").blur()


def tokens(page, number):
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Most tokens").fill(str(number))


def answers(page, count):
    """What the columns say, by their headings, once all have ended."""
    page.locator("article").nth(count - 1).wait_for()
    page.locator("article.runs").first.wait_for(state="detached")
    columns = page.locator("article").all()
    assert len(columns) == count
    return {one.locator("h3").inner_text(): one.locator(".text").text_content() for one in columns}


def expected(server, name, text, **fields):
    answer = server.http.post("/v1/chat/completions", json=ask(name, text, **fields)).json()
    return answer["choices"][0]["message"]["content"]


def base_of(server):
    return server.http.get("/v1/models?limit=1").json()["base"]


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_two_tasks_and_the_base_by_keyboard_alone(visit, server):
    page = visit(server)
    press = page.keyboard.press
    page.get_by_role("combobox").wait_for()

    def tab_to(name):
        for _ in range(20):
            press("Tab")
            if page.evaluate("document.activeElement.id") == name:
                return
        pytest.fail(f"{name} is not reached")

    tab_to("search")
    for typed, name in (("BILL", "billing"), ("user-11", "user-110")):  # the second in place of the first
        page.keyboard.type(typed)
        page.locator("#found .active", has_text=name).wait_for()
        press("Enter")
        page.get_by_role("button", name=f"Remove {name}").wait_for()
    press("ArrowDown")
    press("ArrowUp")
    press("Enter")  # the same once more: chosen no longer
    page.get_by_role("button", name="Remove user-110").wait_for(state="detached")
    press("ArrowDown")
    press("Enter")
    page.get_by_role("button", name="Remove user-111").wait_for()
    tab_to("prompt")
    assert not page.locator("#found").is_visible()
    page.keyboard.type("one")
    press("Shift+Enter")
    page.keyboard.type("two")
    press("Enter")
    found = answers(page, 3)
    names = {"Base model": base_of(server), "billing": "billing", "user-111": "user-111"}
    assert found == {shown: expected(server, name, "one\ntwo", max_tokens=128) for shown, name in names.items()}
    assert len(set(found.values())) == 3
    assert all(
        re.fullmatch(r"128 tokens in [0-9.]+ s; cut off .*", one.inner_text()) for one in page.locator(".state").all()
    )
    press("Control+Enter")  # once more
    assert answers(page, 3) == found


def test_answers_come_piece_by_piece_and_escape_stops_them(visit, server):
    page = visit(server)
    choose(page, "legal")
    tokens(page, 480)
    page.get_by_label("What to answer").fill("one")
    cancelled = server.metric("cancelled_requests")
    page.get_by_role("button", name="Send").click()
    text = page.locator("article .text").last
    text.get_by_text(re.compile("..")).wait_for()
    early = text.text_content()
    assert page.get_by_role("button", name="Send").is_disabled()
    page.keyboard.press("Escape")
    late = answers(page, 2)["legal"]
    server.until("cancelled_requests", cancelled + 2)
    whole = expected(server, "legal", "one", max_tokens=480)
    assert len(early) < len(whole)
    assert whole.startswith(late)
    assert late.startswith(early)
    assert all(one.inner_text().startswith("Stopped after") for one in page.locator(".state").all())


def test_one_column_is_stopped_alone_and_an_answer_is_copied(visit, server):
    page = visit(server, permissions=["clipboard-read", "clipboard-write"])
    choose(page, "legal", "billing")
    page.get_by_label("The base model too").uncheck()
    tokens(page, 300)
    page.get_by_label("What to answer").fill("one")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Stop legal").click()
    assert page.evaluate("document.activeElement.textContent") in ("Copy", "one", "")
    found = answers(page, 2)
    assert found["billing"] == expected(server, "billing", "one", max_tokens=300)
    assert len(found["legal"]) < len(expected(server, "legal", "one", max_tokens=300))
    page.get_by_role("button", name="Copy the answer of billing").click()
    page.get_by_role("button", name="Copy the answer of billing").get_by_text("Copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == found["billing"]


def test_more_tasks_than_stream_at_once_are_all_answered(visit, server):
    page = visit(server)
    names = NAMES[:8]
    choose(page, *names)
    tokens(page, 12)
    page.get_by_label("What to answer").fill("one")
    page.keyboard.press("Enter")
    found = answers(page, 9)
    assert {name: found[name] for name in names} == {
        name: expected(server, name, "one", max_tokens=12) for name in names
    }


def test_instruction_temperature_and_the_prompt_of_a_task(visit, server):
    page = visit(server)
    choose(page, "sales", "legal")
    page.get_by_text(TEMPLATE.split("\n")[0]).wait_for()  # the prompt that sales was trained with is told
    tokens(page, 0)
    page.get_by_label("What to answer").fill("one")
    page.get_by_role("button", name="Send").click()
    assert "whole number" in page.locator("#ask-fault").inner_text()
    assert page.evaluate("document.activeElement.id") == "length"
    page.get_by_label("Most tokens").fill("9")
    page.get_by_label("Instruction").fill("Say it.")
    page.keyboard.press("Control+Enter")
    found = answers(page, 3)
    messages = [{"role": "system", "content": "Say it."}, {"role": "user", "content": "one"}]
    assert found["legal"] == expected(server, "legal", "", messages=messages, max_tokens=9)
    assert found["sales"] == ""
    assert "has no {instruction}" in page.locator("article", has_text="sales").locator(".fault").inner_text()


# ---- many tasks ------------------------------------------------------------------------------------------------------


def test_tasks_come_page_by_page_and_never_all(visit, server):
    page = visit(server)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/models" in request.url else None)
    search = page.get_by_role("combobox")
    search.fill("USER-")
    page.get_by_role("option", name="Show more").wait_for()
    assert page.get_by_role("option").count() == 51
    for _ in range(50):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_role("option", name="user-050").wait_for()
    assert page.get_by_role("option").count() == 101
    page.keyboard.press("Enter")  # the first of the new ones
    page.get_by_role("button", name="Remove user-050").wait_for()
    assert len(asked) == 3
    assert all("limit=50" in url for url in asked[:2])
    assert "after=user-049" in asked[1]
    search.fill("nothing like it")
    page.get_by_role("option", name="No task has that").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#found").is_visible()


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_stays_in_the_memory_of_the_tab(visit, locked, keys):
    page = visit(locked)
    field = page.get_by_label("Key", exact=True)
    field.wait_for()
    assert page.evaluate("document.activeElement.id") == "key"
    assert not page.get_by_role("combobox").is_visible()
    field.fill("wrong")
    field.press("Enter")
    page.get_by_text("The server does not know this key.").wait_for()
    field.fill("wröng")
    field.press("Enter")
    page.get_by_text("letters or spaces that no key has").wait_for()
    field.fill(keys[1]["all"])
    field.press("Enter")
    choose(page, "legal")
    tokens(page, 5)
    page.get_by_label("What to answer").fill("one")
    page.keyboard.press("Control+Enter")
    assert all(answers(page, 2).values())
    assert page.evaluate("[location.href, sessionStorage.length, localStorage.length, document.cookie]") == [
        f"{locked.url}/",
        0,
        0,
        "",
    ]
    page.reload()
    field.wait_for()


def test_a_key_is_kept_for_the_tab_if_the_user_says_so(visit, locked, keys):
    page = visit(locked)
    page.get_by_label("Key", exact=True).fill(keys[1]["some"])
    page.get_by_label("Keep it").check()
    page.get_by_role("button", name="Use this key").click()
    page.get_by_role("combobox").wait_for()
    page.reload()
    page.get_by_text("This key does not open it").wait_for()  # the base
    assert page.get_by_label("The base model too").is_disabled()
    page.get_by_role("combobox").fill("l")
    page.get_by_role("option", name="legal").wait_for()
    assert page.get_by_role("option").all_inner_texts() == ["legal"]  # billing and sales are not this key's
    page.get_by_role("button", name="Another key").click()
    page.get_by_label("Key", exact=True).fill(keys[1]["all"])
    page.get_by_role("button", name="Use this key").click()
    page.locator("#base-note bdi").wait_for()
    assert page.evaluate("sessionStorage.length") == 1  # still ticked


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_server_that_dies_half_way_is_told_and_what_came_stays(visit, bank, tmp_path):
    with process(bank, log=tmp_path / "log") as (server, running):
        page = visit(server)
        choose(page, "legal")
        tokens(page, 480)
        page.get_by_label("What to answer").fill("one")
        page.get_by_role("button", name="Send").click()
        page.locator("article .text").last.get_by_text(re.compile("..")).wait_for()
        running.kill()
        assert answers(page, 2)["legal"]
        for state in page.locator(".state").all():
            assert "the answer is not whole" in state.inner_text()
        page.get_by_role("button", name="Send").click()
        page.get_by_text("The server cannot be reached. Is it running?").first.wait_for()


def stream(*texts, end="data: [DONE]\n\n"):
    """The body of a stream with these pieces."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("data: [DONE]\n\n", " s"),
        ("", "The server broke off; the answer is not whole."),
        ('data: {"error": {"message": "<b>the model failed</b>"}}\n\n', "<b>the model failed</b>"),
    ],
)
def test_html_in_names_answers_and_errors_is_text(visit, server, end, told):
    """No task can have such a name, and no tiny model says such things: the browser gets them in the server's place."""
    page = visit(server)
    page.route(
        "**/v1/models?*",
        lambda route: route.fulfill(json={"data": [{"id": EVIL}], "has_more": False, "base": f"{EVIL}/b"}),
    )
    page.route("**/v1/models/*", lambda route: route.fulfill(json={"id": EVIL, "prompt": EVIL}))
    events = {"body": stream(EVIL, "\nü€ ", EVIL, end=end), "content_type": "text/event-stream"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**events))
    page.get_by_role("combobox").fill("b")
    page.get_by_role("option").first.click()
    page.locator("#prompt-note code").wait_for()
    page.get_by_label("What to answer").fill("one")
    page.keyboard.press("Control+Enter")
    assert answers(page, 2)[EVIL] == f"{EVIL}\nü€ {EVIL}"
    assert page.locator(".state").last.inner_text().endswith(told)
    assert page.locator("img, b").count() == 0
    assert page.title() == "CoLoRA: try the tasks"


def test_a_refusal_is_told_in_words(visit, server):
    page = visit(server)
    busy = {"status": 429, "headers": {"Retry-After": "7"}, "json": {"error": {"message": "9 requests are waiting"}}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**busy))
    page.get_by_role("button", name="Send").click()
    assert page.locator("#ask-fault").inner_text() == "Write a prompt first."
    page.get_by_label("What to answer").fill("one")
    page.get_by_label("The base model too").uncheck()
    page.keyboard.press("Control+Enter")
    assert page.locator("#ask-fault").inner_text() == "Choose a task first."
    page.get_by_label("The base model too").check()
    page.keyboard.press("Control+Enter")
    answers(page, 1)
    assert "Try again in 7 s." in page.locator(".state").inner_text()
    assert "9 requests are waiting" in page.locator(".state").inner_text()


def test_the_page_cannot_ask_anybody_else(visit, server, locked):
    """Even if its script were told to: the policy forbids it."""
    page = visit(server, expected="Content Security Policy")
    page.get_by_role("combobox").wait_for()
    refused = page.evaluate(
        """async url => { const blocked = [];
           document.addEventListener('securitypolicyviolation', event => blocked.push(event.effectiveDirective));
           const failed = await fetch(url).then(() => false, () => true);
           await new Promise(done => setTimeout(done, 50));
           return [failed, blocked]; }""",
        f"{locked.url}/health",
    )
    assert refused == [True, ["connect-src"]]
    visits = page.evaluate("performance.getEntriesByType('resource').map(one => new URL(one.name).origin)")
    assert set(visits) <= {server.url, "null"}


# ---- looks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_the_screen_and_can_be_read(visit, server, width, scheme):
    page = visit(server, width, color_scheme=scheme, has_touch=width < 500)
    choose(page, "legal", "billing")
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("What to answer").fill("one")
    page.keyboard.press("Control+Enter")
    answers(page, 3)
    lefts = {round(one.bounding_box()["x"]) for one in page.locator("article").all()}
    assert len(lefts) == (1 if width == 360 else 2 if width == 768 else 3)  # under each other, or side by side
    page.get_by_role("combobox").fill("user")
    page.get_by_role("option", name="user-000").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        "width => [...document.querySelectorAll('body *')].filter(one => one.checkVisibility()"
        " && one.getBoundingClientRect().right > width + 0.5).map(one => one.outerHTML.slice(0, 80))",
        width,
    )
    assert beyond == []
    assert page.evaluate(FAINT_TEXTS) == []
    assert page.locator(".keyboard").is_visible() is (width > 500)


def test_every_control_has_a_name_and_shows_its_focus(visit, server):
    page = visit(server)
    choose(page, "legal")
    page.get_by_text("Settings", exact=True).click()
    page.locator("body").click(position={"x": 1, "y": 1})
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "() => { const one = document.activeElement; return [one === document.body ? null :"
            " one.labels?.[0]?.textContent || one.ariaLabel || one.textContent, getComputedStyle(one).outlineWidth]; }"
        )
        if name is None:
            break
        seen.append(name.strip())
        assert (bool(seen[-1]), outline) == (True, "3px")
    controls = {"Search by name", "Remove legal", "The base model too", "What to answer", "Settings", "Temperature"}
    assert controls | {"Most tokens", "Instruction", "Send"} <= set(seen)


def test_nothing_blinks_for_who_wants_no_motion(visit, server):
    read = "() => getComputedStyle(document.querySelector('article.runs .text'), '::after').animationName"
    for motion, name in (("reduce", "none"), ("no-preference", "blink")):
        page = visit(server, reduced_motion=motion)
        page.route("**/v1/chat/completions", lambda route: None)  # an answer that does not come
        choose(page, "legal")
        page.get_by_label("What to answer").fill("one")
        page.keyboard.press("Enter")
        page.locator("article.runs").first.wait_for()
        assert page.evaluate(read) == name
