"""A federation in one process, from the command line: it resumes to the same bits, and refuses invalid settings."""

from pathlib import Path

import pytest
import torch
import yaml

import colora.federated.simulate
from colora.evaluation.records import read_records
from colora.federated.aggregate import RoundReport
from colora.federated.history import RoundCost, round_records, write_round
from colora.federated.simulate import simulate
from colora.training.config import FederationConfig
from colora.training.config_file import load_config, load_federation
from colora.training.run_folder import run_config
from tests.helpers.run_files import bank_tensors, cli, refusal, run_file, save_base, write_task

FIELDS = ("federation.rounds=3", "federation.rows=2", "federation.finish_steps=1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return run_file(tmp_path, save_base(tmp_path / "base"))


def test_simulate_writes_a_bank_and_does_not_run_again(tmp_path: Path, path: Path):
    done = cli("federate", "simulate", path, *FIELDS)
    assert done.exit_code == 0, done.stderr
    assert "red" in done.stdout
    records = read_records(tmp_path / "out" / "rounds.jsonl")
    assert [one.value for one in records if one.metric == "accepted"] == [2, 2, 2]
    assert {one.task for one in records if one.metric == "train_nll"} == {"red", "blue"}
    again = cli("federate", "simulate", path, *FIELDS)
    assert "has ended before" in again.stderr


def test_a_federation_has_its_own_rates_unless_the_run_file_names_some(tmp_path: Path, path: Path):
    bare = tmp_path / "bare.yaml"
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    text["training"] = {name: value for name, value in text["training"].items() if name not in ("lr", "core_lr")}
    bare.write_text(yaml.safe_dump(text), encoding="utf-8")
    for given, rates in (([], (2e-3, 6e-2)), (["training.core_lr=0.02"], (2e-3, 2e-2))):
        agreed = load_federation(bare, given).training
        assert (agreed.lr, agreed.core_lr) == rates
        output = tmp_path / f"run-{len(given)}"
        simulate(load_config(bare, [*FIELDS, f"output={output}", *given]))
        ran = run_config(output).training
        assert (ran.lr, ran.core_lr, ran.max_length) == (*rates, agreed.max_length)
    assert load_config(bare).training.lr == 1e-3
    assert FederationConfig.model_validate_json(load_federation(bare).model_dump_json()) == load_federation(bare)


def test_simulate_resumes_to_the_same_bits(tmp_path: Path, path: Path, monkeypatch):
    whole = load_config(path, [*FIELDS, f"output={tmp_path / 'whole'}"])
    simulate(whole)
    monkeypatch.setattr(colora.federated.simulate, "SAVE_SECONDS", -1.0)
    save = colora.federated.simulate._save

    def killed(folder, state, clients):
        save(folder, state, clients)
        if state.round == 2:
            raise SystemExit

    monkeypatch.setattr(colora.federated.simulate, "_save", killed)
    with pytest.raises(SystemExit):
        simulate(load_config(path, FIELDS))
    monkeypatch.setattr(colora.federated.simulate, "_save", save)
    lines: list[str] = []
    simulate(load_config(path, FIELDS), lines.append)
    assert lines[0] == "going on after round 2 of 3"
    expected, found = bank_tensors(tmp_path / "whole"), bank_tensors(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rounds = [one.split for one in read_records(tmp_path / "out" / "rounds.jsonl") if one.metric == "accepted"]
    assert rounds == ["round 0", "round 1", "round 2"]


def test_simulate_refuses_the_folder_of_another_federation(tmp_path: Path, path: Path):
    assert cli("federate", "simulate", path, *FIELDS).exit_code == 0
    said = refusal("federate", "simulate", path, *FIELDS, "federation.fraction=0.5")
    assert "federation.fraction: it has 1.0, this run 0.5" in said
    assert "holds a federation" in refusal("train", path, *FIELDS)


def test_simulate_refuses_the_folder_of_a_training_run(tmp_path: Path, path: Path):
    assert cli("train", path).exit_code == 0
    assert "holds a run of `colora train`" in refusal("federate", "simulate", path)


def test_simulate_with_privacy_records_epsilon_and_draws_other_noise_each_time(tmp_path: Path, path: Path):
    private = [*FIELDS, "federation.clip=1.0", "federation.weights=uniform"]
    banks = []
    for name in ("first", "second"):
        simulate(load_config(path, [*private, f"output={tmp_path / name}"]))
        banks.append(bank_tensors(tmp_path / name))
    spent = [one.value for one in read_records(tmp_path / "first" / "rounds.jsonl") if one.metric == "epsilon"]
    assert 0 < spent[0] < spent[1] < spent[2]
    assert (tmp_path / "first" / "privacy.json").is_file()
    assert any(not torch.equal(banks[0][name], banks[1][name]) for name in banks[0])


def test_write_round_replaces_rounds_that_a_crash_undid(tmp_path: Path):
    file = tmp_path / "rounds.jsonl"

    def write(number: int, up: int) -> None:
        report = RoundReport(number, ["a"], {"b": "late"}, {"a": 1.0})
        write_round(file, round_records("run", 0, report, RoundCost(up, 0, 1.0)))

    for number, up in ((0, 1), (1, 2), (2, 3), (1, 20), (2, 30)):
        write(number, up)
    records = read_records(file)
    assert [one.value for one in records if one.metric == "bytes_up"] == [1, 20, 30]
    assert [one.split for one in records if one.metric == "dropped: late"] == [f"round {number}" for number in range(3)]
    write(0, 5)
    assert {one.split for one in read_records(file)} == {"round 0"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["federation.clip=1", "federation.rule=median"], "clip needs rule: mean, compression: none and weights"),
        (["federation.clip=1", "federation.weights=uniform", "federation.compression=int8"], "clip needs rule: mean"),
        (["federation.replies=3"], "replies (3) cannot be more than clients (2)"),
        (["federation.fraction=0"], "federation.fraction: expected greater than 0, found 0"),
        (["federation.trim=0.5"], "federation.trim: expected less than 0.5"),
        (["adapter.modules_to_save=[lm_head]"], "adapter.modules_to_save cannot be used"),
        (["adapter.lora_dropout=0.1"], "adapter.lora_dropout and"),
    ],
)
def test_simulate_refuses_invalid_settings_before_it_writes(tmp_path: Path, path: Path, fields, message):
    assert message in refusal("federate", "simulate", path, *fields)
    assert not (tmp_path / "out").exists()


