"""Tasks that come and go while the server runs, newer banks, and banks larger than memory."""

import json
import shutil
import threading
import time
import tracemalloc

import pytest
import safetensors.torch
import torch

from colora.bank.core_file import extract_core
from colora.bank.generate import Request, generate_texts
from colora.bank.tensors import SavedBank, shared_sha256
from colora.errors import BankFileError, CheckpointError, ConfigError, TaskIdError
from colora.serving.quotas import UNLIMITED
from colora.serving.resident import NoRoomError, Resident, attach_slots
from colora.serving.store import CoreStore
from tests.helpers.run_files import cli, refusal
from tests.helpers.servers import TASKS, ask, make_bank, serving
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def bank(tmp_path):
    return make_bank(tmp_path)


def answer_text(server, task, text="one", **fields):
    answer = server.http.post("/v1/chat/completions", json=ask(task, text, **{"max_tokens": 10} | fields))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def core_of(bank, task, output):
    extract_core(bank, task, output)
    return output.read_bytes()


# ---- core files ------------------------------------------------------------------------------------------------------


def test_core_command_writes_a_small_file(bank, tmp_path):
    done = cli("core", bank, "billing", tmp_path / "billing.safetensors")
    assert done.exit_code == 0, done.stderr
    content = (tmp_path / "billing.safetensors").read_bytes()
    tensors = SavedBank(bank)
    core = safetensors.torch.load(content)
    assert {name: tensor.tolist() for name, tensor in core.items()} == {
        name: tensor.tolist() for name, tensor in tensors.core(1).items()
    }
    assert len(content) < 4000
    assert "unknown task 'nobody'" in refusal("core", bank, "nobody", tmp_path / "x")
    assert "no such folder" in refusal("core", tmp_path / "nothing", "billing", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_store_refuses_an_edited_bank(bank):
    file = bank / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(BankFileError, match="weights_sha256"):
        CoreStore(bank)
    file.write_bytes(content[:-300])
    with pytest.raises(BankFileError, match="truncated"):
        CoreStore(bank)


# ---- tasks that come and go ------------------------------------------------------------------------------------------


def test_removed_task_stays_removed_after_a_restart(bank, tmp_path):
    content = core_of(bank, "billing", tmp_path / "core")
    state = tmp_path / "state"
    with serving(bank, state=state) as server:
        answer_text(server, "legal")
        server.http.put("/v1/tasks/new/core", content=content)
        for task in ("legal", "new"):
            assert server.http.delete(f"/v1/models/{task}").json() == {"id": task, "object": "model", "deleted": True}
            assert server.http.delete(f"/v1/models/{task}").status_code == 404
            assert server.http.post("/v1/chat/completions", json=ask(task, "a")).status_code == 404
        assert server.metric("tasks") == 2
        resident = server.service.scheduler.engine.resident
        assert not resident.has("legal", 0)  # not in memory either
        answer_text(server, "sales")
    assert not list(state.glob("cores/*"))
    with serving(bank, state=state) as server:
        assert [one["id"] for one in server.http.get("/v1/models").json()["data"]] == ["billing", "sales"]
        # the name is free again
        assert server.http.put("/v1/tasks/legal/core", content=content).status_code == 201
        assert answer_text(server, "legal") == answer_text(server, "billing")
        assert server.metric("tasks") == 3


def test_counting_tasks_takes_no_memory_for_their_names(bank, tmp_path):
    """A set of 200 000 names is 8 MB, and malloc keeps that for each thread that ever asked for /metrics."""
    store = CoreStore(bank, tmp_path / "state")
    content = core_of(bank, "billing", tmp_path / "core")
    for name in ("new", "legal"):  # a new task, and one that replaces a task of the bank
        store.put(name, content)
    store.remove("sales")
    store.put("sales", content)
    assert len(store) == len(list(store)) == 4
    store._in_bank = store._in_bank.extended([f"user-{number}" for number in range(20_000)])
    tracemalloc.start()
    try:
        assert len(store) == 20_004
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_cores_of_another_bank_in_the_state_folder_are_stale(bank, tmp_path):
    state = tmp_path / "state"
    CoreStore(bank, state).put("new", core_of(bank, "billing", tmp_path / "core"))
    store = CoreStore(make_bank(tmp_path, seed=2, name="other"), state)
    assert (store.stale, "new" in store, len(store)) == (["new"], False, 3)
    assert len(list(state.glob("cores/*"))) == 1
    (path,) = state.glob("cores/*")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="damaged"):
        CoreStore(bank, state)


