"""A bank whose tasks have cores of several sizes: each is trained and read as if all the others had its size."""

import copy

import numpy as np
import pytest
import torch
from peft import get_peft_model

from colora import CoLoRAConfig, TaskAdamW, parameter_groups, store_cores, tasks_at_hand
from colora.adapter.core_size import resized_core
from colora.adapter.lookup import bank_layers
from colora.adapter.model import bank_tuner
from colora.adapter.stored.access import core_rank, held_tasks, stored_cores
from colora.errors import ConfigError, TaskIdError
from tests.helpers.tiny import tiny_llama

RANK = 5
RANKS = {"a": 2, "b": 5, "c": 3, "d": 2, "e": 5, "f": 3}
STEPS = [(0, 1, 1), (2, 3, 0), (4, 5, 1), (0, 3, 5), (5, 2, 4)]


def make_bank(dtype=torch.float32):
    """With cores of r × r that are zero beyond the ranks of the tasks."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama().to(dtype), CoLoRAConfig(r=RANK, tasks=list(RANKS), init_weights=False))
    for name, rank in RANKS.items():
        model.set_core(name, {key: padded(one[:rank, :rank]) for key, one in model.core(name).items()})
    return model.train()


def padded(core):
    return resized_core(core, RANK)


@pytest.fixture(params=["memory", "disk"])
def stored(request, tmp_path):
    """A function that makes the same bank with its cores in a store, each of its own size."""

    def make(room=3, **options):
        model = make_bank(**options)
        store_cores(model, room, tmp_path if request.param == "disk" else None, RANKS)
        return model

    return make


def make_optimizer(model):
    return TaskAdamW(parameter_groups(model, lr=1e-2, core_lr=3e-2, weight_decay=0.1, core_weight_decay=0.2))


def batch_of(tasks, seed):
    ids = torch.randint(1, 60, (len(tasks), 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids, "task_ids": torch.tensor(tasks)}


def outside(model):
    """By layer, where the whole stacks have no number of a task's."""
    inside = [padded(torch.ones(rank, rank)) for rank in RANKS.values()]
    return {name: torch.stack(inside) == 0 for name in bank_layers(model, "default")}


def step(model, optimizer, tasks, seed, parts=1):
    batch = batch_of(tasks, seed)
    in_store = stored_cores(model) is not None
    with tasks_at_hand(model, batch["task_ids"], optimizer):
        for part in range(parts):
            (model(**{key: value[part::parts] for key, value in batch.items()}).loss / parts).backward()
        if not in_store:  # the slow way: nothing beyond a task's corner is trained
            for name, layer in bank_layers(model, "default").items():
                layer.colora_core["default"].grad[outside(model)[name]] = 0
        optimizer.step()
        optimizer.zero_grad()


def assert_same(whole, ours):
    for name, rank in RANKS.items():
        first, second = whole.core(name), ours.core(name)
        assert all(one.shape == (rank, rank) for one in second.values())
        assert all(torch.equal(first[key], padded(second[key])) for key in first), name
    ours = dict(ours.named_parameters())
    for key, value in whole.named_parameters():
        assert "core" in key or torch.equal(value, ours[key]), key


@pytest.mark.parametrize("room", [3, 4, 50])
@pytest.mark.parametrize("parts", [1, 2])
def test_training_is_that_of_cores_that_are_masked_by_hand_to_the_bit(stored, room, parts):
    whole, ours = make_bank(), stored(room)
    optimizers = [make_optimizer(model) for model in (whole, ours)]
    for seed, tasks in enumerate(STEPS):
        for model, optimizer in zip((whole, ours), optimizers, strict=True):
            step(model, optimizer, tasks, seed, parts)
    assert_same(whole, ours)


