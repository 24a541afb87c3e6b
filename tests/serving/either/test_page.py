"""The page to try the tasks, before either engine: where it is, and what it asks for that other clients seldom do."""

import pytest

from colora.serving.access import add_tenant
from tests.helpers.engines import served
from tests.helpers.servers import TASKS, ask

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_browsers_get_the_page_and_other_clients_nothing(server):
    answer = server.http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    for accept in ("application/json", "*/*"):
        assert server.http.get("/", headers={"Accept": accept}).status_code == 404


def test_the_page_needs_no_key_and_what_it_asks_for_does(bank, tmp_path):
    key = add_tenant(tmp_path / "keys.json", "acme", ["legal"])
    with served(bank, keys=tmp_path / "keys.json") as server:
        assert server.http.get("/", headers=BROWSER).status_code == 200
        assert server.http.get("/v1/models", params={"limit": 50}, headers=BROWSER).status_code == 401
        told = server.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).json()
    assert ([model["id"] for model in told["data"]], told["base"]) == (["legal"], None)


def test_the_base_is_named_and_answers_in_a_stream(server):
    base = server.http.get("/v1/models", params={"limit": 1}).json()["base"]
    assert server.http.get(f"/v1/models/{base}").json()["prompt"] is None
    answers = set()
    for model in (base, *TASKS):
        body = ask(model, "one", max_tokens=9)
        whole = server.http.post("/v1/chat/completions", json=body).json()
        answers.add(whole["choices"][0]["message"]["content"])
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        text = server.http.post("/v1/chat/completions", json=body).text
        assert f'"completion_tokens":{whole["usage"]["completion_tokens"]}' in text.replace(": ", ":")
    assert len(answers) == 1 + len(TASKS)


def test_a_page_of_the_server_itself_may_ask(server):
    """Browsers send the origin with every POST; that of the page is the server's own."""
    sent = server.http.post(
        "/v1/chat/completions", json=ask("legal", "a", max_tokens=2), headers={"Origin": server.url}
    )
    assert sent.status_code == 200
