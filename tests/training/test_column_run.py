"""Runs whose tasks a column of one table names: what they give is what the same tasks give in files of their own."""

import json
import re
import shutil
from pathlib import Path

import pytest

from colora.adapter.stored.access import stored_cores
from colora.bank.tensors import SavedBank
from colora.common.locks import file_lock
from colora.errors import ConfigError
from colora.models.base import load_base
from colora.training import resolve
from colora.training.check import check_run
from colora.training.config_file import load_config
from colora.training.measure import evaluate_bank
from colora.training.resolve import resolve_run
from colora.training.run import train, train_and_evaluate, trained
from colora.training.starts import in_store
from tests.helpers.column_files import shuffled_rows, write_apart, write_rows
from tests.helpers.run_files import cli, config_of, refusal, run_file, save_base
from tests.helpers.train_tiny import equal, whole_bank

ROWS = shuffled_rows()
SETTINGS = {"rows": 4, "steps": 6, "save_every": 3, "eval_every": 3, "patience": 1, "mixing": "proportional"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def column_config(folder, base, rows=None, source=None, **changes):
    """The config of a run of one table."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "all.jsonl", ROWS if rows is None else rows)
    table = {"path": "all.jsonl", "task": "user_id"} | (source or {})
    changes = {"training": SETTINGS, "tasks_from": table} | changes
    return config_of(folder, base, (), **changes)


@pytest.fixture(scope="module")
def apart(base, tmp_path_factory):
    """A run of the tasks in files of their own, and what was measured."""
    folder = tmp_path_factory.mktemp("apart")
    tasks = [{"path": f"{name}.jsonl"} for name in write_apart(folder, ROWS)]
    result, evaluation = train_and_evaluate(config_of(folder, base, tasks, training=SETTINGS))
    return result, evaluation


def test_a_run_of_a_column_gives_the_bank_and_the_records_of_files_of_their_own_to_the_bit(base, apart, tmp_path):
    result, evaluation = train_and_evaluate(column_config(tmp_path / "column", base))
    ours, theirs = result.bank, apart[0].bank
    assert (ours / "adapter_model.safetensors").read_bytes() == (theirs / "adapter_model.safetensors").read_bytes()
    assert json.loads((ours / "bank.json").read_text()) == json.loads((theirs / "bank.json").read_text())
    values = [{(one.task, one.metric): one.value for one in some.records} for some in (evaluation, apart[1])]
    assert values[0] == values[1]
    assert len(values[0]) > 20


def test_a_run_of_a_column_that_was_stopped_goes_on_and_is_measured_again(base, apart, tmp_path):
    config = column_config(tmp_path / "column", base)
    train_and_evaluate(config)
    for gone in ("bank", "checkpoints/checkpoint-6"):
        shutil.rmtree(result_folder(config) / gone)
    result, _ = train_and_evaluate(config)
    name = "adapter_model.safetensors"
    assert (result.bank / name).read_bytes() == (apart[0].bank / name).read_bytes()
    assert evaluate_bank(result.bank, progress=False).records


def result_folder(config):
    return Path(config.output)


def test_a_run_whose_table_has_changed_is_refused(base, tmp_path):
    config = column_config(tmp_path / "column", base)
    train_and_evaluate(config)
    with pytest.raises(ConfigError, match=r"tasks_from.*examples then"):
        train_and_evaluate(column_config(tmp_path / "column", base, ROWS[:-1]))


def small(monkeypatch):
    """As if these tasks were very many."""
    monkeypatch.setattr(resolve, "ON_DEVICE", 8)
    monkeypatch.setattr(in_store, "ON_DEVICE", 8)


def test_a_bank_of_very_many_tasks_begins_small_and_no_stack_of_all_is_made(base, tmp_path, monkeypatch):
    small(monkeypatch)
    config = column_config(tmp_path / "column", base, training=SETTINGS | {"cores": "disk"})
    run, (model, tokenizer) = resolve_run(config), load_base(base)
    assert run.begins_in_store
    assert run.adapter.tasks == [run.names[0]]
    trainer, _ = trained(run, model, tokenizer)
    stored = stored_cores(trainer.model)
    assert len(stored) == 50
    assert {stack.shape[0] for stack in stored.stacks.values()} == {16}  # rows of an evaluation batch, the larger
    assert int(stored.table.written(range(50)).sum()) < 40  # the others were never trained


def test_a_run_that_begins_small_goes_on_from_its_checkpoint_to_the_bit(base, tmp_path, monkeypatch):
    small(monkeypatch)
    settings = SETTINGS | {"cores": "memory"}
    config = column_config(tmp_path / "column", base, training=settings)
    whole, _ = trained(resolve_run(config), *load_base(base))
    expected = whole_bank(whole)
    shutil.rmtree(result_folder(config) / "checkpoints" / "checkpoint-6")
    again, _ = trained(resolve_run(config), *load_base(base))
    assert again.state.global_step == 6
    assert equal(whole_bank(again), expected)


@pytest.mark.parametrize("in_rows", [True, False])
def test_very_many_tasks_start_from_a_bank_as_few_do(base, tmp_path, monkeypatch, in_rows):
    """Its tasks from their cores, new ones from the mean core; no stack of all is made, and a crash changes nothing."""
    some = [row for row in ROWS if int(row["user_id"].split()[1]) % 2]
    cores = {"cores": "memory" if in_rows else "device"}
    first = train(column_config(tmp_path / "first", base, some, training=SETTINGS | cores)).bank
    assert (SavedBank(first).rows is not None) == in_rows
    rates = {"lr": 1e-3, "core_lr": 1e-2, "cores": "memory"}
    few = trained(resolve_run(column_config(tmp_path / "few", base, start_from=str(first), training=SETTINGS | rates)),
                  *load_base(base))[0]  # fmt: skip
    small(monkeypatch)
    config = column_config(tmp_path / "many", base, start_from=str(first), training=SETTINGS | rates)
    run = resolve_run(config)
    assert run.begins_in_store
    many = trained(run, *load_base(base))[0]
    assert {stack.shape[0] for stack in stored_cores(many.model).stacks.values()} == {16}
    assert equal(whole_bank(many), whole_bank(few))
    shutil.rmtree(result_folder(config) / "checkpoints" / "checkpoint-6")
    again = trained(resolve_run(config), *load_base(base))[0]
    assert equal(whole_bank(again), whole_bank(few))
    assert train(config).steps == train(config).steps == 6  # written, and no more to train


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training": SETTINGS | {"cores": "device"}}, "training.cores: device"),
        ({"adapter": {"init_weights": "spectral"}}, "adapter.init_weights"),
    ],
)
def test_what_needs_all_cores_on_the_device_is_refused_for_very_many_tasks(base, tmp_path, monkeypatch, change, named):
    small(monkeypatch)
    with pytest.raises(ConfigError, match=f"{named} needs all cores on the device.*50 tasks, more than 8"):
        resolve_run(column_config(tmp_path / "column", base, **change))


def test_a_sample_of_the_tasks_is_measured_and_the_records_say_so(base, tmp_path):
    config = column_config(tmp_path / "column", base, evaluation={"tasks": 5})
    _, evaluation = train_and_evaluate(config)
    assert len({one.task for one in evaluation.records}) == 5
    assert {one.method for one in evaluation.records} == {"colora, 5 tasks"}
    again = evaluate_bank(config.output, progress=False)
    assert {one.task for one in again.records} == {one.task for one in evaluation.records}


def test_check_tells_what_a_run_of_a_column_would_do_and_writes_nothing_there(base, tmp_path):
    plan = check_run(column_config(tmp_path / "column", base))
    (report,) = plan.reports
    assert report.examples <= 24  # six steps of four rows
    assert len(plan.examples) == 3
    assert any("50 tasks of user_id" in note for note in plan.notes)
    assert not (tmp_path / "column" / "out").exists()
    told = cli("check", tmp_path / "column" / "run.yaml").stdout
    assert "50 tasks of user_id" in " ".join(told.split())


def test_an_example_that_is_too_long_is_told_with_its_line_before_anything_is_trained(base, tmp_path):
    long = [row | {"output": "x" * 200} if number == 7 else row for number, row in enumerate(ROWS)]
    column_config(tmp_path / "column", base, long, training=SETTINGS | {"steps": 300})
    told = refusal("train", tmp_path / "column" / "run.yaml")
    assert "all.jsonl:8: expected at most 96 tokens" in told
    assert not (tmp_path / "column" / "out").exists()


TABLE = {"path": "all.jsonl", "task": "user_id"}


@pytest.mark.parametrize(
    ("tasks", "change", "told"),
    [
        (["red"], {"tasks_from": TABLE}, "expected either tasks or tasks_from, found both"),
        ([], {}, "expected either tasks or tasks_from, found neither"),
        ([], {"tasks_from": TABLE, "grouping": "auto"}, "grouping needs tasks and not tasks_from"),
        ([], {"tasks_from": TABLE, "shared_splits": True}, "shared_splits needs tasks and not tasks_from"),
        ([], {"tasks_from": {"task": "user_id"}}, "tasks_from: .*exactly one of 'path' and 'dataset'"),
        ([], {"tasks_from": TABLE | {"user": "x"}}, "tasks_from.user: no such field"),
    ],
)
def test_a_run_file_that_contradicts_itself_is_refused(base, tmp_path, tasks, change, told):
    with pytest.raises(ConfigError) as caught:
        load_config(run_file(tmp_path, base, tasks, **change))
    assert re.search(told, str(caught.value)), str(caught.value)


def test_commands_that_hold_all_tasks_in_memory_refuse_very_many(base, tmp_path, monkeypatch):
    small(monkeypatch)
    column_config(tmp_path / "column", base)
    for command in ("similarity", "compare"):
        assert "needs all examples in memory" in refusal(command, tmp_path / "column" / "run.yaml")


def test_two_processes_do_not_train_one_run_at_the_same_time(base, tmp_path):
    config = column_config(tmp_path / "column", base)
    with file_lock(tmp_path / "column" / ".out.training"), pytest.raises(ConfigError, match="another process"):
        train_and_evaluate(config)
