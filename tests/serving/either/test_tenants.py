"""Keys in front of both servers: which tasks one opens, how often it may ask, and what looks absent to it."""

import json

import pytest

from colora.bank.core_file import extract_core
from colora.serving.access import add_tenant, remove_tenant
from colora.serving.quotas import Limits
from tests.helpers.engines import bank_for_either, served
from tests.helpers.servers import ask

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PAGE = "https://app.example.org"
NAMES = ("acme-1", "acme-2", "globex-1", "common")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return bank_for_either(tmp_path_factory.mktemp("bank"), NAMES)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A file of keys, and the keys."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {
        "acme": add_tenant(path, "acme", ["acme-*"], limits=Limits(tasks=2)),
        "globex": add_tenant(path, "globex", ["globex-*", "common"]),
        "hurried": add_tenant(path, "hurried", ["*"], requests_per_minute=2),
        "root": add_tenant(path, "root", ["*"], admin=True),
    }
    return path, made


@pytest.fixture(scope="module")
def server(bank, keys):
    with served(bank, keys=keys[0], origins=[PAGE]) as running:
        yield running


@pytest.fixture
def asking(server, keys):
    """A function that sends a request with a tenant's key."""

    def send(tenant, method, path, **options):
        return server.http.request(method, path, headers={"Authorization": f"Bearer {keys[1][tenant]}"}, **options)

    return send


def test_a_tenant_lists_and_uses_its_own_tasks(asking):
    answers = {tenant: asking(tenant, "GET", "/v1/models").json() for tenant in ("acme", "globex", "root")}
    assert {tenant: [model["id"] for model in answer["data"]] for tenant, answer in answers.items()} == {
        "acme": ["acme-1", "acme-2"],
        "globex": ["globex-1", "common"],
        "root": list(NAMES),
    }
    assert asking("acme", "POST", "/v1/chat/completions", json=ask("acme-2", "a", max_tokens=2)).status_code == 200


def test_tasks_of_others_look_absent(asking):
    for method, path, options in [
        ("POST", "/v1/chat/completions", {"json": ask("NAME", "a")}),
        ("POST", "/v1/completions", {"json": {"model": "NAME", "prompt": "a"}}),
        ("GET", "/v1/models/NAME", {}),
        ("GET", "/v1/models?after=NAME&limit=1", {}),
        ("GET", "/v1/tasks/NAME/core", {}),
        ("DELETE", "/v1/models/NAME", {}),
        ("PUT", "/v1/tasks/NAME/core", {"content": b"x"}),
        ("POST", "/v1/tasks/NAME/examples", {"content": b"x"}),
    ]:
        answers = []
        for name in ("globex-1", "nobody"):
            sent = json.loads(json.dumps(options, default=bytes.decode).replace("NAME", name))
            answer = asking("acme", method, path.replace("NAME", name), **sent)
            answers.append((answer.status_code, answer.text.replace(name, "NAME")))
        assert answers[0] == answers[1]  # nothing shows which of the two exists
        assert answers[0][0] == 404
    assert asking("root", "GET", "/v1/models/globex-1").status_code == 200


def test_what_is_for_admins_looks_absent_to_others(asking):
    for method, path in [("GET", "/metrics"), ("POST", "/v1/reload"), ("GET", "/version"), ("POST", "/tokenize")]:
        assert asking("acme", method, path).status_code == 404, path
    assert asking("root", "GET", "/metrics").status_code == 200


def test_adapters_of_another_kind_cannot_be_loaded_by_anybody(asking):
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        for tenant in ("acme", "root"):
            body = {"lora_name": "acme-9", "lora_path": "/nowhere"}
            assert asking(tenant, "POST", path, json=body).status_code == 404


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic abc"])
def test_a_wrong_key_is_refused(server, header):
    headers = {} if header is None else {"Authorization": header}
    for method, path in [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics")]:
        body = ask("acme-1", "a") if method == "POST" else None
        answer = server.http.request(method, path, headers=headers, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/v1/chat/completions", ask("acme-1", "a", max_tokens=2)), ("GET", "/v1/models", None)],
)
def test_pages_of_known_origins_may_ask_and_read_refusals_too(server, keys, method, path, body):
    ask_first = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in ((PAGE, PAGE), ("https://elsewhere.example.org", None)):
        before = server.http.options(path, headers=ask_first | {"Origin": origin})
        assert before.headers.get("access-control-allow-origin") == allowed
        assert before.status_code == (200 if allowed else 400)
        for key, status in ((keys[1]["acme"], 200), ("wrong", 401)):
            headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
            answer = server.http.request(method, path, headers=headers, json=body)
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert answer.status_code == status


def test_a_rate_limit_says_when_to_retry(asking):
    answers = [asking("hurried", "GET", "/v1/models") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["retry-after"]) <= 30
    assert asking("acme", "GET", "/v1/models").status_code == 200


def test_a_key_that_comes_and_goes_needs_no_restart(keys, asking):
    path, made = keys
    made["guest"] = add_tenant(path, "guest", ["common"])
    assert [model["id"] for model in asking("guest", "GET", "/v1/models").json()["data"]] == ["common"]
    remove_tenant(path, "guest")
    assert asking("guest", "GET", "/v1/models").status_code == 401


def test_a_quota_is_kept(bank, asking, tmp_path):
    extract_core(bank, "acme-1", tmp_path / "core")
    content = (tmp_path / "core").read_bytes()
    names = ("acme-new", "acme-1", "acme-third")
    statuses = [asking("acme", "PUT", f"/v1/tasks/{name}/core", content=content).status_code for name in names]
    assert statuses == [201, 200, 507]
    assert asking("acme", "DELETE", "/v1/models/acme-new").status_code == 200
