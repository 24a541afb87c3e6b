"""A networked federation on loopback with TLS and keys: it equals the protocol in one process, and leaks nothing."""

from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.federated.leaks import core_slices, factor_slices, found_in, texts
from benchmarks.federated.loopback import federation
from colora.bank.overview import bank_overview
from colora.evaluation.records import read_records
from colora.federated.simulate import simulate
from colora.training.config_file import load_config
from tests.helpers.run_files import run_file, save_base, write_task

NAMES = ("red", "blue")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_networked_federation_equals_simulate_and_leaks_nothing(tmp_path: Path):
    tasks = [{"path": write_task(tmp_path, name), "val": 0, "test": 0} for name in NAMES]
    path = run_file(tmp_path, save_base(tmp_path / "base"), tasks, evaluation={"split": "train"})
    run = yaml.safe_load(path.read_text())
    # Limits that no machine reaches: on a busy one a client's process takes a minute to import what it needs.
    run["federation"] = {"rounds": 1, "rows": 2, "clients": 2, "wait": 240, "deadline": 240}
    path.write_text(yaml.safe_dump(run))
    with federation(tmp_path / "net", {name: tmp_path / f"{name}.jsonl" for name in NAMES}, listen=True) as net:
        net.start()
        done = net.run(path, seconds=540)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{net.logs()}"
        processes = [psutil.Process(process.pid) for process in net.processes.values()]
        started = [child for process in processes for child in (process, *process.children(recursive=True))]
    assert len(started) > len(NAMES)
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    commands = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]  # empty for a zombie
    assert not [command for command in commands if "flower" in command and str(tmp_path) in command]

    records = read_records(tmp_path / "net" / "server" / "rounds.jsonl")
    assert [one.value for one in records if one.metric == "accepted"] == [2], f"{done.stdout}\n{net.logs()}"
    assert {one.task for one in records if one.metric == "train_nll"} == set(NAMES)

    simulate(load_config(path))
    alone = load_file(tmp_path / "out" / "bank" / "adapter_model.safetensors")
    for index, name in enumerate(NAMES):
        (bank,) = (tmp_path / "net" / "state" / name).glob("*/bank")
        assert bank_overview(bank).tasks == [name]
        networked = load_file(bank / "adapter_model.safetensors")
        assert networked.keys() == alone.keys()
        for key, tensor in networked.items():
            expected = alone[key][index : index + 1] if "core" in key else alone[key]
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)

    assert net.listener is not None
    database = b"".join(file.read_bytes() for file in (tmp_path / "net" / "server-home").rglob("*") if file.is_file())
    line = bytes(net.listener.seen)
    for name in NAMES:
        states = sorted((tmp_path / "net" / "state" / name).glob("*/before-round-*.safetensors"))
        for seen in (line, database):
            for state in states:
                hits, looked = found_in(seen, core_slices(state))
                assert (hits, looked > 20) == (0, True)
            hits, looked = found_in(seen, texts(tmp_path / f"{name}.jsonl"))
            assert (hits, looked > 5) == (0, True)
        hits, looked = found_in(line, factor_slices(states[-1], "A"))
        assert hits == looked > 0, "the search would not find anything"
