"""A state folder that several servers share: what one changes, the others have with the next request."""

import os
import threading

import pytest
import safetensors.torch

from colora.bank.core_file import extract_core
from colora.errors import CheckpointError, TaskIdError
from colora.serving.quotas import Limits, QuotaError
from colora.serving.state import KEPT_SECONDS
from colora.serving.store import CoreStore
from tests.helpers.servers import TASKS, ask, make_bank, serving


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def cores(bank, tmp_path):
    """Core files of the bank's tasks."""

    def content(task):
        extract_core(bank, task, tmp_path / task)
        return (tmp_path / task).read_bytes()

    return {task: content(task) for task in TASKS}


def holds(store, task, cores, whose):
    """Whether the store's task has the core of another."""
    _, core = store.read(task)
    expected = safetensors.torch.load(cores[whose])
    return all(core[name].equal(expected[name]) for name in expected)


def test_what_one_server_changes_the_other_has(bank, state, cores):
    one, other = CoreStore(bank, state), CoreStore(bank, state)
    one.put("new", cores["billing"])
    assert holds(other, "new", cores, "billing")
    version, path = other.place("new")
    other.put("new", cores["sales"])
    assert holds(one, "new", cores, "sales")
    assert one.place("new")[1] != path
    assert other.version("new") != version
    one.remove("new")
    with pytest.raises(TaskIdError):
        other.read("new")
    other.remove("legal")
    assert (list(one), len(one)) == (["billing", "sales"], 2)
    one.put("legal", cores["sales"])  # the name is free again
    assert holds(other, "legal", cores, "sales")
    assert [sorted(CoreStore(bank, state)), sorted(other), sorted(one)] == [sorted(TASKS)] * 3


def test_a_change_is_seen_however_soon_the_last_one_was(bank, state, cores):
    one, other = CoreStore(bank, state), CoreStore(bank, state)
    for number in range(40):
        whose = TASKS[number % 3]
        one.put("new", cores[whose])
        assert holds(other, "new", cores, whose)


def test_an_answer_that_has_begun_finds_the_core_that_it_began_with(bank, state, cores):
    store = CoreStore(bank, state)
    store.put("new", cores["billing"])
    _, first = store.place("new")
    content = first.read_bytes()
    store.put("new", cores["sales"])
    _, second = store.place("new")
    assert first.read_bytes() == content
    assert len(CoreStore(bank, state)) == 4
    assert first.exists()
    long_ago = second.stat().st_mtime - KEPT_SECONDS - 1
    os.utime(second, (long_ago, long_ago))
    assert holds(CoreStore(bank, state), "new", cores, "sales")
    assert (first.exists(), second.exists()) == (False, True)


def test_cores_without_a_version_are_older(bank, state, cores):
    store = CoreStore(bank, state)
    store.put("new", cores["billing"])
    _, path = store.place("new")
    digest = path.name.split(".")[0]
    path.rename(path.with_name(f"{digest}.safetensors"))  # as servers before wrote it
    store = CoreStore(bank, state)
    assert holds(store, "new", cores, "billing")
    store.put("new", cores["sales"])
    assert holds(CoreStore(bank, state), "new", cores, "sales")


def test_servers_with_other_factors_have_their_own_cores(bank, state, cores, tmp_path):
    newer = make_bank(tmp_path, seed=2, name="newer")
    extract_core(newer, "legal", tmp_path / "core")
    newer_cores = {"legal": (tmp_path / "core").read_bytes()}
    one, other = CoreStore(bank, state), CoreStore(newer, state)
    one.put("new", cores["billing"])
    assert ("new" in other, other.stale) == (False, ["new"])
    other.put("new", newer_cores["legal"])
    assert (other.stale, one.stale) == ([], [])
    assert holds(one, "new", cores, "billing")
    assert holds(other, "new", newer_cores, "legal")


def test_a_damaged_core_of_another_server_is_told_and_the_one_before_is_served(bank, state, cores, caplog):
    one, other = CoreStore(bank, state), CoreStore(bank, state)
    one.put("new", cores["billing"])
    _, path = one.place("new")
    digest = path.name.split(".")[0]
    path.with_name(f"{digest}.2.safetensors").write_bytes(b"half")
    assert holds(other, "new", cores, "billing")
    assert "2.safetensors: damaged" in caplog.text
    with pytest.raises(CheckpointError, match=r"2\.safetensors: damaged"):
        CoreStore(bank, state)


def test_quotas_count_what_came_by_the_other_server(bank, state, cores):
    one, other = CoreStore(bank, state), CoreStore(bank, state)
    one.put("new", cores["billing"], "acme", Limits(tasks=1))
    with pytest.raises(QuotaError):
        other.put("newer", cores["billing"], "acme", Limits(tasks=1))
    one.remove("new")
    other.put("newer", cores["billing"], "acme", Limits(tasks=1))


def test_servers_that_change_at_once_lose_nothing(bank, state, cores):
    stores = [CoreStore(bank, state) for _ in range(2)]
    failed = []

    def change(number):
        try:
            for turn in range(15):
                stores[number].put(f"own-{number}-{turn}", cores["billing"])
                stores[number].put("common", cores[TASKS[number]])
            stores[number].remove(TASKS[number])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=change, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    expected = {"sales", "common", *(f"own-{number}-{turn}" for number in range(2) for turn in range(15))}
    assert [set(store) for store in (*stores, CoreStore(bank, state))] == [expected] * 3
    assert any(all(holds(store, "common", cores, whose) for store in stores) for whose in TASKS[:2])


def test_an_upload_to_one_server_is_answered_by_the_other(bank, state, cores):
    def text(server, task):
        answer = server.http.post("/v1/chat/completions", json=ask(task, "one", max_tokens=10))
        return answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else answer.status_code

    with serving(bank, state=state) as one, serving(bank, state=state) as other:
        expected = {task: text(one, task) for task in TASKS}
        assert one.http.put("/v1/tasks/new/core", content=cores["billing"]).status_code == 201
        assert text(other, "new") == expected["billing"]
        assert one.http.put("/v1/tasks/new/core", content=cores["sales"]).status_code == 200
        assert text(other, "new") == expected["sales"]
        assert other.http.delete("/v1/models/new").status_code == 200
        assert text(one, "new") == 404