def test_simulate_refuses_a_task_without_training_examples(tmp_path: Path):
    task = {"path": write_task(tmp_path, "blue"), "test": 10, "val": 0}
    said = refusal("federate", "simulate", run_file(tmp_path, save_base(tmp_path / "base"), ["red", task]))
    assert "blue.jsonl: expected 1 examples for the train split" in said
    assert not (tmp_path / "out").exists()


def test_simulate_with_a_fraction_of_clients_resumes_to_the_same_bits(tmp_path: Path, monkeypatch):
    """Clients that did not take part have older factors than the server when it resumes, and new clients have none."""
    path = run_file(tmp_path, save_base(tmp_path / "base"), ("red", "blue", "green", "grey"))
    fields = (
        "federation.rounds=4",
        "federation.fraction=0.5",
        "federation.rows=2",
        "federation.schedule=alternating",
        "federation.compression=int8",
        "federation.server=momentum",
        "federation.server_lr=0.5",
    )
    simulate(load_config(path, [*fields, f"output={tmp_path / 'whole'}"]))
    monkeypatch.setattr(colora.federated.simulate, "SAVE_SECONDS", -1.0)
    save = colora.federated.simulate._save
    for stop in (1, 2, 3):

        def killed(folder, state, clients, stop=stop):
            save(folder, state, clients)
            if state.round == stop:
                raise SystemExit

        monkeypatch.setattr(colora.federated.simulate, "_save", killed)
        with pytest.raises(SystemExit):
            simulate(load_config(path, fields))
    monkeypatch.setattr(colora.federated.simulate, "_save", save)
    simulate(load_config(path, fields))
    expected, found = bank_tensors(tmp_path / "whole"), bank_tensors(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
