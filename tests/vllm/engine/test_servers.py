"""Servers of vLLM with a bank: two that share what comes, vLLM's own, and starts that fail."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from colora.bank.core_file import extract_core
from colora.bank.generate import Request, generate_texts
from colora.serving.access import add_tenant
from colora.serving.quotas import Limits
from tests.helpers.engines import SMALL, bank_for_either, stock_vllm, vllm_server
from tests.helpers.servers import TASKS, ask

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return bank_for_either(tmp_path_factory.mktemp("bank"))


def test_two_servers_share_what_comes(bank, tmp_path):
    """As behind a router: the same bank file, keys and state folder; a tenant's requests go to both."""
    key = add_tenant(tmp_path / "keys.json", "acme", ["legal", "billing", "new"])
    bearer = {"Authorization": f"Bearer {key}"}
    expected = dict(zip(TASKS, generate_texts(bank, [Request(task, "one") for task in TASKS], 10), strict=True))
    extract_core(bank, "sales", tmp_path / "core")
    options = ("--keys", str(tmp_path / "keys.json"), "--state", str(tmp_path / "state"), *SMALL)
    with vllm_server(bank, *options) as one, vllm_server(bank, *options) as other:

        def text(server, task):
            answer = server.http.post("/v1/chat/completions", json=ask(task, "one", max_tokens=10), headers=bearer)
            return (
                answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else answer.status_code
            )

        def put(server, task):
            content = (tmp_path / "core").read_bytes()
            return server.http.put(f"/v1/tasks/{task}/core", content=content, headers=bearer).status_code

        for server in (one, other):
            assert [text(server, task) for task in TASKS] == [expected["legal"], expected["billing"], 404]
        assert put(one, "new") == 201
        assert [text(server, "new") for server in (other, one)] == [expected["sales"]] * 2
        assert put(other, "legal") == 200  # both have answered with the old core a moment ago
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda number: text((one, other)[number % 2], "legal"), range(16))) == {
                expected["sales"]
            }
        assert one.http.delete("/v1/models/new", headers=bearer).status_code == 200
        assert [text(server, "new") for server in (other, one)] == [404] * 2


def test_a_tenant_has_its_rows_in_the_batch_and_others_go_before_what_waits(bank, tmp_path):
    keys = tmp_path / "keys.json"
    made = {"many": add_tenant(keys, "many", ["*"], limits=Limits(rows=2)), "few": add_tenant(keys, "few", ["*"])}
    made["root"] = add_tenant(keys, "root", ["*"], admin=True)
    with vllm_server(bank, "--keys", str(keys), *SMALL) as server:
        ended, most = [], []

        def send(tenant, **fields):
            body = ask("legal", "one", max_tokens=200, ignore_eos=True, **fields)
            headers = {"Authorization": f"Bearer {made[tenant]}"}
            answer = server.http.post("/v1/chat/completions", json=body, headers=headers)
            ended.append(tenant)
            return answer

        send("few")  # so that the others' first steps are as short as their last
        ended.clear()
        with ThreadPoolExecutor(9) as pool:
            waiting = [pool.submit(send, "many") for _ in range(8)]
            while not all(one.done() for one in waiting):
                text = server.http.get("/metrics", headers={"Authorization": f"Bearer {made['root']}"}).text
                most.append(float(re.search(r"^vllm:num_requests_running\S* (\S+)$", text, re.MULTILINE)[1]))
                if most.count(2) == 1 and most[-1] == 2:
                    waiting.append(pool.submit(send, "few"))
        assert {one.result().status_code for one in waiting} == {200}
        assert 2 <= max(most) <= 3  # two of the one tenant, and the other's
        assert ended.index("few") < 6
        assert send("many", n=9).json()["error"]["param"] == "n"