def test_store_that_cannot_be_written_stays_as_it_was(bank, tmp_path, monkeypatch):
    store = CoreStore(bank, tmp_path / "state")
    content = core_of(bank, "billing", tmp_path / "core")

    def fail(*arguments):
        raise CheckpointError("disk full")

    monkeypatch.setattr("colora.serving.state.write_bytes", fail)
    monkeypatch.setattr("colora.serving.state.write_json", fail)
    for change in (
        lambda: store.put("new", content),
        lambda: store.put("legal", content),
        lambda: store.remove("legal"),
    ):
        with pytest.raises(CheckpointError):
            change()
    assert list(store) == list(TASKS)
    assert store.version("legal") == 0
    with pytest.raises(TaskIdError):
        store.read("new")


# ---- newer banks -----------------------------------------------------------------------------------------------------


def replace_bank(bank, newer):
    shutil.move(bank, bank.with_name("gone"))
    shutil.move(newer, bank)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("r", [3, 5])
def test_reload_drops_no_request(bank, tmp_path, r):
    newer = make_bank(tmp_path, ["legal", "sales", "added"], seed=7, r=r, name="newer")
    long = {"max_tokens": 300, "temperature": 1, "seed": 5}
    texts = {}
    with serving(bank, rows=2) as server:
        server.http.post("/v1/chat/completions", json=ask("legal", "one"))
        expected_long = answer_text(server, "legal", **long)
        old = answer_text(server, "legal")

        def run(name, task, **fields):
            answer = server.http.post("/v1/chat/completions", json=ask(task, "one", **fields))
            texts[name] = answer.status_code, answer.json()

        def started(*arguments, **fields):
            thread = threading.Thread(target=run, args=arguments, kwargs=fields)
            thread.start()
            return thread

        threads = [started("running", "legal", **long)]
        server.until("running_requests", 1)
        replace_bank(bank, newer)
        reload = threading.Thread(target=lambda: texts.update(reload=server.http.post("/v1/reload").json()))
        reload.start()
        time.sleep(0.1)
        threads += [started("waiting", "legal", max_tokens=10), started("removed", "billing")]
        for thread in (*threads, reload):
            thread.join(60)
        assert texts["running"][1]["choices"][0]["message"]["content"] == expected_long
        assert texts["reload"] == {"tasks": 3, "stale": []}
        assert answer_text(server, "legal") != old
        assert answer_text(server, "added")
        now = answer_text(server, "legal")
        # a request in between was answered by the old bank or by the new one, and not by a mixture
        assert texts["waiting"][1]["choices"][0]["message"]["content"] in (old, now)
        assert texts["removed"][0] in (200, 404)
        assert server.http.get("/v1/models/billing").status_code == 404
        expected = generate_texts(bank, [Request("legal", "one")], 10)[0]
        assert now.rstrip("\ufffd ") == expected.rstrip("\ufffd ")


