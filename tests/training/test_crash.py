"""Runs that are killed, interrupted, or out of disk: what is left is whole, and leads to the very same bank."""

import json
import random
import shutil
import signal

import pytest
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from tests.helpers.train_tiny import EachStep, Server, make_trainer

SETTINGS = {"steps": 8, "rows": 3, "save_steps": 3, "save_total_limit": 2, "dropout": 0.2}


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert server.run(folder, **SETTINGS)["exit"] == 0
    return folder


def final_bank(folder):
    return (folder / "checkpoint-8" / "adapter_model.safetensors").read_bytes()


def files(checkpoint):
    return sorted(path.name for path in checkpoint.iterdir())


def check_what_is_left(folder, whole):
    """Whatever a resuming run would take for the last checkpoint has every file."""
    last = get_last_checkpoint(folder)
    if last is not None:
        assert files(folder / last) == files(whole / "checkpoint-8")
        assert load_file(folder / last / "adapter_model.safetensors")
    return last


def test_two_undisturbed_runs_are_equal_and_the_seed_of_dropout_matters(server, whole, tmp_path):
    """Else the tests below would prove nothing."""
    assert server.run(tmp_path / "again", **SETTINGS)["exit"] == 0
    assert final_bank(tmp_path / "again") == final_bank(whole)
    assert server.run(tmp_path / "other", **{**SETTINGS, "dropout": 0.25})["exit"] == 0
    assert final_bank(tmp_path / "other") != final_bank(whole)


def test_a_run_killed_at_random_moments_and_restarted_gives_the_same_bank(server, whole, tmp_path):
    rng = random.Random(0)
    kills = 0
    for _ in range(40):
        # in every life a little later than in the one before, so that it ends
        moment = f"step {rng.randrange(2, 4)}" if kills % 3 == 2 else rng.uniform(0.05, 0.3 + 0.1 * kills)
        answer = server.run(tmp_path / "run", pause=0.02, signals=[["SIGKILL", moment]], **SETTINGS)
        check_what_is_left(tmp_path / "run", whole)
        if answer["exit"] == 0:
            break
        assert answer["exit"] == -9, answer["stderr"]
        kills += 1
    assert answer["exit"] == 0
    assert kills >= 3
    assert final_bank(tmp_path / "run") == final_bank(whole)


def test_a_run_killed_while_it_writes_leaves_whole_checkpoints_only(server, whole, tmp_path):
    total = server.run(tmp_path / "count", count_writes=True, **SETTINGS)["writes"]
    assert total > 50  # three checkpoints with files, folders, renames and removals
    rng = random.Random(7)
    seen = set()
    for number, moment in enumerate(sorted(rng.sample(range(1, total + 1), 7))):
        folder = tmp_path / str(number)
        assert server.run(folder, die_at_write=moment, **SETTINGS)["exit"] == -9
        debris = [path.name for path in folder.iterdir() if path.name.startswith(".writing-")]
        last = check_what_is_left(folder, whole)
        seen.add((bool(debris), last is not None))
        assert server.run(folder, **SETTINGS)["exit"] == 0
        assert final_bank(folder) == final_bank(whole)
        assert not [name for name in debris if last is None and (folder / name).exists()]
    assert (True, True) in seen  # killed while writing a second or later checkpoint
    assert get_last_checkpoint(tmp_path / "0") == str(tmp_path / "0" / "checkpoint-8")


def test_a_run_with_its_cores_in_a_store_that_is_killed_while_it_writes_gives_the_same_bank(server, tmp_path):
    settings = SETTINGS | {"room": 3, "names": ("ab", "cde", "f", "gh", "i", "jkl", "m"), "save_steps": 2}
    total = server.run(tmp_path / "whole", count_writes=True, **settings)["writes"]
    expected = (tmp_path / "whole" / "whole.safetensors").read_bytes()
    for number, moment in enumerate(sorted(random.Random(3).sample(range(1, total + 1), 8))):
        folder = tmp_path / str(number)
        assert server.run(folder, die_at_write=moment, **settings)["exit"] == -9
        answer = server.run(folder, **settings)
        assert answer["exit"] == 0, answer["stderr"]
        assert (folder / "whole.safetensors").read_bytes() == expected
        notes = [json.loads(path.read_text())["files"] for path in folder.glob("checkpoint-*/cores.json")]
        assert {path.name for path in (folder / "cores").glob("[!.]*")} == {name for note in notes for name in note}


def test_a_folder_that_was_being_written_is_never_taken_for_a_checkpoint(whole, tmp_path):
    shutil.copytree(whole / "checkpoint-6", tmp_path / "checkpoint-6")
    shutil.copytree(whole / "checkpoint-8", tmp_path / ".writing-checkpoint-8" / "checkpoint-8")
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    trainer = make_trainer(tmp_path, **SETTINGS)
    trainer.train(resume_from_checkpoint=True)
    assert final_bank(tmp_path) == final_bank(whole)
    assert not (tmp_path / ".writing-checkpoint-8").exists()


def test_a_full_disk_while_saving_is_told_and_leaves_the_older_checkpoint_whole(server, whole, tmp_path):
    settings = {**SETTINGS, "save_total_limit": None}
    size = (whole / "checkpoint-8" / "optimizer.safetensors").stat().st_size
    answer = server.run(tmp_path, file_limit=size // 2, **settings)
    assert answer["exit"] == 0
    assert (answer["error"], answer["step"]) == ("CheckpointError", 6)
    assert f"could not write {tmp_path / 'checkpoint-6'}: " in answer["message"]
    assert "Nothing that was saved before has changed; free some space" in answer["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "stderr.txt"]
    assert check_what_is_left(tmp_path, whole)
    assert server.run(tmp_path, **settings)["exit"] == 0  # the same command again
    assert final_bank(tmp_path) == final_bank(whole)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_saves_a_checkpoint_after_the_step_and_stops(server, whole, tmp_path, name):
    answer = server.run(tmp_path, pause=0.1, signals=[[name, "step 4"]], **SETTINGS)
    assert answer["exit"] == 0, answer["stderr"]
    assert "error" not in answer
    assert answer["interrupted"] is True
    assert answer["step"] in (4, 5)
    assert get_last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{answer['step']}")
    assert "interrupted: saving a checkpoint after this step" in answer["stderr"]
    again = server.run(tmp_path, **SETTINGS)
    assert (again["exit"], again["step"], again["interrupted"]) == (0, 8, False)
    assert final_bank(tmp_path) == final_bank(whole)


def test_a_second_interrupt_ends_at_once(server, tmp_path):
    answer = server.run(tmp_path, pause=1.0, signals=[["SIGINT", "step 2"], ["SIGINT", 0.3]], **SETTINGS)
    assert answer["error"] == "KeyboardInterrupt"
    assert answer["step"] == 1
    assert get_last_checkpoint(tmp_path) is None


def test_training_gives_the_signal_handlers_back_however_it_ends(tmp_path):
    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def fail(step):
        during.append(handlers())
        if step == 2:
            raise RuntimeError("as a user's callback may")

    before, during = handlers(), []
    trainer = make_trainer(tmp_path, steps=2, callbacks=[EachStep(before=fail)])
    with pytest.raises(RuntimeError, match="user's callback"):
        trainer.train()
    assert len(during) == 2
    assert not set(during[0]) & set(before)
    assert handlers() == before
    assert not trainer.interrupt.interrupted
