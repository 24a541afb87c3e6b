"""Runs in groups: which tasks share a bank, equal costs, going on, and refusals."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from colora.bank.layout import find_bank, read_bank_info
from colora.bank.overview import bank_overview
from colora.errors import BankFileError, ConfigError
from colora.federated.simulate import simulate
from colora.training.check import check_run
from colora.training.config_file import load_config, load_federation
from colora.training.resolve import read_run_tasks
from colora.training.run import train, train_and_evaluate, train_resolved
from colora.training.run_folder import run_config
from colora.training.task_gradients import TaskGradients
from colora.transfer.grouping import folder_names, part_of, train_groups
from tests.helpers.run_files import bank_tensors, cli, config_of, content, refusal, run_file, save_base

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["red", "blue", "green"]
TWO = [["blue"], ["red", "green"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory, base):
    """The run file of a run in groups that has ended, and what was logged."""
    folder, lines = tmp_path_factory.mktemp("ended"), []
    config = config_of(folder, base, TASKS, grouping=TWO, training={"rows": 6})
    return folder / "run.yaml", train_groups(config, log=lines.append), lines


def planted(monkeypatch, directions):
    """Gradients in one layer along given directions of the plane; returns the calls made for them."""
    calls = []

    def gradients(config):
        calls.append(config)
        names = [task.name for task in read_run_tasks(config)]
        A = torch.tensor([[directions[name]] for name in names])
        return TaskGradients(names, {"layer": (torch.ones(len(names), 1, 1), A)}, torch.ones(len(names)))

    monkeypatch.setattr("colora.transfer.grouping.run_gradients", gradients)
    return calls


# ---- which tasks ----------------------------------------------------------------------------------------------------


def test_auto_puts_tasks_of_like_gradients_together(base, tmp_path, monkeypatch):
    calls = planted(monkeypatch, {"red": [1.0, 0.1], "blue": [0.0, 1.0], "green": [1.0, 0.0]})
    config = config_of(tmp_path, base, TASKS, grouping="auto", training={"rows": 6})
    done = train_groups(config)
    assert done.groups == {"red": ["red", "green"], "blue": ["blue"]}
    found = json.loads((tmp_path / "out" / "grouping.json").read_text())
    assert found["groups"] == done.groups
    assert found["runs"] == {"red": "groups/red", "blue": "groups/blue", "green": "groups/red"}
    assert found["tasks"] == TASKS
    assert found["cosine"][0][2] == pytest.approx(1 / 1.01**0.5, abs=1e-4)
    again = train_groups(config)
    assert (len(calls), again.groups) == (1, done.groups)  # decided once


def test_auto_by_real_gradients(base, tmp_path):
    done = train_groups(config_of(tmp_path, base, grouping="auto"))
    assert sorted(name for group in done.groups.values() for name in group) == ["blue", "red"]
    cosine = json.loads((tmp_path / "out" / "grouping.json").read_text())["cosine"]
    assert (cosine[0][0], cosine[0][1]) == (1.0, cosine[1][0])


def test_one_task_is_one_group(base, tmp_path):
    assert train_groups(config_of(tmp_path, base, ["red"], grouping="auto")).groups == {"red": ["red"]}


def test_every_group_is_an_ordinary_run(ended, base, tmp_path):
    file, done, lines = ended
    out = file.parent / "out"
    assert [line for line in lines if line.startswith("group")] == ["group 1 of 2: red, green", "group 2 of 2: blue"]
    assert done.banks == {"red": out / "groups" / "red" / "bank", "blue": out / "groups" / "blue" / "bank"}
    assert bank_overview(out / "groups" / "red").tasks == ["red", "green"]
    assert {one.task for one in done.evaluation.records} == set(TASKS)
    assert cli("evaluate", out / "groups" / "blue").exit_code == 0
    alone = config_of(tmp_path, base, ["red", "green"], training={"rows": 4})
    train(alone)
    same, grouped = bank_tensors(tmp_path / "out"), bank_tensors(out / "groups" / "red")
    assert all(torch.equal(same[name], grouped[name]) for name in same)


def test_groups_keep_the_splits_of_the_whole_run(base, tmp_path):
    names = ["red", "blue", "green"]
    for number, name in enumerate(names):  # which have texts in common, not all
        rows = [{"input": f"text {text}", "output": name} for text in range(5 * number, 5 * number + 20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tasks = [{"path": f"{name}.jsonl", "val": 2} for name in names]
    groups = [["red"], ["blue", "green"]]
    config = config_of(tmp_path, base, tasks, training={"steps": 1}, shared_splits=True, grouping=groups)
    train_groups(config)
    whole = {task.name: task.splits for task in read_run_tasks(config)}
    for name, some in (("red", ["red"]), ("blue", ["blue", "green"])):
        run = tmp_path / "out" / "groups" / name
        assert {task.name: task.splits for task in read_run_tasks(run_config(run))} == {one: whole[one] for one in some}
        assert cli("evaluate", run).exit_code == 0


# ---- equal costs ----------------------------------------------------------------------------------------------------


def test_a_task_sees_as_many_rows_as_in_one_bank(ended, base, tmp_path):
    _, done, lines = ended
    train_and_evaluate(config_of(tmp_path, base, TASKS, training={"rows": 6}))
    whole = read_bank_info(tmp_path / "out" / "bank").seen
    assert {name: count for bank in done.banks.values() for name, count in read_bank_info(bank).seen.items()} == whole
    assert not any("whole number" in line for line in lines)


def test_rows_follow_the_mix(base, tmp_path):
    config = config_of(tmp_path, base, TASKS, training={"rows": 12, "mixing": "proportional"})
    tasks = read_run_tasks(config)
    sizes = {"red": 10, "blue": 20, "green": 30}
    for task in tasks:
        task.splits["train"] = task.splits["train"][:1] * sizes[task.name]
    assert part_of(config, tasks, ["green", "red"], tmp_path).training.rows == 8
    assert [task.name for task in part_of(config, tasks, ["green", "red"], tmp_path).tasks] == ["red", "green"]


def test_rows_that_do_not_divide_are_logged(base, tmp_path):
    config, lines = config_of(tmp_path, base, TASKS, training={"rows": 4, "accumulation": 2}), []
    part = part_of(config, read_run_tasks(config), ["blue"], tmp_path / "x", lines.append)
    assert (part.training.rows, part.output) == (2, str(tmp_path / "x"))
    assert lines == ["blue: 2 rows a step in place of 1.33, a whole number being needed"]


def test_folders_have_plain_and_different_names():
    assert folder_names(["a b", "a:b", "A-B", ".x", "été"]) == ["a-b", "a-b-2", "A-B-3", "x", "été"]


# ---- the command line -----------------------------------------------------------------------------------------------


def test_the_command_trains_groups_and_goes_on(base, tmp_path, monkeypatch):
    file = run_file(tmp_path, base, TASKS, grouping=TWO, training={"rows": 6})
    result = cli("train", file)
    assert result.exit_code == 0, result.stderr
    assert all(name in result.stdout for name in TASKS)
    assert f"bank: {tmp_path / 'out' / 'groups' / 'blue' / 'bank'}" in result.stderr
    before = content(tmp_path / "out" / "groups")
    again = cli("train", file)
    assert again.exit_code == 0, again.stderr
    assert again.stderr.count("has ended before") == 2
    assert again.stdout == result.stdout
    assert content(tmp_path / "out" / "groups") == before


def test_a_group_that_was_stopped_goes_on(base, tmp_path, monkeypatch):
    config = config_of(tmp_path, base, TASKS, grouping=TWO, training={"rows": 6})
    with monkeypatch.context() as patch:
        real = train_resolved

        def stopped(part, log):
            if part.output.name == "blue":
                raise KeyboardInterrupt
            return real(part, log=log)

        patch.setattr("colora.transfer.grouping.train_resolved", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_groups(config)
    lines = []
    train_groups(config, log=lines.append)
    assert sum("has ended before" in line for line in lines) == 1
    assert (tmp_path / "out" / "groups" / "blue" / "bank").is_dir()


def test_check_lists_the_groups(base, tmp_path):
    (note,) = check_run(config_of(tmp_path, base, grouping="auto")).notes
    assert note.startswith("grouping: 2 forward and backward passes")
    (note,) = check_run(config_of(tmp_path, base, grouping=[["red"], ["blue"]])).notes
    assert note.startswith("grouping: 2 banks")


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grouping",
    ["always", [], [[]], ["red", "blue"], [["red"], [3]], 3, None],
)
def test_unknown_values_of_grouping_are_refused(base, tmp_path, grouping):
    path = run_file(tmp_path, base)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"grouping": grouping}))
    with pytest.raises(ConfigError, match="grouping: expected 'none', 'auto' or a list of lists of task names"):
        load_config(path)


def test_groups_that_are_not_the_tasks_are_refused(base, tmp_path):
    config = config_of(tmp_path, base, grouping=[["red", "bleu"], ["red"]])
    before = content(tmp_path)
    for attempt in (train_groups, check_run):
        with pytest.raises(ConfigError) as caught:
            attempt(config)
        assert caught.value.faults == [
            "bleu: no task of this run; did you mean 'blue'?",
            "red: in 2 places",
            "blue: in no group",
        ]
    assert content(tmp_path) == before


def test_another_run_in_the_folder_is_refused(ended, base):
    file, _, _ = ended
    config = load_config(file)
    for changed in ({"grouping": [["red"], ["blue", "green"]]}, {"seed": 5}):
        with pytest.raises(ConfigError, match="holds another run"):
            train_groups(config.model_copy(update=changed))
    with pytest.raises(ConfigError, match="grouping: it has"):
        train(config.model_copy(update={"grouping": "none"}))


def test_one_bank_is_not_trained_in_place_of_several(base, tmp_path):
    with pytest.raises(ConfigError, match="this trains one bank"):
        train(config_of(tmp_path, base, grouping="auto"))
    assert not (tmp_path / "out").exists()


def test_federations_and_several_processes_are_refused(base, tmp_path, monkeypatch):
    path = run_file(tmp_path, base, grouping="auto")
    for attempt in (lambda: load_federation(path), lambda: simulate(load_config(path))):
        with pytest.raises(ConfigError, match="a federation trains one bank"):
            attempt()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "expected one process" in refusal("train", path)
    assert not (tmp_path / "out").exists()


def test_a_command_for_one_bank_names_the_groups(ended):
    run = ended[0].parent / "out"
    for command in (["evaluate", run], ["tasks", run], ["generate", run, "--task", "red", "x"]):
        message = refusal(*command)
        assert "a run in groups" in message
        assert all(f"groups/{name}" in message.replace("\n", "") for name in ("blue", "red"))


def test_a_damaged_file_of_groups_is_refused(ended, tmp_path):
    file, _, _ = ended
    config = load_config(file)
    (Path(config.output) / "grouping.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        train_groups(config)
    os.remove(Path(config.output) / "grouping.json")
    assert train_groups(config).groups == {"red": ["red", "green"], "blue": ["blue"]}
    with pytest.raises(BankFileError):
        find_bank(config.output)  # the banks are in the groups' folders