def test_a_core_that_is_damaged_while_it_is_served_ends_its_answers_and_changes_nobody_elses(bank, tmp_path):
    """Also where its keys and values were before those of others: of few blocks, all are used again."""
    tasks = [f"task-{number}" for number in range(12)]
    many = bank_for_either(tmp_path, tasks)
    extract_core(many, "task-0", tmp_path / "core")
    with vllm_server(many, "--state", str(tmp_path / "state"), *SMALL, "--num-gpu-blocks-override", "24") as server:

        def text(task, content="one", tokens=200):
            body = ask(task, content, max_tokens=tokens, ignore_eos=True)
            return server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

        def texts():
            with ThreadPoolExecutor(4) as pool:
                return list(pool.map(text, tasks[:8]))

        before = texts()
        assert texts() == before
        content = (tmp_path / "core").read_bytes()
        assert server.http.put("/v1/tasks/bad/core", content=content).status_code == 201
        assert text("bad", tokens=4)
        for task in tasks:  # takes its place in memory too
            text(task, tokens=2)
        (file,) = (tmp_path / "state" / "cores").glob("*.safetensors")
        file.write_bytes(b"rubbish")
        assert [text("bad", f"word {number}") for number in range(6)] == [""] * 6
        for _ in range(4):
            assert texts() == before


@pytest.mark.parametrize("way", ["shared", "folders"])
def test_stock_vllm_answers_for_every_task_of_the_bank_in_its_environment(bank, tmp_path, way):
    expected = {task: generate_texts(bank, [Request(task, "one")], 10)[0] for task in TASKS}
    environment = {"COLORA_BANK": str(bank), "COLORA_VLLM": way, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    environment["TMPDIR"] = str(tmp_path)
    options = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2")
    with stock_vllm(bank.parent / "base-0", tmp_path / "log", environment, *options) as server:

        def text(task):
            answer = server.http.post("/v1/chat/completions", json=ask(task, "one", max_tokens=10))
            return answer.json()["choices"][0]["message"]["content"].strip()

        with ThreadPoolExecutor(6) as pool:  # three tasks for two slots
            assert dict(zip(TASKS * 4, pool.map(text, TASKS * 4), strict=True)) == expected
        assert server.http.post("/v1/chat/completions", json=ask("nobody", "one")).status_code == 404
        written = list(tmp_path.glob("colora-loras-*/*/adapter_model.safetensors"))
    assert len(written) == (len(TASKS) if way == "folders" else 0)


@pytest.fixture
def start(tmp_path):
    """A function that starts a server which cannot be started, and returns what it says."""
    log = tmp_path / "start.log"

    def run(bank, *arguments, **environment):
        command = [sys.executable, "-m", "colora", "serve", str(bank), "--engine", "vllm", "--port", "0", *arguments]
        with open(log, "wb") as file:
            code = subprocess.run(
                command, stdout=file, stderr=file, timeout=200, env=os.environ | environment
            ).returncode
        assert code, log.read_text()
        return log.read_text()

    return run


def test_a_bank_that_cannot_be_served_is_told_before_anything_is_loaded(start, bank, tmp_path):
    assert "nowhere" in start(tmp_path / "nowhere")
    damaged = shutil.copytree(bank, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"rubbish")
    assert "adapter_model.safetensors" in start(damaged)
    newer = shutil.copytree(bank, tmp_path / "newer")
    config = json.loads((newer / "adapter_config.json").read_text())
    (newer / "adapter_config.json").write_text(json.dumps(config | {"format_version": 99}))
    assert "99" in start(newer)
    assert "--max-loras: colora serve sets this itself" in start(bank, "--max-loras", "4")
    assert "--queue: not available with --engine vllm" in start(bank, "--queue", "4")


def test_what_only_vllm_can_find_ends_its_start_with_the_reason(start, bank, tmp_path):
    other = bank_for_either(tmp_path, base_seed=5)
    said = start(bank, "--base", str(other.parent / "base-5"), *SMALL, VLLM_CPU_KVCACHE_SPACE="1")
    assert "this bank was trained on another base model" in said
    said = start(bank, *SMALL, COLORA_VLLM="some")
    assert "COLORA_VLLM: expected one of auto, shared, folders, found 'some'" in said
