"""What goes wrong in training, and what the user is then told and left with."""

import json
import shutil

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from colora.common.files import staged_folder
from colora.errors import CheckpointError, TrainingDivergedError
from colora.training.loop import checkpoint
from tests.helpers.train_tiny import NAMES, EachStep, bank_tensors, equal, make_trainer, roles


def poison(trainer, at_step, task="cde"):
    """Makes one core of one task NaN before a step."""

    def before(step):
        if step == at_step:
            core = next(iter(p for n, p in trainer.model.named_parameters() if "colora_core" in n))
            core.data[NAMES.index(task)] = torch.nan

    trainer.add_callback(EachStep(before=before))


def test_a_loss_that_became_nan_names_task_step_and_the_last_good_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, save_steps=2)
    poison(trainer, at_step=7)
    with pytest.raises(TrainingDivergedError) as caught:
        trainer.train()
    last = tmp_path / "checkpoint-6"
    assert "the loss became NaN or infinite in step 7, in task cde." in str(caught.value)
    assert f"The last good checkpoint is {last};" in str(caught.value)
    assert get_last_checkpoint(tmp_path) == str(last)
    resumed = make_trainer(tmp_path, save_steps=2)
    resumed.train(resume_from_checkpoint=str(last))
    whole = make_trainer(tmp_path / "whole", save_steps=2)
    whole.train()
    assert equal(bank_tensors(resumed), bank_tensors(whole))


def test_a_divergence_before_the_first_checkpoint_says_that_there_is_none(tmp_path):
    trainer = make_trainer(tmp_path / "not there yet")
    poison(trainer, at_step=2)
    with pytest.raises(TrainingDivergedError, match="No checkpoint had been saved; try a smaller learning rate"):
        trainer.train()


def test_a_divergence_is_told_although_the_folder_holds_other_things_called_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, save_steps=2)
    poison(trainer, at_step=3)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    with pytest.raises(TrainingDivergedError, match=r"The last good checkpoint is .*checkpoint-2;"):
        trainer.train()


@pytest.mark.parametrize("clipping", [1.0, 0.0])
def test_an_absurd_learning_rate_ends_in_a_divergence_error_soon(tmp_path, clipping):
    trainer = make_trainer(tmp_path, lr=1e30, core_lr=1e30, save_steps=1, max_grad_norm=clipping)
    with pytest.raises(TrainingDivergedError, match=r"in step [2-5]"):
        trainer.train()


def test_a_gradient_that_became_infinite_stops_training_before_it_reaches_the_weights(tmp_path):
    trainer = make_trainer(tmp_path)
    core = next(iter(p for n, p in trainer.model.named_parameters() if "colora_core" in n))
    core.register_hook(lambda gradient: gradient * torch.inf if trainer.state.global_step == 4 else gradient)
    states = []
    trainer.add_callback(EachStep(after=lambda step: states.append(bank_tensors(trainer))))
    with pytest.raises(TrainingDivergedError, match="the gradient became NaN or infinite in step 5"):
        trainer.train()
    assert equal(bank_tensors(trainer), states[-1])


def test_weights_that_became_nan_are_never_saved_as_a_good_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, save_steps=1, max_grad_norm=0.0)  # so nobody looks at the gradient
    core = next(iter(p for n, p in trainer.model.named_parameters() if "colora_core" in n))
    core.register_hook(lambda gradient: gradient * torch.nan if trainer.state.global_step == 4 else gradient)
    with pytest.raises(TrainingDivergedError, match=r"the weights became NaN or infinite in step 5.*checkpoint-4;"):
        trainer.train()
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


# ---- checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, steps=4).train()
    return folder / "checkpoint-4"


