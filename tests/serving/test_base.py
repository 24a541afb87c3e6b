"""The base asked by its name: its own answers exactly, whatever tasks are in the batch, and no task by that name."""

import json

import pytest
import torch

from colora.bank.core_file import extract_core
from colora.bank.generate import Request, generate_texts
from colora.models.base import load_base
from colora.serving.access import add_tenant
from colora.serving.store import CoreStore
from tests.helpers.servers import TASKS, ask, make_bank, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TEMPLATE = "Q: {input}\nA: {output}"


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def base(bank):
    return json.loads((bank / "bank.json").read_text())["base"]


def test_the_list_names_the_base_and_does_not_hold_it(server, base):
    answer = server.http.get("/v1/models", params={"limit": 1}).json()
    assert answer["base"] == base
    assert base not in [model["id"] for model in server.http.get("/v1/models").json()["data"]]
    assert server.http.get(f"/v1/models/{base}").json()["id"] == base


def test_the_base_answers_as_it_does_alone(server, base):
    model, tokenizer = load_base(base, torch.float32, None)
    asked = {"prompt": "one two", "temperature": 0, "max_tokens": 12}
    tokens = tokenizer("one two", return_tensors="pt")
    with torch.inference_mode():
        expected = model.generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    answer = server.http.post("/v1/completions", json=asked | {"model": base}).json()
    assert answer["usage"]["completion_tokens"] in (len(expected), len(expected) - 1)  # the end token is not counted
    assert tokenizer.decode(expected, skip_special_tokens=True).startswith(
        answer["choices"][0]["text"].rstrip("\ufffd")
    )
    assert len(answer["choices"][0]["text"]) > 3
    task = server.http.post("/v1/completions", json=asked | {"model": "legal"}).json()
    assert answer["choices"][0]["text"] != task["choices"][0]["text"]


def test_the_base_has_no_core_and_cannot_be_removed(server, base):
    for method, path in (("GET", f"/v1/tasks/{base}/core"), ("DELETE", f"/v1/models/{base}")):
        assert server.http.request(method, path).status_code == 404, path


def test_a_key_of_some_tasks_does_not_open_the_base(bank, base, tmp_path):
    keys = {
        name: add_tenant(tmp_path / "keys.json", name, tasks) for name, tasks in (("one", ["legal"]), ("all", ["*"]))
    }
    with serving(bank, keys=tmp_path / "keys.json") as server:
        for name, status, told in (("one", 404, None), ("all", 200, base)):
            headers = {"Authorization": f"Bearer {keys[name]}"}
            answer = server.http.post("/v1/chat/completions", json=ask(base, "a", max_tokens=2), headers=headers)
            assert answer.status_code == status
            assert server.http.get("/v1/models", headers=headers).json()["base"] == told


def test_the_base_gets_the_prompt_of_the_bank(tmp_path):
    """So that what a task and the base answer differs by the core alone."""
    bank = make_bank(tmp_path)
    info = json.loads((bank / "bank.json").read_text())
    (bank / "bank.json").write_text(json.dumps(info | {"prompt": TEMPLATE, "prompts": {"sales": None}}))
    with serving(bank) as server:
        plain = server.http.post(
            "/v1/completions", json={"model": info["base"], "prompt": "Q: one\nA:", "temperature": 0, "max_tokens": 9}
        ).json()
        chat = server.http.post("/v1/chat/completions", json=ask(info["base"], "one", max_tokens=9)).json()
        assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"].strip()
        assert chat["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
        told = {
            name: server.http.get(f"/v1/models/{name}").json()["prompt"] for name in ("legal", "sales", info["base"])
        }
        assert told == {"legal": TEMPLATE, "sales": None, info["base"]: TEMPLATE}


def test_a_task_that_has_the_name_of_the_base_is_that_task(tmp_path):
    bank = make_bank(tmp_path, ("legal", "billing"))
    with serving(bank, base=None) as server:
        name = json.loads((bank / "bank.json").read_text())["base"]
        extract_core(bank, "legal", tmp_path / "core")
        refused = server.http.put(f"/v1/tasks/{name}/core", content=(tmp_path / "core").read_bytes())
        assert refused.status_code == 400
    store = CoreStore(bank)
    store.reserved = frozenset({"legal"})
    assert store.base_name is None
    assert torch.equal(*(next(iter(store.read("legal")[1].values())) for _ in range(2)))
    assert any(core.count_nonzero() for core in store.read("legal")[1].values())


def test_a_task_that_another_server_removes_never_becomes_the_base(bank, tmp_path, monkeypatch):
    """Not even where it goes between two looks: its core is then read once more from the bank."""
    one, other = CoreStore(bank, tmp_path / "state"), CoreStore(bank, tmp_path / "state")
    one.reserved = frozenset({"base"})
    seen, version = one.read("legal"), one.version
    with monkeypatch.context() as patch:
        patch.setattr(one, "version", lambda task: (version(task), other.remove(task))[0])
        _, core = one.read("legal")
    assert all(torch.equal(core[name], seen[1][name]) for name in core)
    with pytest.raises(ValueError, match="unknown task 'legal'"):
        one.read("legal")
    assert not any(core.count_nonzero() for core in one.read("base")[1].values())
    with pytest.raises(ValueError, match="has no core"):
        one.place("base")


def test_other_tasks_keep_their_answers_beside_the_base(bank, server, base):
    expected = generate_texts(bank, [Request(task, "one") for task in TASKS], 8)
    found = [text_of(server.http.post("/v1/chat/completions", json=ask(task, "one", max_tokens=8))) for task in TASKS]
    assert found == expected
