"""A base that two processes share (FSDP2) trains the bank that one process trains: gloo on the CPU, on this machine.

The differences to one process are of rounding: 1e-5 of values about 1, after six or eight steps.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from colora.errors import ConfigError
from colora.evaluation.records import read_records
from colora.models.sharding import load_sharded
from colora.training.run import train, train_and_evaluate
from tests.helpers.launch import Launched, two_processes
from tests.helpers.run_files import bank_tensors, config_of, run_file, save_base
from tests.helpers.tiny import tiny_gpt2, tiny_llama
from tests.helpers.train_sharded import EVAL, HARD, MANY
from tests.helpers.train_tiny import DDP, equal, make_trainer, whole_bank
from tests.helpers.train_tiny import bank_tensors as tensors_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of the runs of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    save_base(folder / "base", tiny_llama())
    two_processes(folder / "log.txt", "tests.helpers.train_sharded", folder)
    return folder


def records(folder, name):
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def banks(folder, name):
    return [load_file(folder / f"{name}-{rank}") for rank in (0, 1)]


def test_each_process_holds_half_of_the_base(pair):
    for record in records(pair, "whole"):
        held, all_of_it = record["held"]
        assert all_of_it == sum(one.nbytes for one in tiny_llama().parameters())
        assert held == all_of_it / 2


def test_two_processes_on_one_base_train_the_bank_of_one(pair, tmp_path):
    trainer = make_trainer(tmp_path, **DDP, **EVAL)
    fresh = tensors_of(trainer)
    trainer.train()
    ours, others = banks(pair, "whole")
    assert equal(ours, others)
    for name, value in tensors_of(trainer).items():
        assert (value - fresh[name]).abs().max() > 1e-3
        assert_close(ours[name], value, rtol=1e-5, atol=1e-5)
    for record in records(pair, "whole"):
        for key in ("loss", "loss/cde", "grad_norm", "eval_loss", "eval_loss/f"):
            theirs = [entry[key] for entry in trainer.state.log_history if key in entry]
            assert [entry[key] for entry in record["log"] if key in entry] == pytest.approx(theirs, rel=1e-5)


def test_both_processes_clip_by_the_same_norm(pair):
    one, other = (record["norms"] for record in records(pair, "whole"))
    assert len(one) == DDP["steps"]
    assert one == other


def test_a_sharded_run_resumes_bit_for_bit_from_a_checkpoint_of_the_bank_alone(pair):
    for resumed, whole in zip(banks(pair, "resumed"), banks(pair, "whole"), strict=True):
        assert equal(resumed, whole)
    files = sorted(path.name for path in (pair / "whole" / "checkpoint-3").iterdir())
    assert "adapter_model.safetensors" in files
    saved = load_file(pair / "whole" / "checkpoint-3" / "adapter_model.safetensors")
    assert all("colora_" in name for name in saved)
    assert "model.safetensors" not in files


def test_one_process_goes_on_from_a_checkpoint_of_a_sharded_run(pair, tmp_path):
    trainer = make_trainer(tmp_path, **DDP, **EVAL)
    trainer.train(resume_from_checkpoint=str(pair / "whole" / "checkpoint-3"))
    for name, value in tensors_of(trainer).items():
        assert_close(banks(pair, "whole")[0][name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "settings"), [("stored", {"room": 4, "names": MANY}), ("hard", HARD)])
def test_a_sharded_base_goes_with_cores_in_a_store_and_with_turns_accumulation_and_checkpointing(
    pair, tmp_path, name, settings
):
    trainer = make_trainer(tmp_path, **DDP, **settings)
    trainer.train()
    ours, others = banks(pair, name)
    assert equal(ours, others)
    for key, value in (tensors_of(trainer) if trainer.stored is None else whole_bank(trainer)).items():
        assert_close(ours[key], value, rtol=1e-5, atol=1e-5)


def test_average_gradients_of_parameters_that_one_process_has_a_gradient_of_or_none(pair):
    for rank in (0, 1):
        assert json.loads((pair / f"lonely-{rank}.json").read_text()) == [[1.5, 1.5], [4.0, 4.0], None]


# ---- from a run file -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sharded_run_from_a_file_is_killed_goes_on_and_leaves_the_bank_and_records_of_one_process(tmp_path):
    """Blocks that are named otherwise than most (GPT-2's), a start by gradients, `prompt: auto`, early stopping, greedy
    outputs."""
    model = tiny_gpt2()
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):  # drawn on each process as on none alone
        setattr(model.config, name, 0.0)
    base = save_base(tmp_path / "base", model)
    changes = {
        "prompt": "auto",
        "adapter": {"init_weights": "spectral"},
        "training": {"steps": 8, "eval_every": 2, "patience": 3},
        "evaluation": {"metrics": ["rougeL", "nll"]},
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    _, evaluation = train_and_evaluate(config_of(tmp_path / "one", base, **changes))
    changes["training"]["shard"] = True
    run, out = run_file(tmp_path / "two", base, **changes), tmp_path / "two" / "out"
    killed = Launched(tmp_path / "killed.txt", "colora", "train", run)
    killed.kill_when(out / "checkpoints" / "checkpoint-4")
    assert not (out / "bank").exists()
    told = two_processes(tmp_path / "log.txt", "colora", "train", run)
    assert "going on from" in told
    expected = bank_tensors(tmp_path / "one" / "out")
    for name, value in bank_tensors(out).items():
        assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    found = read_records(out / "records.jsonl")
    assert [(one.task, one.metric, one.n) for one in found] == [
        (one.task, one.metric, one.n) for one in evaluation.records
    ]
    assert [one.value for one in found] == pytest.approx([one.value for one in evaluation.records], rel=1e-5)


# ---- what cannot be done ---------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


def test_shard_is_refused_in_one_process(base, tmp_path):
    with pytest.raises(ConfigError, match="shard: expected several processes, found one: start one for each device"):
        train(config_of(tmp_path, base, training={"shard": True}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"modules_to_save": ["norm"]}, r"all of the base stays frozen, but adapter.modules_to_save names norm"),
        ({"target_parameters": ["experts.down_proj"]}, r"adapter.target_parameters names experts.down_proj"),
    ],
)
def test_shard_is_refused_with_what_needs_the_base_whole(base, tmp_path, monkeypatch, adapter, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=message):
        train(config_of(tmp_path, base, training={"shard": True}, adapter=adapter))


def test_shard_is_refused_on_the_cpu_where_there_is_an_accelerator(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"remove training.device: cpu"):
        train(config_of(tmp_path, base, training={"shard": True, "device": "cpu"}))


def test_shard_is_refused_on_a_quantised_base(base, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = Path(base) / "config.json"
    quantised = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    file.write_text(json.dumps(quantised))
    with pytest.raises(ConfigError, match="is quantised, and cannot be spread"):
        load_sharded(base)


def test_shard_is_refused_where_a_model_does_not_name_its_blocks(base, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(LlamaPreTrainedModel, "_no_split_modules", [])
    with pytest.raises(ConfigError, match="a LlamaForCausalLM, does not name the blocks that it consists of"):
        load_sharded(base)


def test_shard_is_refused_by_a_transformers_that_does_not_know_banks_on_such_a_base(base, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delattr("transformers.Trainer._sync_replicated_trainable_parameters")
    with pytest.raises(ConfigError, match=r"expected transformers 5.19 or later and torch 2.8 or later"):
        load_sharded(base)
