"""Two processes train the same bank as one: gloo on the CPU, both on this machine (`train_tiny.py ddp`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers.trainer_utils import get_last_checkpoint

from tests.helpers.import_graph import ROOT
from tests.helpers.train_tiny import DDP, EachStep, bank_tensors, equal, make_trainer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of the runs of two processes, started as torchrun does."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1",
        "-m", "tests.helpers.train_tiny", "ddp", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "stderr.txt").open("w") as errors:
        launcher = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, cwd=ROOT)
        try:
            code = launcher.wait(timeout=100)
        finally:
            launcher.terminate()  # it ends its two processes, also after a time-out
            launcher.wait(timeout=60)
    assert code == 0, (folder / "stderr.txt").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One process with the same rows in each step."""
    ids = []
    folder = tmp_path_factory.mktemp("single")
    trainer = make_trainer(folder, **DDP, eval_steps=3)
    collate = trainer.data_collator
    trainer.data_collator = lambda items: ids.append([item["task_ids"] for item in items]) or collate(items)
    trainer.train()
    return trainer, ids


def records(folder, name):
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def banks(folder, name):
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1)]


def test_two_processes_train_the_same_bank_as_one(pair, single):
    assert [record["world"] for record in records(pair, "whole")] == [2, 2]
    ours, others = banks(pair, "whole")
    assert equal(ours, others)
    fresh = bank_tensors(make_trainer(pair / "fresh", **DDP))
    for name, value in bank_tensors(single[0]).items():
        assert (value - fresh[name]).abs().max() > 1e-3
        assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


def test_batches_hold_tasks_that_only_one_of_the_two_processes_sees(single):
    """The rows of a step are spread as first and second half."""
    steps = [ids for ids in single[1] if len(ids) == 4]
    assert any(set(ids[:2]) - set(ids[2:]) and set(ids[2:]) - set(ids[:2]) for ids in steps)


def test_losses_logged_by_two_processes_are_those_of_one(pair, single):
    for record in records(pair, "whole"):
        for key in ("loss", "loss/ab", "loss/cde", "loss/f", "eval_loss", "eval_loss/cde"):
            theirs = [entry[key] for entry in single[0].state.log_history if key in entry]
            assert theirs
            ours = [entry[key] for entry in record["log"] if key in entry]
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_two_processes_write_one_whole_checkpoint_and_resume_from_it_bit_for_bit(pair, single):
    names = sorted(path.name for path in (pair / "whole").iterdir())
    assert names == ["checkpoint-3", "checkpoint-6"]
    folder = Path(single[0].args.output_dir)
    of_one = {path.name for path in (folder / "checkpoint-3").iterdir()}
    of_two = {path.name for path in (pair / "whole" / "checkpoint-3").iterdir()}
    assert of_two - of_one == {"random_1.json", "random_1.safetensors"}
    assert not of_one - of_two
    for resumed, whole in zip(banks(pair, "resumed"), banks(pair, "whole"), strict=True):
        assert equal(resumed, whole)


def test_one_process_goes_on_from_a_checkpoint_of_two(pair, single, tmp_path):
    trainer = make_trainer(tmp_path, **DDP, eval_steps=3)
    steps = []
    trainer.add_callback(EachStep(after=steps.append))
    trainer.train(resume_from_checkpoint=str(pair / "whole" / "checkpoint-3"))
    assert steps == [4, 5, 6]
    for name, value in bank_tensors(single[0]).items():
        assert_close(bank_tensors(trainer)[name], value, rtol=1e-3, atol=1e-5)


def test_two_processes_with_their_cores_in_a_store_train_the_bank_of_two_with_all_on_the_device(pair):
    ours, others = banks(pair, "stored")
    assert equal(ours, others)
    for name, value in banks(pair, "on the device")[0].items():
        assert torch.equal(ours[name], value), name
    assert (pair / "stored" / "checkpoint-3" / "cores.json").is_file()


def test_an_interrupt_that_reaches_one_process_stops_both_after_the_same_step(pair):
    found = records(pair, "interrupted")
    assert [record["step"] for record in found] == [2, 2]
    assert [record["interrupted"] for record in found] == [True, True]
    assert get_last_checkpoint(pair / "interrupted") == str(pair / "interrupted" / "checkpoint-2")
    assert equal(*banks(pair, "interrupted"))
