"""A bank on a base of four bits (bitsandbytes, which has a build for CPUs): trained, measured, served, written out."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from colora import CoLoRAConfig
from colora.adapter.model import bank_layers, bank_tuner
from colora.bank.dequantise import dequantise
from colora.bank.load import load_bank
from colora.models.base import load_base
from colora.serving.service import Options, Service
from colora.training.run import train_and_evaluate
from tests.helpers.dense_oracle import distance
from tests.helpers.four_bits import four_bit_base
from tests.helpers.run_files import bank_tensors, cli, config_of, write_task

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("error:.*an autograd kernel was not registered.*:UserWarning"),
]

IDS = ["red", "blue", "red"]
TRAINING = {"steps": 30, "rows": 4, "eval_every": 10, "save_every": 10, "log_every": 5, "max_length": 96, "threads": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return four_bit_base(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory, base):
    """The folder of a run on that base that has ended."""
    folder = tmp_path_factory.mktemp("run")
    train_and_evaluate(config_of(folder, base, training=TRAINING))
    return folder / "out"


def inputs():
    return torch.randint(3, 200, (3, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, *tasks):
    return model(inputs(), **({"task_ids": list(tasks)} if tasks else {})).logits


def test_the_base_is_quantised_and_every_adapted_layer_of_it(base):
    model, _ = load_base(base)
    bank = get_peft_model(model, CoLoRAConfig(r=4, tasks=["red", "blue"], task_type="CAUSAL_LM"))
    layers = bank_layers(bank_tuner(bank).model, "default")
    assert len(layers) == 14
    assert {type(layer.get_base_layer()).__name__ for layer in layers.values()} == {"Linear4bit"}
    bytes_of = {name: (Path(base).parent / name / "model.safetensors").stat().st_size for name in ("plain", "four")}
    assert bytes_of["four"] < 0.4 * bytes_of["plain"]  # the embeddings keep their 32 bits


def test_training_on_four_bits_lowers_the_loss_and_reaches_every_core(ended):
    log = json.loads((ended / "checkpoints" / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    measured = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert measured == sorted(measured, reverse=True)
    for name, tensor in bank_tensors(ended).items():
        assert tensor.dtype == torch.float32
        assert tensor.abs().max() > 0, name
        if "colora_core" in name:
            assert (tensor[0] - tensor[1]).abs().max() > 0


def test_gradients_on_four_bits_stay_the_same_after_a_measurement(base):
    """bitsandbytes packs what is run in evaluation mode on a CPU with AVX512-BF16 for a product without a gradient."""
    model, _ = load_base(base)
    bank = get_peft_model(model, CoLoRAConfig(r=4, tasks=["red", "blue"], task_type="CAUSAL_LM", init_weights=False))

    def gradients():
        bank.train()
        bank.zero_grad()
        bank(inputs(), labels=inputs(), task_ids=IDS).loss.backward()
        return {name: one.grad.clone() for name, one in bank.named_parameters() if one.requires_grad}

    before = gradients()
    assert all(one.abs().max() > 0 for one in before.values())
    bank.eval()
    logits(bank, *IDS)
    after = gradients()
    assert all(torch.equal(one, after[name]) for name, one in before.items())


@pytest.mark.filterwarnings("ignore:the base is quantised")
def test_a_base_that_was_measured_before_it_got_a_bank_has_the_gradients_of_what_its_weights_stand_for(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    logits(model.eval())
    bank = get_peft_model(model, CoLoRAConfig(r=4, tasks=["red", "blue"], task_type="CAUSAL_LM", init_weights=False))

    def gradients():
        bank.zero_grad()
        bank(inputs(), labels=inputs(), task_ids=IDS).loss.backward()
        return {name: one.grad.clone() for name, one in bank.named_parameters() if "colora_" in name}

    found = gradients()
    assert dequantise(bank)
    for name, expected in gradients().items():
        assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


def test_a_bank_on_four_bits_is_loaded_with_the_same_outputs(ended):
    one, other = (load_bank(ended)[0] for _ in range(2))
    assert torch.equal(logits(one, *IDS), logits(other, *IDS))
    assert distance(logits(one, "red", "red", "red"), logits(one, "blue", "blue", "blue")) > 1e-3


def test_the_commands_for_a_bank_take_one_on_four_bits(ended, tmp_path):
    green = write_task(tmp_path, "green")
    for command in (
        ("evaluate", ended),
        ("generate", ended, "--task", "red", "red 1"),
        ("onboard", ended, tmp_path / green, "--output", tmp_path / "new"),
        ("tasks", tmp_path / "new"),
    ):
        result = cli(*command)
        assert result.exit_code == 0, result.stderr
    assert load_bank(tmp_path / "new")[2].examples.keys() == {"red", "blue", "green"}


def test_the_server_takes_a_bank_on_four_bits(ended):
    service = Service(Options(bank=ended, max_length=96, rows=4))
    assert service.dtype == torch.float32


def test_an_exported_lora_beside_the_same_four_bits_is_exact(ended, base, tmp_path):
    assert cli("export", ended, tmp_path / "loras").exit_code == 0
    expected = logits(load_bank(ended)[0], "red", "red", "red")
    lora = PeftModel.from_pretrained(load_base(base)[0], tmp_path / "loras" / "red")
    assert distance(logits(lora), expected) < 1e-5


def test_a_merged_model_is_written_without_rounding_once_more_and_says_what_it_is(ended, tmp_path):
    result = cli("export", ended, tmp_path / "merged", "--merged", "--task", "red")
    assert result.exit_code == 0, result.stderr
    assert "the base is quantised: the merged model has what its weights stand for, as float32" in result.stderr
    assert "re-quantises" not in result.stderr
    expected = logits(load_bank(ended)[0], "red", "red", "red")
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"), dtype=torch.float32)
    assert type(merged.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert distance(logits(merged), expected) < 1e-5


def test_merging_in_memory_into_four_bits_warns_and_costs_accuracy(ended):
    bank = load_bank(ended)[0]
    expected, plain = logits(bank, "red", "red", "red"), logits(load_base(bank_tuner(bank).model.name_or_path)[0])
    with pytest.warns(UserWarning, match="re-quantises its weight, which costs accuracy"):
        merged = bank.merge_and_unload(task="red")
    error = distance(logits(merged), expected)
    assert 1e-4 < error < distance(expected, plain)


def test_a_bank_on_four_bits_is_told_apart_from_one_on_the_whole_base(ended, base):
    plain = str(Path(base).parent / "plain")
    with pytest.warns(UserWarning, match="expected when the base is quantised to 4 bits"):
        load_bank(ended, plain)
