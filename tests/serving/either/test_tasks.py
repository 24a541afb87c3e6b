"""Tasks that come and go on both servers, onboarding, and newer banks: none is answered with another's core."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch

from colora.bank.core_file import CoreHeader, core_bytes, extract_core
from colora.bank.generate import Request, generate_texts
from tests.helpers.engines import bank_for_either, served
from tests.helpers.servers import TASKS, ask, make_bank

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def text_of(server, task, text="one", **fields):
    answer = server.http.post("/v1/chat/completions", json=ask(task, text, **{"max_tokens": 10} | fields))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def core_of(bank, task, output):
    extract_core(bank, task, output)
    return output.read_bytes()


def changed(content, edit):
    """A core file with other tensors."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["colora_core"])
    return core_bytes(edit(safetensors.torch.load(content)), CoreHeader(**header))


@pytest.fixture
def own_bank(tmp_path):
    return bank_for_either(tmp_path)


def test_a_core_is_a_task_at_once_and_after_a_restart(own_bank, tmp_path):
    content = {task: core_of(own_bank, task, tmp_path / task) for task in TASKS}
    expected = dict(zip(TASKS, generate_texts(own_bank, [Request(task, "one") for task in TASKS], 10), strict=True))
    state = tmp_path / "state"

    def put(server, name, whose):
        return server.http.put(f"/v1/tasks/{name}/core", content=content[whose]).status_code

    with served(own_bank, state=state) as server:
        assert {task: text_of(server, task) for task in TASKS} == expected
        assert put(server, "new%20one", "billing") == 201
        assert text_of(server, "new one") == expected["billing"]
        assert server.http.get("/v1/tasks/new%20one/core").status_code == 200
        # A newer core of a task that was asked a moment ago: nothing that was computed with the old one is used.
        assert put(server, "legal", "billing") == 200
        assert text_of(server, "legal") == expected["billing"]
        assert put(server, "legal", "sales") == 200
        assert text_of(server, "legal") == expected["sales"]
        assert text_of(server, "billing") == expected["billing"]
        assert server.http.delete("/v1/models/sales").json() == {"id": "sales", "object": "model", "deleted": True}
        assert server.http.post("/v1/chat/completions", json=ask("sales", "one")).status_code == 404
        assert [one["id"] for one in server.http.get("/v1/models").json()["data"]] == ["legal", "billing", "new one"]
    with served(own_bank, state=state) as server:
        assert [one["id"] for one in server.http.get("/v1/models").json()["data"]] == ["legal", "billing", "new one"]
        assert [text_of(server, task) for task in ("new one", "legal")] == [expected["billing"], expected["sales"]]


def test_a_core_that_does_not_fit_is_refused_and_the_old_one_stays(bank, server, tmp_path):
    good = core_of(bank, "billing", tmp_path / "core")
    first = sorted(safetensors.torch.load(good))[0]
    bad = {
        "expected a core file": b"rubbish",
        "as `colora core` writes it": safetensors.torch.save({"a": torch.zeros(3, 3)}),
        "trained against other A and B": core_of(make_bank(tmp_path, base_seed=5), "billing", tmp_path / "other"),
        "expected matrices of one size from 3 × 3": changed(good, lambda one: one | {first: torch.zeros(4, 4)}),
        "missing": changed(good, lambda one: {key: value for key, value in one.items() if key != first}),
        "no such adapted layer": changed(good, lambda one: one | {"lm_head": torch.zeros(3, 3)}),
        "NaN": changed(good, lambda one: one | {first: torch.full((3, 3), torch.nan)}),
        "finite numbers": changed(good, lambda one: one | {first: torch.full((3, 3), 1e300, dtype=torch.float64)}),
        "numbers up to 1e+06": changed(good, lambda one: one | {first: torch.full((3, 3), 1e30)}),
        "infinity": changed(good, lambda one: one | {first: torch.full((3, 3), torch.inf)}),
    }
    before = text_of(server, "legal")
    for message, content in bad.items():
        for task in ("legal", "new"):
            answer = server.http.put(f"/v1/tasks/{task}/core", content=content)
            assert answer.status_code == 400, message
            assert message in answer.json()["error"]["message"]
    assert server.http.put("/v1/tasks/%20/core", content=good).status_code == 400
    assert text_of(server, "legal") == before
    assert server.http.get("/v1/models/new").status_code == 404


