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
from colora.transfer.onboarding.together.cohort import cohorts, train_together
from colora.transfer.onboarding.together.newcomer import Newcomer, rows_of
from colora.transfer.onboarding.together.passes import Line, Passes, length_of
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
        rows = [Example(f"{'x' * 3 * number} {i}", ("neu" * (1 + (i + number) % 3),)) for i in range(5 + 7 * number)]
        val = rows[:2] if number == 3 else []
        found.append(Task(f"new-{number}", {"train": tuple(rows[2:]), "val": tuple(val), "test": ()}, "", None))
    return found


def newcomers(model, tasks):
    def rows(task, split):
        return rows_of(encode_tasks([task], TOKENIZER, split, 96, model.config.is_encoder_decoder, {task.name: 0}))

    return [Newcomer(task.name, rows(task, "train"), rows(task, "val")) for task in tasks]


def together(model, tasks, settings=QUICK, most_tokens=256):
    found = [
        pair for cohort in train_together(model, newcomers(model, tasks), 0, settings, most_tokens) for pair in cohort
    ]
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
        assert one.at_start == pytest.approx(fit.at_start, rel=1e-9)
        assert (one.before, one.after) == pytest.approx((fit.before, fit.after), rel=1e-6)
        assert one.coverage.shared == pytest.approx(fit.coverage.shared, rel=1e-6)
        assert one.coverage.own == pytest.approx(fit.coverage.own, rel=1e-6)
        assert one.coverage.layers == pytest.approx(fit.coverage.layers, rel=1e-6)
        assert one.validation == (None if fit.validation is None else pytest.approx(fit.validation, rel=1e-9))
        assert one.fault is None


def test_of_many_known_tasks_the_same_neighbours_are_tried():
    model = bank(tasks=[f"known-{number}" for number in range(20)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "colora_core" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    tasks = new_tasks(3)
    found, cores = together(model, tasks)
    for task in tasks:
        copied = copy.deepcopy(model)
        _, fit = add_new_task(copied, TOKENIZER, task, 96, QUICK)
        assert list(found[task.name].start_nll) == list(fit.start.nll)
        assert_close(bank_tuner(copied).core(task.name), cores[task.name], 1e-9)


def test_in_float32_it_is_near():
    model, tasks = bank(dtype=torch.float32), new_tasks()
    found, cores = together(model, tasks)
    for task in tasks:
        fit, core = alone(model, task)
        assert found[task.name].after == pytest.approx(fit.after, rel=1e-3)
        assert_close(core, cores[task.name], 1e-3)


@pytest.mark.parametrize("proximal", [0.0, 0.3])
@pytest.mark.parametrize("seed", [0, 5])
def test_order_rate_and_regularisation_are_those_of_each_alone(proximal, seed):
    model, tasks, settings = bank(), new_tasks(2), Settings(7, 3, lr=0.3, proximal=proximal, seed=seed)
    _, cores = together(model, tasks, settings)
    for task in tasks:
        assert_close(alone(model, task, settings)[1], cores[task.name], 1e-9)


def test_a_model_with_dropout_trains_one_at_a_time_and_so_as_alone():
    for model in (bank(lora_dropout=0.3), bank(tiny_gpt2)):  # the second has dropout of its own
        tasks = new_tasks(3)
        _, cores = together(model, tasks)
        for task in tasks:
            assert_close(alone(model, task)[1], cores[task.name], 1e-9)


def test_one_that_diverges_is_given_up_and_touches_no_other():
    model, tasks = bank(), new_tasks()
    _, before = together(model, tasks)
    asked = newcomers(model, tasks)
    seen = []

    def poison(count):  # the core in the slot of one task, after two steps
        seen.append(count)
        if len(seen) == 2:
            for name, parameter in model.named_parameters():
                if "colora_core" in name:
                    parameter.data[1] = float("nan")

    (cohort,) = train_together(model, asked, 0, QUICK, 100_000, None, poison)
    after = {one.name: core for one, core in cohort}
    order = [one.name for one, _ in cohort]
    (bad,) = [one for one, _ in cohort if one.fault]
    assert bad.name == order[1]
    assert "the loss became nan in step 3: lower lr" in bad.fault
    assert seen == [4, 4, 3, 3, 3, 3]
    assert after[bad.name] == {}
    for name in set(order) - {bad.name}:
        assert_close(before[name], after[name], 1e-9)


def test_a_rate_that_is_too_high_is_told_for_each():
    found, cores = together(bank(dtype=torch.float32), new_tasks(2), Settings(8, 4, lr=1e30))
    assert all("became" in one.fault and "lower lr" in one.fault for one in found.values())
    assert cores == {"new-0": {}, "new-1": {}}


@pytest.mark.parametrize("inference", [False, True])
def test_the_bank_is_as_it_was_before(inference):
    model = bank(inference_mode=inference).train()
    bank_tuner(model).set_task("billing")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asks = [parameter.requires_grad for parameter in model.parameters()]
    training = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    together(model, new_tasks(2))
    assert bank_tuner(model).tasks == TASKS
    assert bank_tuner(model).router.selected == {"default": "billing"}
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert asks == [parameter.requires_grad for parameter in model.parameters()]
    assert training == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_passes_are_bounded_and_pad_little():
    rows = [{"input_ids": [1] * length, "labels": [1] * length, "task_ids": 0} for length in (3, 50, 4, 49, 5, 400)]
    passes = Passes(bank(), 0, 100)
    found = [[length_of(line.row) for line in batch] for batch in passes.batches([Line(0, row) for row in rows])]
    assert found == [[400], [50, 49], [5, 4, 3]]
    tasks = [Newcomer(str(length), [row]) for length, row in enumerate(rows * 3)]
    made = list(cohorts(tasks, rows=4, most_tokens=100))
    assert sorted(one.name for cohort in made for one in cohort) == sorted(one.name for one in tasks)
    for cohort in made:
        longest = max(len(one.rows[0]["input_ids"]) for one in cohort)
        assert len(cohort) == 1 or len(cohort) * 4 * longest <= 200