def test_reload_refuses_an_unusable_bank_and_the_old_one_stays(bank, tmp_path):
    with serving(bank) as server:
        before = answer_text(server, "legal")
        replace_bank(bank, make_bank(tmp_path, seed=2, base_seed=5, name="other"))
        answer = server.http.post("/v1/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_base")
        (bank / "adapter_model.safetensors").write_bytes(b"rubbish")
        assert "truncated" in server.http.post("/v1/reload").json()["error"]["message"]
        # of the right name, but of another base: detected when it is attached
        replace_bank(bank, tmp_path / "gone")
        config = json.loads((bank / "adapter_config.json").read_text())
        config["base_identity"]["sketch"] = {
            key: " ".join(["9"] * len(text.split())) for key, text in config["base_identity"]["sketch"].items()
        }
        (bank / "adapter_config.json").write_text(json.dumps(config))
        assert "another base model" in server.http.post("/v1/reload").json()["error"]["message"]
        assert answer_text(server, "legal") == before


# ---- banks larger than memory ----------------------------------------------------------------------------------------


def test_few_resident_cores_serve_many_tasks(tmp_path):
    names = [f"user-{number}" for number in range(40)]
    bank = make_bank(tmp_path, names)
    expected = generate_texts(bank, [Request(name, "one") for name in names], 6)
    assert len(set(expected)) > 30
    with serving(bank, rows=2, resident=3) as server:
        for name, text in [*zip(names, expected, strict=True)] * 2:
            assert answer_text(server, name, max_tokens=6).rstrip("\ufffd ") == text.rstrip("\ufffd ")
        assert server.metric("resident_cores") == 3
        assert server.metric("core_misses") == 80
        answer_text(server, names[-1])
        assert server.metric("core_hits") == 1


def test_resident_evicts_the_least_recently_used_core_unless_held(bank):
    store = CoreStore(bank)
    model = attach_slots(tiny_llama(), store.saved, 2)
    resident = Resident(model)
    reads = []

    def hold(task, version=0):
        return resident.hold(task, version, lambda: reads.append(task) or store.read(task)[1])

    slots = {"legal": hold("legal"), "billing": hold("billing")}
    with pytest.raises(NoRoomError):
        hold("sales")
    resident.release("billing", 0)
    assert hold("billing") == slots["billing"]  # still there
    resident.release("billing", 0)
    assert hold("sales") == slots["billing"]
    assert reads == ["legal", "billing", "sales"]
    for name, stack in resident.stacks.items():
        assert torch.equal(stack[slots["legal"]], store.read("legal")[1][name])
        assert torch.equal(stack[slots["billing"]], store.read("sales")[1][name])
    # a new version of a core gets another slot, once one is free
    resident.release("sales", 0)
    assert hold("legal", 1) == slots["billing"]
    resident.drop("legal")
    assert resident.has("legal", 0)  # rows still run with it
    resident.release("legal", 0)
    assert not resident.has("legal", 0)
    assert all(not stack[slots["legal"]].any() for stack in resident.stacks.values())


def test_resident_frees_the_slot_of_a_failed_read(bank):
    store = CoreStore(bank)
    resident = Resident(attach_slots(tiny_llama(), store.saved, 1))

    def fail():
        raise OSError("gone")

    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            resident.hold("legal", 0, fail)
    assert resident.hold("legal", 0, lambda: store.read("legal")[1]) == 0


def test_shared_sha256_depends_on_the_factors_alone(bank, tmp_path):
    tensors = SavedBank(bank)
    digest = tensors.shared_sha256
    held = {key: tensors[key] for key in tensors}
    core = next(key for key in held if "core" in key)
    assert shared_sha256(held | {core: held[core] + 1}) == digest
    factor = next(key for key in held if "colora_A" in key)
    assert shared_sha256(held | {factor: held[factor] + 1}) != digest


def test_a_name_that_the_server_keeps_for_its_base_is_no_tasks(bank, tmp_path):
    store = CoreStore(bank, tmp_path / "state")
    store.reserved = frozenset({"base"})
    extract_core(bank, "sales", tmp_path / "core")
    content = (tmp_path / "core").read_bytes()
    with pytest.raises(ConfigError, match="the base's name"):
        store.put("base", content)
    with pytest.raises(ConfigError, match="the base's name"):
        store.check_room(None, "base", UNLIMITED, 0)
    store.put("basis", content)
    assert "base" not in store