@pytest.mark.slow
def test_a_task_is_onboarded_while_the_server_answers(bank, server):
    examples = "\n".join(json.dumps({"input": f"in {i}", "output": "neu"}) for i in range(8)).encode()
    before = {task: text_of(server, task) for task in TASKS}
    bad = server.http.post("/v1/tasks/bad/examples", content=b'{"input": 3}')
    assert (bad.status_code, "line 1: " in bad.text, str(bank.parent) in bad.text) == (400, True, False)
    job = server.http.post("/v1/tasks/taught/examples", content=examples).json()
    assert (job["state"] in ("waiting", "running"), job["after"]) == (True, None)
    assert server.http.post("/v1/tasks/legal/examples", content=examples).status_code == 400
    unknown = server.http.get("/v1/jobs/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "job_not_found")
    end = time.monotonic() + 200
    while (now := server.http.get(f"/v1/jobs/{job['job']}").json())["state"] in ("waiting", "running"):
        assert {task: text_of(server, task) for task in TASKS} == before  # it answers meanwhile
        assert time.monotonic() < end
        time.sleep(1)
    assert now["state"] == "done", now
    assert now["message"].startswith("8 examples: ")
    assert f"{now['after']:.3f} trained" in now["message"]
    assert {task: text_of(server, task) for task in TASKS} == before
    assert text_of(server, "taught") not in before.values()
    assert server.http.delete("/v1/models/taught").status_code == 200


def test_a_newer_bank_takes_the_place_of_the_old_one(own_bank, tmp_path):
    newer = bank_for_either(tmp_path, ["legal", "sales", "added"], seed=7, name="newer")
    old = generate_texts(own_bank, [Request("legal", "one")], 10)[0]
    (old_long,) = generate_texts(own_bank, [Request("legal", "one")], 200)
    new = generate_texts(newer, [Request(task, "one") for task in ("legal", "added")], 10)
    with served(own_bank) as server, ThreadPoolExecutor(1) as pool:
        assert text_of(server, "legal") == old
        running = pool.submit(text_of, server, "legal", max_tokens=200)
        time.sleep(0.2)
        shutil.move(own_bank, tmp_path / "gone")
        shutil.move(newer, own_bank)
        answer = server.http.post("/v1/reload")
        assert (answer.status_code, answer.json()) == (200, {"tasks": 3, "stale": []})
        assert running.result() == old_long
        assert [text_of(server, task) for task in ("legal", "added")] == new
        assert server.http.post("/v1/chat/completions", json=ask("billing", "one")).status_code == 404
        # one that cannot be used is refused, and this one stays
        (own_bank / "adapter_model.safetensors").rename(tmp_path / "tensors")
        (own_bank / "adapter_model.safetensors").write_bytes(b"rubbish")
        assert "truncated" in server.http.post("/v1/reload").json()["error"]["message"]
        assert [text_of(server, task) for task in ("legal", "added")] == new


def test_more_tasks_than_cores_in_memory(tmp_path):
    names = [f"user-{number}" for number in range(40)]
    bank = bank_for_either(tmp_path, names)
    expected = generate_texts(bank, [Request(name, "one") for name in names], 6)
    assert len(set(expected)) > 30
    with served(bank) as server, ThreadPoolExecutor(12) as pool:
        for _ in range(2):
            assert list(pool.map(lambda name: text_of(server, name, max_tokens=6), names)) == expected


def test_a_task_that_changes_under_load_is_never_answered_with_anothers_core(bank, server, tmp_path):
    content = {task: core_of(bank, task, tmp_path / task) for task in TASKS}
    known = dict(zip(TASKS, generate_texts(bank, [Request(task, "one") for task in TASKS], 10), strict=True))
    assert server.http.put("/v1/tasks/moving/core", content=content["legal"]).status_code == 201
    wrong, ended = [], threading.Event()

    def watch(task, allowed):
        while not ended.is_set():
            if (found := text_of(server, task)) not in allowed:
                wrong.append((task, found))

    with ThreadPoolExecutor(6) as pool:
        for task in TASKS:
            pool.submit(watch, task, {known[task]})
        watched = pool.submit(watch, "moving", set(known.values()))
        for whose in (*TASKS, *TASKS):
            assert server.http.put("/v1/tasks/moving/core", content=content[whose]).status_code == 200
            assert text_of(server, "moving") == known[whose]  # what is asked after an upload has it
        ended.set()
        watched.result()
    assert not wrong
