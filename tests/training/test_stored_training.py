"""`CoLoRATrainer` with the cores in a store: the same bank to the bit, and checkpoints that cost what changed."""

import errno
import json
import os
import shutil

import pytest
import safetensors.numpy
import torch

from colora.bank.tensors import SavedBank
from colora.errors import CheckpointError, ConfigError, TrainingDivergedError
from colora.training.loop import core_files
from colora.training.place_cores import place_cores
from colora.training.run import train_and_evaluate
from tests.helpers.run_files import config_of, save_base
from tests.helpers.train_tiny import EachStep, equal, make_trainer, whole_bank

SEVEN = ("ab", "cde", "f", "gh", "i", "jkl", "m")
COMMON = {"names": SEVEN, "rows": 4, "eval_steps": 4, "steps": 12}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 2},
        {"schedule": "alternating", "turn": 2, "init_weights": False},
        {"patience": 1, "unlike": ("cde", "m"), "steps": 20},
        {"weighting": "token", "core_weight_decay": 0.1},
        {"bf16": True},
        {"max_grad_norm": 0.0},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_a_run_gives_the_bank_that_it_gives_with_all_cores_on_the_model(tmp_path, settings):
    whole = make_trainer(tmp_path / "whole", **COMMON | settings)
    whole.train()
    ours = make_trainer(tmp_path / "ours", room=4, cores_folder=tmp_path, **COMMON | settings)
    ours.train()
    assert equal(whole_bank(whole), whole_bank(ours))
    keys = [key for key in whole.state.log_history[0] if key.startswith(("loss", "eval_loss", "grad_norm"))]
    for mine, theirs in zip(whole.state.log_history, ours.state.log_history, strict=True):
        assert {key: mine.get(key) for key in keys} == {key: theirs.get(key) for key in keys}


@pytest.mark.parametrize("step", [4, 8])
def test_a_run_resumed_from_a_checkpoint_equals_one_without_a_break(tmp_path, step):
    settings = COMMON | {"room": 16, "dropout": 0.3}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert equal(whole_bank(whole), whole_bank(resumed))


def rows_of(trainer, checkpoint):
    """Rows in each file that makes up a checkpoint."""
    names = json.loads((checkpoint / "cores.json").read_text())["files"]
    return [len(safetensors.numpy.load_file(trainer.core_files.folder / name)["tasks"]) for name in names]