def test_several_steps_in_one_block_stay_within_the_corners(stored):
    """What is beyond a corner must not come back before the cores are written, either."""
    whole, ours = make_bank(), stored()
    for model in (whole, ours):
        optimizer = make_optimizer(model)
        with tasks_at_hand(model, [0, 1, 2], optimizer):
            for seed in range(3):
                step_inside(model, optimizer, seed)
        step(model, optimizer, (3, 4), 9)
    assert_same(whole, ours)


def step_inside(model, optimizer, seed):
    model(**batch_of((0, 1, 2, 0), seed)).loss.backward()
    for name, layer in bank_layers(model, "default").items():
        core = layer.colora_core["default"]
        beyond = outside(model)[name] if core.shape[0] == len(RANKS) else outside(model)[name][:3]
        if stored_cores(model) is None:
            core.grad[beyond] = 0
        assert not core.grad[beyond].any()
    optimizer.step()
    optimizer.zero_grad()
    for name, layer in bank_layers(model, "default").items():
        core = layer.colora_core["default"]
        beyond = outside(model)[name] if core.shape[0] == len(RANKS) else outside(model)[name][:3]
        assert not core.detach()[beyond].any()
        state = optimizer.state[core]
        assert not state["exp_avg"][beyond].any()
        assert not state["exp_avg_sq"][beyond].any()


def test_a_smaller_task_gives_further_directions_of_a_and_b_no_gradient_at_all(stored):
    model = stored()
    with tasks_at_hand(model, ["a", "d"], make_optimizer(model)):
        model(**batch_of((0, 3, 0), 0)).loss.backward()
        for layer in bank_layers(model, "default").values():
            A, B = layer.colora_A["default"].grad, layer.colora_B["default"].grad
            assert A[:2].any()
            assert B[:, :2].any()
            assert not A[2:].any()
            assert not B[:, 2:].any()
        model.zero_grad()


