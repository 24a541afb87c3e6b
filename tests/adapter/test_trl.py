"""TRL's trainers with a bank: the reference is the bank as it was, and a set task holds in every pass."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import log_softmax

from colora import CoLoRAConfig
from colora.errors import TaskIdError
from tests.helpers.dense_oracle import distance, factors, make_bank
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'trl>=1.16'")
from datasets import Dataset  # noqa: E402

TEXTS = [f"number {index}" for index in range(8)]
ROWS = {
    "DPO": {"prompt": TEXTS, "chosen": ["yes " + text for text in TEXTS], "rejected": ["no"] * 8},
    "KTO": {"prompt": TEXTS, "completion": ["yes " + text for text in TEXTS], "label": [True, False] * 4},
    "GRPO": {"prompt": TEXTS},
    "RLOO": {"prompt": TEXTS},
}
GENERATES = ("GRPO", "RLOO")


def bank(tasks=("a", "b"), **config):
    return make_bank(tiny_llama(), tasks, r=4, lora_alpha=16, task_type="CAUSAL_LM", **config)


def trained(model, method, folder, **arguments):
    """The trainer after training, on the CPU and two rows a step; its logs are in `state.log_history`."""
    settings = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 2, "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-2}
    settings |= {"gradient_checkpointing": False, "save_strategy": "no", "seed": 1}
    extra = {}
    if method in GENERATES:
        settings |= {"num_generations": 2, "max_completion_length": 4, "beta": 0.5}
        extra["reward_funcs"] = lambda completions, **_: [float(index) for index, _ in enumerate(completions)]
    elif method == "DPO":
        settings |= {"loss_type": "sigmoid"}
    made = getattr(trl, f"{method}Config")(**settings | arguments)
    data = Dataset.from_dict(ROWS[method])
    trainer = getattr(trl, f"{method}Trainer")(
        model, args=made, train_dataset=data, processing_class=tiny_tokenizer(), **extra
    )
    trainer.train()
    return trainer


def first(trainer, key="loss"):
    return next(entry[key] for entry in trainer.state.log_history if key in entry)


def is_the_start(method, trainer):
    """Does step one find policy and reference alike?"""
    if method == "DPO":
        return abs(first(trainer) - math.log(2)) < 1e-5
    if method == "KTO":
        return abs(first(trainer) - 0.5) < 1e-5
    return abs(first(trainer, "kl")) < 1e-6


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("tasks", [("a",), ("a", "b")])
def test_the_reference_is_the_trained_bank(tmp_path, method, tasks):
    model = bank(tasks)
    before = factors(model)
    if len(tasks) > 1:
        model.set_task("b")
    trainer = trained(model, method, tmp_path)
    assert is_the_start(method, trainer)
    reference, after = factors(model, "ref"), factors(model)
    for layer, tensors in before.items():
        assert all(torch.equal(reference[layer][name], value) for name, value in tensors.items())
        assert not torch.equal(after[layer]["core"][-1], tensors["core"][-1])
        if len(tasks) > 1:
            assert torch.equal(after[layer]["core"][0], tensors["core"][0])


@pytest.mark.parametrize("method", ROWS)
def test_a_fresh_lora_and_a_fresh_bank_start_alike(tmp_path, method):
    """The measure itself: a method that TRL knows gives the same first value."""
    lora = get_peft_model(
        tiny_llama(), LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert is_the_start(method, trained(lora, method, tmp_path))


@pytest.mark.parametrize("method", ROWS)
def test_several_tasks_and_none_chosen_are_refused(tmp_path, method):
    with pytest.raises(TaskIdError, match="which task"):
        trained(bank(), method, tmp_path)


def test_the_logged_probabilities_are_those_of_the_set_task(tmp_path):
    found = {}
    for task in ("a", "b"):
        model = bank()
        model.set_task(task)
        found[task] = first(trained(model, "DPO", tmp_path, max_steps=1, per_device_train_batch_size=8), "logps/chosen")
    tokenizer, model = tiny_tokenizer(), bank()
    for task, value in found.items():
        sums = []
        for prompt, chosen in zip(ROWS["DPO"]["prompt"], ROWS["DPO"]["chosen"], strict=True):
            start = tokenizer(prompt)["input_ids"]
            ids = torch.tensor([start + tokenizer(chosen)["input_ids"] + [tokenizer.eos_token_id]])
            with torch.no_grad():
                logits = log_softmax(model(input_ids=ids, task_ids=[task]).logits[0, :-1], -1)
            sums.append(logits.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum().item())
        assert value == pytest.approx(sum(sums) / len(sums), rel=1e-4)
    assert abs(found["a"] - found["b"]) > 1e-2


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_reference_stays_with_gradient_checkpointing(tmp_path, reentrant):
    plain, checkpointed = bank(), bank()
    for model, on in ((plain, False), (checkpointed, True)):
        model.set_task("a")
        trainer = trained(
            model, "DPO", tmp_path, max_steps=2, gradient_checkpointing=on,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )  # fmt: skip
        assert is_the_start("DPO", trainer)
    one, other = factors(plain), factors(checkpointed)
    assert max(distance(one[layer][name], other[layer][name]) for layer in one for name in ("A", "B", "core")) < 1e-5


def test_a_config_given_to_the_trainer_starts_at_the_base(tmp_path):
    settings = trl.DPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_steps=1, logging_steps=1, save_strategy="no"
    )
    trainer = trl.DPOTrainer(
        tiny_llama(), args=settings, train_dataset=Dataset.from_dict(ROWS["DPO"]), processing_class=tiny_tokenizer(),
        peft_config=CoLoRAConfig(r=4, tasks=["a"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    assert is_the_start("DPO", trainer)
    assert list(trainer.model.peft_config) == ["default"]


@pytest.mark.parametrize("method", ["DPO", "KTO"])
def test_a_reference_computed_beforehand_is_the_trained_bank(tmp_path, method):
    model = bank()
    model.set_task("b")
    assert is_the_start(method, trained(model, method, tmp_path, precompute_ref_log_probs=True))


def test_modules_trained_in_full_are_in_the_reference_too(tmp_path):
    model = bank(("a",), modules_to_save=["model.norm"])
    with torch.no_grad():
        model.get_submodule("base_model.model.model.norm.modules_to_save.default").weight.mul_(1.5)
    assert is_the_start("DPO", trained(model, "DPO", tmp_path))