def test_a_checkpoint_holds_safetensors_and_json_and_no_pickle(saved):
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    stems = {path.name for path in files}
    assert {"adapter_model.safetensors", "optimizer.safetensors", "scheduler.json", "random_0.safetensors"} <= stems
    for path in files:
        start = path.read_bytes()[:4]
        assert start[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    assert json.loads((saved / "trainer_state.json").read_text())["global_step"] == 4


@pytest.mark.parametrize("name", ["optimizer", "scheduler", "random_0"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbled"])
def test_a_damaged_file_of_a_checkpoint_is_refused_by_name(saved, tmp_path, name, damage):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(saved, folder)
    tensors, structure = folder / f"{name}.safetensors", folder / f"{name}.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[: tensors.stat().st_size // 2])
    elif damage == "missing":
        tensors.unlink()
    else:
        structure.write_text(structure.read_text()[:-10])
    trainer = make_trainer(tmp_path, steps=8)
    with pytest.raises(CheckpointError, match=rf"checkpoint-4/{name}\.json or \.safetensors cannot be read"):
        trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.state.global_step in (0, 4)  # before any further step


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "trainer_state.json", "adapter_config.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_checkpoint_without_whole_weights_or_trainer_state_is_refused_by_name(saved, tmp_path, name, damage):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(saved, folder)
    if damage == "truncated":
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    else:
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-4 cannot be loaded: "):
        make_trainer(tmp_path, steps=8).train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize("names", [("cde", "ab", "f"), ("ab", "cde", "g")])
def test_a_checkpoint_of_other_tasks_or_of_another_order_is_refused(saved, tmp_path, names):
    """The shapes fit, so nothing else would tell that every core went to another task."""
    trainer = make_trainer(tmp_path, steps=8, names=names)
    with pytest.raises(CheckpointError, match=rf"holds the tasks ab, cde, f, in .*; expected {', '.join(names)}"):
        trainer.train(resume_from_checkpoint=str(saved))


def test_a_state_is_saved_and_loaded_equal_to_the_last_bit(tmp_path):
    state = {
        0: {"step": torch.tensor(3.0), "moments": torch.randn(2, 3, dtype=torch.float64), "empty": torch.zeros(0)},
        "list": [1, 2.5, None, True, "text", {"nested": torch.arange(3)}, [torch.tensor([True, False])]],
        "odd": [0.1 + 0.2, 1e-320, float("inf"), -0.0],
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "strided": torch.randn(4, 6)[:, ::2].t(),
    }
    checkpoint.save_state(tmp_path, "all", state)
    loaded = checkpoint.load_state(tmp_path, "all")

    def check(one, other):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                check(one[key], other[key])
        elif isinstance(one, list):
            assert len(one) == len(other)
            for a, b in zip(one, other, strict=True):
                check(a, b)
        else:
            assert repr(one) == repr(other)

    check(state, loaded)


def test_a_state_with_anything_else_in_it_is_refused(tmp_path):
    with pytest.raises(TypeError, match="holds no set"):
        checkpoint.save_state(tmp_path, "odd", {"tasks": {1, 2}})


def test_a_write_that_fails_leaves_the_old_folder_and_no_debris(tmp_path):
    final = tmp_path / "checkpoint-4"
    with staged_folder(final) as folder:
        (folder / "weights").write_text("old")

    def write_on_a_full_disk():
        with staged_folder(final) as folder:
            (folder / "weights").write_text("half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space"):
        write_on_a_full_disk()
    assert (final / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    with staged_folder(final) as folder:
        (folder / "weights").write_text("new")
    assert (final / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_no_folder_is_deleted_bit_by_bit_under_the_name_of_a_checkpoint(tmp_path, monkeypatch):
    """A kill in the middle would leave half a checkpoint that looks whole."""
    deleted = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **kwargs: deleted.append(path) or remove(path, **kwargs))
    final = tmp_path / "checkpoint-4"
    for text in ("old", "new"):
        with staged_folder(final) as folder:
            (folder / "weights").write_text(text)
    assert (final / "weights").read_text() == "new"
    assert deleted
    assert not [path for path in deleted if path == final]


remove = shutil.rmtree


def test_the_cores_of_a_checkpoint_are_those_of_the_step_it_is_named_after(tmp_path):
    trainer = make_trainer(tmp_path, steps=8)
    states = {}
    trainer.add_callback(EachStep(after=lambda step: states.update({step: bank_tensors(trainer)})))
    trainer.train()
    loaded = make_trainer(tmp_path, steps=8)
    loaded._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    assert equal(bank_tensors(loaded), states[4])
    assert not equal(roles(states[4])[1], roles(states[8])[1])


def test_a_second_training_after_an_interrupted_one_is_not_cut_short(tmp_path):
    trainer = make_trainer(tmp_path, steps=6)
    interrupt = EachStep(after=lambda step: setattr(trainer.interrupt, "interrupted", True) if step == 1 else None)
    trainer.callback_handler.callbacks.insert(0, interrupt)
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.interrupt.interrupted
    trainer.callback_handler.callbacks.remove(interrupt)
    trainer.train()
    assert trainer.state.global_step == 6
    assert not trainer.interrupt.interrupted