def test_a_bank_of_the_smaller_rank_is_trained_the_same():
    """Two tasks of rank 2 beside others, and a bank of rank 2 that has them alone; in float64."""
    ours = make_bank(torch.float64)
    torch.manual_seed(3)
    config = CoLoRAConfig(r=2, lora_alpha=2, tasks=["a", "d"], init_weights=False)
    small = get_peft_model(tiny_llama().to(torch.float64), config).train()
    for name, layer in bank_layers(ours, "default").items():
        other = bank_layers(small, "default")[name]
        other.colora_A["default"].data.copy_(layer.colora_A["default"].detach()[:2])
        other.colora_B["default"].data.copy_(layer.colora_B["default"].detach()[:, :2])
    for name in ("a", "d"):
        small.set_core(name, {key: one[:2, :2] for key, one in ours.core(name).items()})
    store_cores(ours, 3, ranks=RANKS)
    for model, places in ((ours, (0, 3)), (small, (0, 1))):
        optimizer = make_optimizer(model)
        for seed in range(4):
            tasks = tuple(places[one] for one in (0, 1, 1))
            with tasks_at_hand(model, torch.tensor(tasks), optimizer):
                model(**batch_of(tasks, seed)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    for name in ("a", "d"):
        first, second = small.core(name), ours.core(name)
        assert all(torch.allclose(first[key], second[key], rtol=1e-9, atol=1e-12) for key in first)
    for name, layer in bank_layers(small, "default").items():
        other = bank_layers(ours, "default")[name]
        assert torch.allclose(layer.colora_A["default"], other.colora_A["default"][:2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["ids", "set_task", "tokens"])
def test_answers_are_those_of_the_padded_cores(stored, how):
    whole, ours = make_bank().eval(), stored().eval()
    inputs, found = batch_of((0, 0, 0), 5)["input_ids"], []
    for model in (whole, ours):
        with torch.no_grad():
            for tasks in ([0, 1, 2], [5, 3, 4], [1, 1, 0]):
                if how == "ids":
                    found.append(model(inputs, task_ids=torch.tensor(tasks)).logits)
                elif how == "tokens":
                    found.append(model(inputs, task_ids=torch.tensor([tasks] * 6).T).logits)
                else:
                    model.set_task(model.tasks[tasks[0]])
                    found.append(model(inputs).logits)
    assert all(torch.equal(one, other) for one, other in zip(found[:3], found[3:], strict=True))


def test_a_row_has_the_bytes_of_its_own_rank():
    model = make_bank()
    table = store_cores(model, 3, ranks=RANKS).table
    layers = len(bank_layers(model, "default"))
    assert {name: table.widths[kind] for name, kind in zip(RANKS, table.kinds, strict=True)} == {
        name: layers * (3 * rank * rank + 1) for name, rank in RANKS.items()
    }
    assert [table.read(np.array([task])).shape[1] for task in range(6)] == [
        layers * (3 * rank * rank + 1) for rank in RANKS.values()
    ]


def test_tasks_of_a_rank_of_their_own_come_and_go(stored):
    model = stored()
    optimizer = make_optimizer(model)
    before = {name: model.core(name) for name in RANKS}
    model.add_tasks(["small"], init="a", rank=1)
    model.add_tasks(["large"], init="a", rank=4)
    model.add_tasks(["plain"])
    model.add_tasks(["mean"], init="mean", rank=2)
    key = next(iter(before["a"]))
    assert {name: len(model.core(name)[key]) for name in model.tasks} == RANKS | {
        "small": 1, "large": 4, "plain": RANK, "mean": 2
    }  # fmt: skip
    assert torch.equal(model.core("large")[key], resized_core(before["a"][key], 4))
    assert torch.equal(model.core("small")[key], before["a"][key][:1, :1])
    assert torch.equal(model.core("plain")[key], torch.eye(RANK))
    step(model, optimizer, (6, 7, 9), 0)
    model.remove_task("small")
    for name in RANKS:
        assert all(torch.equal(model.core(name)[key], value) for key, value in before[name].items())
    assert model.core("large")[key].shape == (4, 4)
    assert not torch.equal(model.core("large")[key], resized_core(before["a"][key], 4))
    step(model, optimizer, (6, 0, 1), 1)


def test_tasks_to_come_have_the_rank_of_the_bank_as_it_was_trained():
    model = make_bank()
    model.peft_config["default"].core_rank = 3
    store_cores(model, 3, ranks=RANKS)
    model.add_tasks(["new"])
    model.add_tasks(["turned"], init="rotated")
    assert {one.shape for one in model.core("new").values()} == {(3, 3)}
    for one in model.core("turned").values():
        assert torch.allclose(one @ one.T, torch.eye(3), atol=1e-5)
        assert not torch.equal(one, torch.eye(3))


def test_a_core_is_written_at_its_own_size(stored):
    model = stored()
    step(model, make_optimizer(model), STEPS[0], 0)
    for task in ("a", "c"):  # one at hand, one not
        core = {key: one + 1 for key, one in model.core(task).items()}
        model.set_core(task, core)
        assert all(torch.equal(core[key], one) for key, one in model.core(task).items())
    with pytest.raises(ConfigError, match=r"expected shape \(2, 2\), found \(5, 5\)"):
        model.set_core("a", model.core("b"))


def test_a_task_is_merged_into_the_base_from_a_store(stored):
    whole, ours = make_bank(torch.float64).eval(), stored(dtype=torch.float64).eval()
    inputs = batch_of((0, 0), 1)["input_ids"]
    with torch.no_grad():
        for task in ("c", "b"):
            expected = whole(inputs, task_ids=[task, task]).logits
            for model in (whole, ours):
                model.set_task(task)
                model.merge_adapter()
                assert torch.allclose(model(inputs).logits, expected)
                with pytest.raises(TaskIdError, match="is merged"):
                    model(inputs, task_ids=["a", "a"])
                model.unmerge_adapter()
            assert torch.allclose(ours(inputs, task_ids=["a", "a"]).logits, whole(inputs, task_ids=["a", "a"]).logits)


def test_tasks_are_held_on_the_model_for_gradients_of_ones_own(stored):
    model = stored(room=1)
    before = {name: model.core(name) for name in RANKS}
    stacks = {name: layer.colora_core["default"] for name, layer in bank_layers(model, "default").items()}
    with held_tasks(model, ["f", "b", "a"]):
        places = [bank_tuner(model).router.place("default", number) for number in (0, 1, 5)]
        assert places == [0, 1, 2]
        for place, name in enumerate("abf"):
            assert all(torch.equal(stacks[key][place], padded(one)) for key, one in before[name].items())
        loss = model(**batch_of((0, 1, 5), 0)).loss
        for slope in torch.autograd.grad(loss, list(stacks.values())):
            assert slope[1].any()
            assert not slope[0, 2:].any()
            assert not slope[2, :, 3:].any()
    with pytest.raises(TaskIdError, match="a backward pass outside"):
        model(**batch_of((0, 1), 0)).loss.backward()
    assert [core_rank(model, number) for number in range(6)] == list(RANKS.values())


def test_a_core_is_made_larger_with_its_moments(stored):
    """And trained further as one that was that large from the start, whose corner alone had moved."""
    model, whole = stored(), stored()
    optimizers = [make_optimizer(one) for one in (model, whole)]
    for one, optimizer in zip((model, whole), optimizers, strict=True):
        step(one, optimizer, (0, 1, 2), 0)
    store, before = stored_cores(model), model.core("a")
    store.set_rank(0, 4)
    assert all(torch.equal(resized_core(before[key], 4), one) for key, one in model.core("a").items())
    step(model, optimizers[0], (0, 1, 2), 1)
    step(whole, optimizers[1], (0, 1, 2), 1)
    for key, one in whole.core("a").items():
        assert not torch.equal(one, before[key])
        assert torch.equal(one, model.core("a")[key][:2, :2])
        assert model.core("a")[key][2:, 2:].any()
    for rank, fault in ((2, "cannot be made one of rank 2"), (6, "expected 1 to 5")):
        with pytest.raises(ConfigError, match=fault):
            store.set_rank(0, rank)
    assert core_rank(model, 0) == 4


def test_a_copy_keeps_the_sizes():
    model = make_bank()
    store_cores(model, 3, ranks=RANKS)
    other = copy.deepcopy(model)
    for one in (model, other):
        step(one, make_optimizer(one), STEPS[1], 1)
    for name in RANKS:
        assert all(torch.equal(one, other.core(name)[key]) for key, one in model.core(name).items())


def test_what_cannot_be_is_refused():
    model = make_bank()
    with pytest.raises(ConfigError, match="not zero beyond rank 1"):
        store_cores(model, 3, ranks={"a": 1})
    with pytest.raises(TaskIdError, match="unknown task 'x'"):
        store_cores(model, 3, ranks={"x": 1})
    with pytest.raises(ConfigError, match="expected 1 to 5, the rank of A and B"):
        store_cores(model, 3, ranks={"a": 6})
    with pytest.raises(ConfigError, match="kept in a store"):
        model.add_tasks(["new"], rank=2)
    assert model.tasks == list(RANKS)
    store_cores(model, 3, ranks=RANKS)
    for rank in (6, -1):
        with pytest.raises(ConfigError, match="expected 1 to 5"):
            model.add_tasks(["new"], rank=rank)
    assert model.tasks == list(RANKS)
    assert len(stored_cores(model)) == 6
    for rank in (0, 9, 2.0, True):
        with pytest.raises(ConfigError, match="core_rank: expected a whole number from 1 to r=5"):
            CoLoRAConfig(r=5, core_rank=rank)


def test_peft_saves_no_stacks_of_several_sizes(tmp_path):
    model = make_bank()
    store_cores(model, 3, ranks=RANKS)
    with pytest.raises(ConfigError, match=r"4 of 6 tasks have cores smaller than 5 × 5.*colora\.save_bank"):
        model.save_pretrained(tmp_path, save_embedding_layers=False)
