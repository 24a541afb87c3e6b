"""A bank whose cores are in a store is the bank with all cores on the model."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

import colora
from colora import CoLoRAConfig, TaskAdamW, parameter_groups, store_cores, tasks_at_hand
from colora.bank.export import lora_tensors
from colora.errors import ConfigError, TaskIdError
from tests.helpers.tiny import tiny_llama

NAMES = [f"task-{number}" for number in range(9)]
STEPS = [(3, 3, 7, 1), (0, 8, 3, 2), (7, 7, 7, 7), (5, 4, 6, 0), (1, 8, 7, 3), (2, 2, 5, 8)]


def make_bank(r=4, names=NAMES, dtype=torch.float32):
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama().to(dtype), CoLoRAConfig(r=r, tasks=list(names), init_weights=False))
    return model.train()


def make_optimizer(model):
    return TaskAdamW(parameter_groups(model, lr=1e-2, core_lr=3e-2, weight_decay=0.1, core_weight_decay=0.2))


def batch_of(tasks, seed):
    ids = torch.randint(1, 60, (len(tasks), 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids, "task_ids": torch.tensor(tasks)}


def step(model, optimizer, tasks, seed, parts=1):
    """One step of two micro-batches or one, with clipping."""
    whole = batch_of(tasks, seed)
    with tasks_at_hand(model, whole["task_ids"], optimizer):
        for part in range(parts):
            (model(**{key: value[part::parts] for key, value in whole.items()}).loss / parts).backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return norm


def shared(model):
    return {name: one.detach().clone() for name, one in model.named_parameters() if "colora_A" in name or "_B" in name}


def assert_same(one, other):
    assert one.tasks == other.tasks
    for name in one.tasks:
        first, second = one.core(name), other.core(name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    first, second = shared(one), shared(other)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(params=["memory", "disk"])
def stored(request, tmp_path):
    """A function that makes a bank with its cores in a store."""

    def make(room=4, **options):
        model = make_bank(**options)
        store_cores(model, room, tmp_path if request.param == "disk" else None)
        return model

    return make


@pytest.mark.parametrize("room", [4, 6, 9, 50])
@pytest.mark.parametrize("parts", [1, 2])
def test_training_gives_the_same_to_the_bit(stored, room, parts):
    whole, ours = make_bank(), stored(room)
    optimizers = [make_optimizer(model) for model in (whole, ours)]
    for seed, tasks in enumerate(STEPS):
        norms = [step(model, one, tasks, seed, parts) for model, one in zip((whole, ours), optimizers, strict=True)]
        assert torch.equal(*norms)
    assert_same(whole, ours)


def test_training_in_float64_and_at_an_odd_rank_gives_the_same(stored):
    whole, ours = make_bank(r=3, dtype=torch.float64), stored(r=3, dtype=torch.float64)
    optimizers = [make_optimizer(model) for model in (whole, ours)]
    for seed, tasks in enumerate(STEPS):
        for model, one in zip((whole, ours), optimizers, strict=True):
            step(model, one, tasks, seed)
    for name in NAMES:
        first, second = whole.core(name), ours.core(name)
        assert all(torch.allclose(first[key], second[key], rtol=1e-12, atol=1e-14) for key in first)


def test_tasks_that_are_not_in_a_step_do_not_move_by_a_bit(stored):
    model = stored()
    optimizer = make_optimizer(model)
    step(model, optimizer, STEPS[0], 0)
    before = {name: model.core(name) for name in NAMES}
    step(model, optimizer, STEPS[1], 1)
    for number, name in enumerate(NAMES):
        same = all(torch.equal(before[name][key], value) for key, value in model.core(name).items())
        assert same == (number not in STEPS[1])


@pytest.mark.parametrize("init", ["identity", "mean", "task-3"])
def test_tasks_come_and_go_between_steps(stored, init):
    whole, ours = make_bank(), stored()
    optimizers = [make_optimizer(model) for model in (whole, ours)]
    for model, optimizer in zip((whole, ours), optimizers, strict=True):
        step(model, optimizer, STEPS[0], 0)
        model.add_tasks(["new", "newer"], init=init)
        step(model, optimizer, (9, 3, 10, 0), 1)
        model.remove_task("task-3")
        step(model, optimizer, (8, 2, 9, 3), 2)
        model.remove_task("new")
        step(model, optimizer, (8, 3, 7, 8), 3)
    if init == "mean":  # summed in another order
        first, second = (model.core("newer") for model in (whole, ours))
        assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)
    else:
        assert_same(whole, ours)


def test_a_task_that_was_added_takes_four_numbers_until_it_is_trained(stored):
    model = stored()
    model.add_tasks([f"new-{number}" for number in range(5000)])
    table = colora.adapter.stored.access.stored_cores(model).table
    assert table.written(np.arange(5009)).sum() == 9
    assert torch.equal(next(iter(model.core("new-4999").values())), torch.eye(4))


def test_tasks_that_start_rotated_have_rotations_of_their_own_that_stay_with_them(stored):
    model, whole = stored(), make_bank()
    for one in (model, whole):
        one.add_tasks(["a", "b", "c"], init="rotated")
    cores = {name: model.core(name) for name in "abc"}
    for core in (*cores.values(), whole.core("b")):
        for value in core.values():
            assert torch.allclose(value @ value.T, torch.eye(4), atol=1e-5)
            assert torch.equal(value[:2, :2], torch.eye(2))  # half of the directions are in common
    first = next(iter(cores["a"]))
    assert not torch.equal(cores["a"][first], cores["b"][first])
    assert len({tuple(value.flatten().tolist()) for value in cores["a"].values()}) == len(cores["a"])
    model.remove_task("task-3")
    model.remove_task("a")
    model.add_tasks(["d"], init="rotated")
    for name in "bc":
        assert all(torch.equal(model.core(name)[key], value) for key, value in cores[name].items())
    assert not torch.equal(model.core("d")[first], cores["c"][first])
    step(model, make_optimizer(model), (8, 9, 10, 0), 0)
    assert not torch.equal(model.core("b")[first], cores["b"][first])


def test_a_core_is_read_and_written_whether_at_hand_or_not(stored):
    whole, ours = make_bank(), stored()
    optimizers = [make_optimizer(model) for model in (whole, ours)]
    for model, optimizer in zip((whole, ours), optimizers, strict=True):
        step(model, optimizer, STEPS[0], 0)
        for task in ("task-3", "task-8"):
            model.set_core(task, {key: value + 1 for key, value in model.core(task).items()})
        step(model, optimizer, STEPS[1], 1)
    assert_same(whole, ours)
    with pytest.raises(ConfigError, match="missing"):
        ours.set_core("task-1", {})


@pytest.mark.parametrize("how", ["ids", "names", "one task", "tokens", "set_task", "generate"])
def test_answers_are_the_same_for_tasks_that_are_not_at_hand(stored, how):
    models = [make_bank().eval(), stored().eval()]
    inputs, found = batch_of((0, 0, 0), 5)["input_ids"], []
    for model in models:
        with torch.no_grad():
            for first in (0, 4, 6):
                tasks = [first, first + 2, first]
                match how:
                    case "ids":
                        found.append(model(inputs, task_ids=torch.tensor(tasks)).logits)
                    case "names":
                        found.append(model(inputs, task_ids=[NAMES[task] for task in tasks]).logits)
                    case "one task":
                        with model.tasks_of(first):
                            found.append(model(inputs).logits)
                    case "tokens":
                        found.append(model(inputs, task_ids=torch.tensor([tasks] * 6).T).logits)
                    case "set_task":
                        model.set_task(NAMES[first])
                        found.append(model(inputs).logits)
                        model.set_task(None)
                    case "generate":
                        with model.tasks_of(tasks):
                            model(inputs, task_ids=torch.tensor([8, 7, 5]))  # brings others meanwhile
                            found.append(model.generate(inputs, max_new_tokens=4, do_sample=False))
    assert all(torch.equal(one, other) for one, other in zip(found[:3], found[3:], strict=True))
    assert not torch.equal(found[0], found[1])


def test_ids_that_are_changed_in_place_are_read_again(stored):
    model, whole = stored().eval(), make_bank().eval()
    batch = batch_of((0, 1, 2), 0)
    with torch.no_grad():
        for tasks in ([0, 1, 2], [3, 1, 2], [8, 8, 0]):
            batch["task_ids"].copy_(torch.tensor(tasks))
            assert torch.equal(model(**batch).logits, whole(**batch).logits)


def test_a_bank_is_saved_as_one_with_all_its_cores_on_the_model(stored, tmp_path):
    whole, ours = make_bank(), stored()
    for model, name in ((whole, "whole"), (ours, "ours")):
        step(model, make_optimizer(model), STEPS[0], 0)
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "ours" / file).read_bytes()
    assert_same(PeftModel.from_pretrained(tiny_llama(), tmp_path / "ours"), whole)


def test_another_optimizer_begins_with_moments_of_its_own(stored):
    whole, ours = make_bank(), stored()
    for model in (whole, ours):
        for seed in range(2):
            optimizer = make_optimizer(model)
            step(model, optimizer, STEPS[0], seed)
            step(model, optimizer, STEPS[1], seed + 5)
    assert_same(whole, ours)


def test_gradients_of_checkpointed_layers_are_the_same(stored):
    whole, ours = make_bank(), stored()
    for model in (whole, ours):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = make_optimizer(model)
        for seed, tasks in enumerate(STEPS[:3]):
            step(model, optimizer, tasks, seed)
    assert_same(whole, ours)


def test_what_cannot_be_is_refused(stored):
    model = stored()
    with pytest.raises(ConfigError, match="in a store already"):
        store_cores(model, 4)
    with pytest.raises(TaskIdError, match="not on the model: train inside"):
        model(**batch_of((1, 2), 0))
    with (
        pytest.raises(TaskIdError, match="5 tasks at once, expected at most 4"),
        tasks_at_hand(model, [0, 1, 2, 3, 4], make_optimizer(model)),
    ):
        pass
    with pytest.raises(TaskIdError, match="out of range"), tasks_at_hand(model, [9], make_optimizer(model)):
        pass
    optimizer = make_optimizer(model)
    with tasks_at_hand(model, ["task-1", "task-2"], optimizer):
        model(**batch_of((1, 2), 0)).loss.backward()
        with torch.no_grad(), pytest.raises(TaskIdError, match="tasks of a step are trained"):
            model(**batch_of((3, 4), 0))
    with torch.no_grad(), pytest.raises(TaskIdError, match="gradients of the current tasks wait"):
        model(**batch_of((3, 4), 0))
    model.zero_grad(set_to_none=False)
    with pytest.raises(ConfigError, match="in a store"):
        set_peft_model_state_dict(model, get_peft_model_state_dict(make_bank()))
    with pytest.raises(ConfigError, match=r"expected a colora\.TaskAdamW"), tasks_at_hand(model, [1], None):
        pass
    before = make_bank()
    optimizer = make_optimizer(before)
    step(before, optimizer, STEPS[0], 0)
    store_cores(before, 4)
    with pytest.raises(ConfigError, match="make a new optimizer"), tasks_at_hand(before, [1], optimizer):
        pass
    merged = make_bank()
    merged.set_task("task-1")
    merged.merge_adapter()
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        store_cores(merged, 4)


def test_a_copy_of_the_model_has_a_store_of_its_own():
    model = make_bank()
    store_cores(model, 4)
    other = copy.deepcopy(model)
    step(other, make_optimizer(other), STEPS[0], 0)
    assert not torch.equal(*(next(iter(one.core("task-3").values())) for one in (model, other)))
    assert torch.equal(*(next(iter(one.core("task-8").values())) for one in (model, other)))


def test_a_loop_with_all_cores_on_the_model_may_say_its_tasks_too():
    models = [make_bank(), make_bank()]
    optimizers = [make_optimizer(model) for model in models]
    step(models[0], optimizers[0], STEPS[0], 0)
    whole = batch_of(STEPS[0], 0)
    models[1](**whole).loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in models[1].parameters() if p.requires_grad], 0.5)
    optimizers[1].step()
    assert_same(*models)


def test_saving_inside_of_a_block_loses_no_step(stored, tmp_path):
    whole, ours = make_bank(), stored()
    for model in (whole, ours):
        optimizer = make_optimizer(model)
        with tasks_at_hand(model, [1, 2], optimizer):
            for seed in range(3):
                model(**batch_of((1, 2), seed)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if not seed:
                    model.save_pretrained(tmp_path / "middle", save_embedding_layers=False)
                    model.set_core("task-7", model.core("task-6"))
        step(model, optimizer, (3, 4), 5)
    assert_same(whole, ours)


@pytest.mark.parametrize("room", [4, 20])
def test_a_backward_pass_outside_of_its_block_is_refused(stored, room):
    model = stored(room)
    optimizer = make_optimizer(model)
    losses = []
    for tasks in ((1, 2), (3, 4)):
        with tasks_at_hand(model, tasks, optimizer):
            losses.append(model(**batch_of(tasks, 0)).loss)
    with pytest.raises(TaskIdError, match="a backward pass outside"):
        sum(losses).backward()
    model.zero_grad()
    with torch.no_grad():
        model(**batch_of((0, 1), 0))
    with pytest.raises(TaskIdError, match="a backward pass outside"):
        model(**batch_of((0, 1), 0)).loss.backward()


def test_cores_in_bfloat16_are_kept_as_they_are(tmp_path):
    whole, ours = (make_bank(dtype=torch.bfloat16) for _ in range(2))
    for model in (whole, ours):
        for name, one in model.named_parameters():
            if "colora_" in name:
                one.data = one.data.to(torch.bfloat16)
    store_cores(ours, 4)
    for model in (whole, ours):
        model.set_core("task-8", model.core("task-1"))
    assert_same(whole, ours)


def test_plain_loras_are_exported_from_a_store(stored):
    whole, ours = make_bank(), stored()
    for task in ("task-1", "task-7"):
        one, other = lora_tensors(whole, task), lora_tensors(ours, task)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_trained_model_is_copied_with_all_its_cores(tmp_path):
    model = make_bank()
    store_cores(model, 4)
    step(model, make_optimizer(model), STEPS[0], 0)
    other = copy.deepcopy(model)
    assert_same(model, other)
    for one in (model, other):
        step(one, make_optimizer(one), STEPS[1], 1)
    assert_same(model, other)
    on_disk = make_bank()
    store_cores(on_disk, 4, tmp_path)
    with pytest.raises(ConfigError, match="cannot be copied"):
        copy.deepcopy(on_disk)