def test_a_checkpoint_writes_the_tasks_that_were_trained_since_the_last(tmp_path):
    names = tuple(f"task-{number}" for number in range(40))
    trainer = make_trainer(tmp_path, names=names, rows=4, steps=6, save_steps=2, room=4, val=0)
    seen = [set(), set(), set()]
    collate = trainer.data_collator
    trainer.data_collator = lambda items: drawn.append({item["task_ids"] for item in items}) or collate(items)
    drawn = []
    trainer.train()
    for number, tasks in enumerate(drawn):
        seen[number // 2] |= tasks
    assert rows_of(trainer, tmp_path / "checkpoint-2") == [40]  # the first has all that there are
    assert rows_of(trainer, tmp_path / "checkpoint-6") == [40, len(seen[1]), len(seen[2])]
    assert max(len(tasks) for tasks in seen) < 9


def test_files_that_no_checkpoint_needs_go_once_all_rows_are_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(core_files, "SPARE_ROWS", 0)
    trainer = make_trainer(tmp_path, **COMMON | {"room": 4, "steps": 40, "save_steps": 2, "save_total_limit": 2})
    trainer.train()
    rows = rows_of(trainer, tmp_path / "checkpoint-40")
    assert sum(rows) <= 2 * len(SEVEN)
    kept = {path.name for path in trainer.core_files.folder.iterdir()}
    named = {
        name
        for checkpoint in tmp_path.glob("checkpoint-*")
        for name in json.loads((checkpoint / "cores.json").read_text())["files"]
    }
    assert kept == named
    resumed = make_trainer(tmp_path, **COMMON | {"room": 4, "steps": 40, "save_steps": 2, "save_total_limit": 2})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-38"))
    assert equal(whole_bank(trainer), whole_bank(resumed))


def test_a_checkpoint_with_a_damaged_or_missing_file_is_refused_by_name(tmp_path):
    trainer = make_trainer(tmp_path, **COMMON, room=4)
    trainer.train()
    file = sorted(trainer.core_files.folder.iterdir())[0]
    content = file.read_bytes()
    for damage in (lambda: file.write_bytes(content[:100]), file.unlink):
        damage()
        with pytest.raises(CheckpointError, match=file.name):
            make_trainer(tmp_path, **COMMON, room=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def test_a_checkpoint_of_other_tasks_or_of_these_in_another_order_is_refused(tmp_path):
    make_trainer(tmp_path, **COMMON, room=4).train()
    for names in (SEVEN[::-1], (*SEVEN, "n")):
        trainer = make_trainer(tmp_path, **COMMON | {"names": names}, room=4)
        with pytest.raises(CheckpointError, match="of other tasks"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_a_checkpoint_of_another_run_is_taken_with_its_own_cores(tmp_path):
    whole = make_trainer(tmp_path / "one", **COMMON, room=4)
    whole.train()
    make_trainer(tmp_path / "other", **COMMON | {"lr": 5e-2}, room=4).train()
    resumed = make_trainer(tmp_path / "other", **COMMON, room=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-4"))
    assert equal(whole_bank(whole), whole_bank(resumed))
    shutil.rmtree(tmp_path / "one")
    again = make_trainer(tmp_path / "other", **COMMON, room=4)
    again.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-8"))
    assert equal(whole_bank(whole), whole_bank(again))


def test_one_trainer_goes_back_to_an_earlier_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, **COMMON, room=4)
    trainer.train()
    expected = whole_bank(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert equal(whole_bank(trainer), expected)


def test_a_new_run_in_the_same_folder_leaves_the_files_of_an_older_checkpoint(tmp_path):
    first = make_trainer(tmp_path, **COMMON, room=4)
    first.train()
    make_trainer(tmp_path, **COMMON | {"lr": 5e-2, "steps": 5, "save_steps": 5}, room=4).train()
    resumed = make_trainer(tmp_path, **COMMON, room=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert equal(whole_bank(first), whole_bank(resumed))


def test_a_core_that_is_no_number_is_no_checkpoint(tmp_path):
    def spoil(step):
        if step == 2:
            trainer.model.set_core("m", {key: one * torch.nan for key, one in good.items()})

    trainer = make_trainer(tmp_path, **COMMON | {"max_grad_norm": 0.0}, room=4, callbacks=[EachStep(after=spoil)])
    good = trainer.model.core("m")
    trainer.stored.set_core(6, good)
    import colora.adapter.tasklist as tasklist

    check, tasklist._check_core = tasklist._check_core, lambda *args: None
    try:
        with pytest.raises(TrainingDivergedError, match="NaN or infinite"):
            trainer.train()
    finally:
        tasklist._check_core = check
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path):
    make_trainer(tmp_path / "whole", **COMMON).train()
    make_trainer(tmp_path / "ours", **COMMON, room=4).train()
    with pytest.raises(CheckpointError, match="in a store"):
        make_trainer(tmp_path / "x", **COMMON).train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-8"))
    with pytest.raises(CheckpointError, match="shared"):
        make_trainer(tmp_path / "y", **COMMON, room=4).train(
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8")
        )


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, **COMMON, room=4)

    def full(path, content):
        if trainer.state.global_step > 4:
            raise CheckpointError(f"{path}: no space left on device")
        return write_bytes(path, content)

    write_bytes = core_files.write_bytes
    monkeypatch.setattr(core_files, "write_bytes", full)
    with pytest.raises(CheckpointError, match="no space left"):
        trainer.train()
    monkeypatch.undo()
    whole = make_trainer(tmp_path / "whole", **COMMON)
    whole.train()
    resumed = make_trainer(tmp_path, **COMMON, room=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert equal(whole_bank(whole), whole_bank(resumed))


def test_two_trainers_of_one_model_cannot_take_turns(tmp_path):
    first = make_trainer(tmp_path / "one", **COMMON | {"steps": 4}, room=4)
    first.train()
    second = make_trainer(tmp_path / "two", **COMMON | {"steps": 4}, room=4, model=first.model)
    second.train()
    with pytest.raises(ConfigError, match="has moments of these cores from before"):
        first.train()


def test_a_disk_that_fills_while_cores_are_written_back_is_told_and_leaves_the_checkpoint_before(tmp_path):
    def full(step):
        if step == 5:
            rows = trainer.stored.table._shelves[0].rows
            rows.file = Full(rows.file)

    settings = COMMON | {"room": 4, "cores_folder": tmp_path, "steps": 8}
    trainer = make_trainer(tmp_path / "run", **settings, callbacks=[EachStep(before=full)])
    with pytest.raises(CheckpointError, match=r"cores cannot be written there: .*No space left"):
        trainer.train()
    resumed = make_trainer(tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    assert equal(whole_bank(resumed), whole_bank(whole))


class Full:
    """A file on a disk that has just become full."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_torn_store_is_told(tmp_path):
    def tear(step):
        if step == 5:
            os.ftruncate(trainer.stored.table.file_descriptor, 100)

    trainer = make_trainer(tmp_path / "run", **COMMON, room=4, cores_folder=tmp_path, callbacks=[EachStep(before=tear)])
    with pytest.raises(CheckpointError, match="the file of cores there is cut short at row"):
        trainer.train()


def test_a_checkpoint_of_a_bank_of_another_rank_is_refused_by_name(tmp_path):
    make_trainer(tmp_path, **COMMON, room=4).train()
    other = make_trainer(tmp_path / "x", **COMMON, room=4, rank=2)
    with pytest.raises(CheckpointError, match=r"checkpoint-8 is of another model: .*colora_A.* has the shape"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


# ---- run files -------------------------------------------------------------------------------------------------------

COLOURS = ("red", "blue", "green", "grey", "pink")
FEW = {"training": {"rows": 2, "steps": 8, "save_every": 4}, "evaluation": {"rows": 2}}


def values_of(bank):
    """All numbers of a saved bank, whatever its form."""
    saved = SavedBank(bank)
    shared = {(layer, part): getattr(found, part) for layer, found in saved.layers.items() for part in "AB"}
    cores = {(layer, name): one for number, name in enumerate(saved.tasks) for layer, one in saved.core(number).items()}
    return shared | cores


def tensor_files(bank):
    return {path.name: path.read_bytes() for path in bank.rglob("*.safetensors")}


@pytest.mark.parametrize("cores", ["memory", "disk"])
def test_a_run_file_says_where_the_cores_are_and_the_bank_and_what_is_measured_are_the_same(tmp_path, cores):
    base, found = save_base(tmp_path / "base"), {}
    for place in ("device", cores):
        (tmp_path / place).mkdir()
        changes = FEW | {"training": FEW["training"] | {"cores": place}}
        config = config_of(tmp_path / place, base, COLOURS, **changes)
        result, evaluation = train_and_evaluate(config)
        assert (result.run.output / "checkpoints" / "checkpoint-8" / "cores.json").is_file() == (place == cores)
        assert (SavedBank(result.bank).rows is None) == (place == "device")  # a store is saved in rows
        found[place] = values_of(result.bank), evaluation.records
    assert found["device"][0].keys() == found[cores][0].keys()
    assert all(torch.equal(value, found[cores][0][name]) for name, value in found["device"][0].items())
    values = [{(one.task, one.metric): one.value for one in records} for _, records in found.values()]
    assert values[0] == values[1]


def test_a_run_that_was_stopped_goes_on_with_its_cores_in_a_store(tmp_path):
    base = save_base(tmp_path / "base")
    (tmp_path / "whole").mkdir()
    changes = FEW | {"training": FEW["training"] | {"cores": "disk"}}
    whole = train_and_evaluate(config_of(tmp_path / "whole", base, COLOURS, **changes))[0]
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    run = tmp_path / "again" / "out"
    for gone in ("bank", "checkpoints/checkpoint-8"):
        shutil.rmtree(run / gone)
    again = train_and_evaluate(config_of(tmp_path / "again", base, COLOURS, **changes))[0]
    assert tensor_files(whole.bank) == tensor_files(again.bank)
    assert again.steps == 8


@pytest.mark.parametrize("change", [{"adapter": {"init_weights": "spectral"}}, {"evaluation": {"rows": 4}}])
def test_a_run_goes_on_where_its_start_looked_at_gradients_or_evaluation_has_other_rows(tmp_path, change):
    base = save_base(tmp_path / "base")
    (tmp_path / "whole").mkdir()
    first = FEW | {"training": FEW["training"] | {"cores": "memory", "rows": 1}}
    first |= {key: value for key, value in change.items() if key == "adapter"}
    whole = train_and_evaluate(config_of(tmp_path / "whole", base, COLOURS, **first))[0]
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    run = tmp_path / "again" / "out"
    for gone in ("bank", "checkpoints/checkpoint-8"):
        shutil.rmtree(run / gone)
    again = train_and_evaluate(config_of(tmp_path / "again", base, COLOURS, **first | change))[0]
    assert tensor_files(whole.bank) == tensor_files(again.bank)


@pytest.mark.parametrize(
    ("place", "tasks", "free", "expected"),
    [
        ("auto", 7, 10**12, None),
        ("auto", 10**6, 10**12, "in memory"),
        ("auto", 10**6, 10**8, "on disk"),
        ("memory", 7, 1, "in memory"),
        ("device", 10**6, 1, None),
    ],
)
def test_where_the_cores_go_is_chosen_by_how_many_there_are_and_what_memory_is_free(
    tmp_path, monkeypatch, place, tasks, free, expected
):
    trainer = make_trainer(tmp_path, **COMMON)
    config = config_of(tmp_path, "nowhere", training={"cores": place})
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": free}))
    lines = []
    place_cores(trainer.model, config, tasks, lines.append)
    assert [line.partition("kept ")[2].partition(",")[0] for line in lines] == ([] if expected is None else [expected])
