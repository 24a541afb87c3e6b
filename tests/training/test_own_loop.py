"""`save_training`, `load_training`: a loop of one's own goes on as if nothing had happened, and writes what changed."""

import json
import shutil

import pytest
import safetensors.numpy
import torch
from peft import get_peft_model

from colora import CoLoRAConfig, TaskAdamW, load_training, parameter_groups, save_training, store_cores, tasks_at_hand
from colora.errors import CheckpointError, ConfigError, TrainingDivergedError
from colora.training.loop import core_files
from tests.helpers.tiny import tiny_llama
from tests.helpers.train_tiny import equal

NAMES = tuple(f"task-{number}" for number in range(12))


class Loop:
    """A bank on a tiny model, trained on rows that only the step decides."""

    def __init__(self, place="memory", names=NAMES, seed=0, folder=None):
        base = tiny_llama()
        torch.manual_seed(seed)
        config = CoLoRAConfig(r=4, tasks=list(names), lora_dropout=0.2, target_modules="all-linear")
        self.model = get_peft_model(base, config).train()
        if place != "device":
            store_cores(self.model, room=3, folder=folder if place == "disk" else None)
        self.optimizer = TaskAdamW(parameter_groups(self.model, lr=1e-2, core_lr=2e-2), weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.tasks = len(names)

    def train(self, begin, end):
        for step in range(begin, end):
            ids = torch.tensor([step % self.tasks, (step * 5 + 1) % self.tasks, step % self.tasks])
            tokens = torch.randint(100, (3, 8), generator=torch.Generator().manual_seed(step))
            with tasks_at_hand(self.model, ids, self.optimizer):
                self.model(input_ids=tokens, labels=tokens, task_ids=ids).loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.scheduler.step()
        return self

    def save(self, folder, step, **options):
        return save_training(
            self.model, self.optimizer, folder, step, extra={"scheduler": self.scheduler.state_dict()}, **options
        )

    def load(self, folder):
        state = load_training(self.model, self.optimizer, folder)
        self.scheduler.load_state_dict(state.extra["scheduler"])
        return state.step

    def bank(self):
        own = {name: one.detach() for name, one in self.model.named_parameters() if one.requires_grad}
        own = {name: one.clone() for name, one in own.items() if "colora_core" not in name}
        names = list(self.model.base_model.tasks)
        return own | {f"{task} {key}": one for task in names for key, one in self.model.core(task).items()}


def rows_of(folder, step):
    """Rows in each file of cores of a checkpoint."""
    names = json.loads((folder / f"checkpoint-{step}" / "cores.json").read_text())["files"]
    return [len(safetensors.numpy.load_file(folder / "cores" / name)["tasks"]) for name in names]


@pytest.mark.parametrize("place", ["memory", "disk", "device"])
def test_a_loop_that_goes_on_from_a_checkpoint_ends_as_one_without_a_break(tmp_path, place):
    whole = Loop(place, folder=tmp_path).train(0, 5)
    whole.save(tmp_path / "x", 5)
    whole.train(5, 9)
    again = Loop(place, seed=7, folder=tmp_path)
    assert again.load(tmp_path / "x") == 5
    again.train(5, 9)
    assert equal(whole.bank(), again.bank())


def test_where_nothing_was_saved_there_is_nothing_to_load(tmp_path):
    loop = Loop()
    assert load_training(loop.model, loop.optimizer, tmp_path) is None


def test_a_checkpoint_writes_the_cores_that_were_trained_since_the_last(tmp_path):
    loop = Loop()
    for step in (2, 3, 6):
        loop.train({2: 0, 3: 2, 6: 3}[step], step)
        loop.save(tmp_path, step)
    assert rows_of(tmp_path, 3) == [12, 2]
    assert rows_of(tmp_path, 6) == [12, 2, len({3, 4, 5} | {16 % 12, 21 % 12, 26 % 12})]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6", "cores"]


def test_checkpoints_in_two_folders_are_each_whole(tmp_path):
    loop, expected = Loop(), {}
    for step, folder in ((2, "a"), (4, "b"), (6, "a"), (8, "b")):
        loop.train(step - 2, step)
        loop.save(tmp_path / folder, step)
        expected[folder] = loop.bank()
    for folder in "ab":
        other = Loop(seed=5)
        other.load(tmp_path / folder)
        assert equal(other.bank(), expected[folder])


def test_tasks_that_are_added_or_removed_between_checkpoints_are_in_the_next(tmp_path):
    loop = Loop().train(0, 3)
    loop.save(tmp_path, 3)
    loop.model.add_tasks(["new", "newer"])
    loop.model.remove_task("task-1")
    loop.tasks = 13
    loop.train(3, 6)
    loop.save(tmp_path, 6)
    other = Loop(names=[name for name in NAMES if name != "task-1"], seed=3)
    other.model.add_tasks(["new", "newer"])
    assert other.load(tmp_path) == 6
    assert equal(loop.bank(), other.bank())


def test_a_model_in_which_untrained_tasks_start_elsewhere_is_refused(tmp_path):
    loop = Loop().train(0, 3)
    loop.model.add_tasks(["new", "newer"], init="rotated")
    loop.save(tmp_path, 3)
    other = Loop(seed=3)  # which is what rotations are drawn by
    other.model.add_tasks(["new", "newer"], init="rotated")
    with pytest.raises(CheckpointError, match=r"start elsewhere in this model.*the same seed"):
        other.load(tmp_path)
    same = Loop()
    same.model.add_tasks(["new", "newer"], init="rotated")
    assert same.load(tmp_path) == 3


def test_a_loop_that_goes_back_forgets_what_tasks_have_learnt_since(tmp_path):
    loop = Loop(names=NAMES[:4]).train(0, 3)
    loop.model.add_tasks(NAMES[4:])
    loop.save(tmp_path, 3)
    before = loop.bank()
    loop.tasks = 12
    loop.train(3, 12)
    assert not equal(before, loop.bank())
    loop.load(tmp_path)
    assert equal(before, loop.bank())


def test_a_full_disk_leaves_the_checkpoints_before_and_the_next_one_is_whole(tmp_path, monkeypatch):
    loop = Loop().train(0, 2)
    loop.save(tmp_path, 2)
    before = loop.bank()
    loop.train(2, 4)

    def full(path, content):
        raise CheckpointError(f"{path}: no space left on device")

    monkeypatch.setattr(core_files, "write_bytes", full)
    with pytest.raises(CheckpointError, match="no space left"):
        loop.save(tmp_path, 4)
    monkeypatch.undo()
    other = Loop(seed=3)
    assert other.load(tmp_path) == 2
    assert equal(other.bank(), before)
    loop.train(4, 5)
    loop.save(tmp_path, 5)
    other = Loop(seed=3)
    assert other.load(tmp_path) == 5
    assert equal(other.bank(), loop.bank())


def test_a_checkpoint_that_was_cut_short_is_not_taken_for_one(tmp_path):
    loop = Loop().train(0, 2)
    loop.save(tmp_path, 2)
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / ".writing-checkpoint-4" / "checkpoint-4")
    (tmp_path / "checkpoint-9").mkdir()
    assert Loop(seed=3).load(tmp_path) == 2


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.json", "training.json", "cores.json"])
def test_a_damaged_file_is_named_and_changes_nothing(tmp_path, name):
    Loop().train(0, 2).save(tmp_path, 2)
    (tmp_path / "checkpoint-2" / name).write_bytes(b"{")
    other = Loop(seed=3)
    before = other.bank()
    with pytest.raises(CheckpointError, match=name.partition(".")[0]):
        other.load(tmp_path)
    assert equal(before, other.bank())


