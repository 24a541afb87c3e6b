"""New tasks trained in the same passes: each as it would be alone, whatever is beside it."""

import copy

import pytest
import torch
from peft import get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_tuner
from colora.tasks.encode import encode_tasks
from colora.tasks.schema import Example, Task
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import add_new_task
from colora.transfer.onboarding.together.cohort import train_together
from colora.transfer.onboarding.together.newcomer import Newcomer, rows_of
from tests.helpers.tiny import tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

TASKS = ["legal", "billing", "sales"]
TOKENIZER = tiny_tokenizer()
QUICK = Settings(steps=6, rows=4)


def bank(make=tiny_llama, dtype=torch.float64, **options):
    model = make(dtype=dtype)
    torch.manual_seed(1)
    usual = {"r": 3, "lora_alpha": 5, "tasks": TASKS, "init_weights": False}
    return get_peft_model(model, CoLoRAConfig(**usual | options), autocast_adapter_dtype=dtype != torch.float64)


def new_tasks(count=4):
    """Tasks of different sizes and lengths, the last of them with validation examples."""
    found = []
    for number in range(count):
        rows = tuple(Example(f"{'x' * 3 * number} {i}", ("neu" * (1 + (i + number) % 3),)) for i in range(5 + 7 * number))
        found.append(Task(f"new-{number}", {"train": rows[2:], "val": rows[:2] if number == 3 else (), "test": ()}, "", None))
    return found


def newcomers(model, tasks):
    def rows(task, split):
        return rows_of(encode_tasks([task], TOKENIZER, split, 96, model.config.is_encoder_decoder, {task.name: 0}))

    return [Newcomer(task.name, rows(task, "train"), rows(task, "val")) for task in tasks]


def together(model, tasks, settings=QUICK, most_tokens=256, known=None):
    found = [pair for cohort in train_together(model, newcomers(model, tasks), 0, settings, most_tokens, known) for pair in cohort]
    return {one.name: one for one, _ in found}, {one.name: core for one, core in found}


def alone(model, task, settings=QUICK):
    model = copy.deepcopy(model)
    _, fit = add_new_task(model, TOKENIZER, task, 96, settings)
    return fit, bank_tuner(model).core(task.name)


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        assert float((one[name] - other[name]).abs().max()) < tolerance, name


@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
@pytest.mark.parametrize("most_tokens", [1, 300, 100_000])
def test_each_gets_what_it_gets_alone_however_many_share_a_pass(make, most_tokens):
    model, tasks = bank(make), new_tasks()
    found, cores = together(model, tasks, most_tokens=most_tokens)
    for task in tasks:
        fit, core = alone(model, task)
        one = found[task.name]
        assert_close(core, cores[task.name], 1e-9)
        assert one.start == fit.start.name
        assert list(one.start_nll) == list(fit.start.nll)
        assert one.start_nll == pytest.approx(fit.start.nll, rel=1e-9)
        assert (one.before, one.after) == pytest.approx((fit.before, fit.after), rel=1e-6)
        assert one.coverage.shared == pytest.approx(fit.coverage.shared, rel=1e-6)
        assert one.coverage.own == pytest.approx(fit.coverage.own, rel=1e-6)
        assert one.coverage.layers == pytest.approx(fit.coverage.layers, rel=1e-6)
        assert one.validation == (None if fit.validation is None else pytest.approx(fit.validation, rel=1e-9))
        assert one.fault is None