def test_what_does_not_fit_is_refused_before_anything_is_changed(tmp_path):
    Loop().train(0, 2).save(tmp_path, 2)
    for other, told in (
        (Loop(names=NAMES[::-1]), "of other tasks, or of the same tasks in another order"),
        (Loop("device"), "has its cores in a store"),
    ):
        before = other.bank()
        with pytest.raises(CheckpointError, match=told):
            other.load(tmp_path)
        assert equal(before, other.bank())
    with pytest.raises(ConfigError, match=r"expected a colora\.TaskAdamW, found a AdamW"):
        save_training(Loop().model, torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]), tmp_path, 3)


def test_a_weight_that_is_no_number_is_not_saved(tmp_path):
    loop = Loop().train(0, 2)
    next(one for name, one in loop.model.named_parameters() if "colora_A" in name).data[0, 0] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"colora_A.*NaN or infinite by step 2"):
        loop.save(tmp_path, 2)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_loop_writes_is_refused_until_it_is_gone_on_from(tmp_path):
    loop, other = Loop().train(0, 2), Loop(seed=3)
    loop.save(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 belongs to another training loop.*load_training"):
        other.save(tmp_path, 3)
    other.load(tmp_path)
    other.save(tmp_path, 3)
    with pytest.raises(CheckpointError, match="checkpoint-3 belongs to another training loop"):
        loop.save(tmp_path, 4)


def test_a_checkpoint_of_a_bank_of_another_rank_is_refused(tmp_path):
    Loop().train(0, 2).save(tmp_path, 2)
    config = CoLoRAConfig(r=2, tasks=list(NAMES), target_modules="all-linear")
    model = get_peft_model(tiny_llama(), config)
    store_cores(model, room=3)
    optimizer = TaskAdamW(parameter_groups(model, lr=1e-2, core_lr=2e-2))
    with pytest.raises(CheckpointError, match=r"is of another model: .*colora_A.* has the shape"):
        load_training(model, optimizer, tmp_path)
