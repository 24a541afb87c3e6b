"""`TaskAdamW` against one `torch.optim.AdamW` per task."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from colora import CoLoRAConfig
from colora.adapter.tasklist import task_uids
from colora.training.loop.checkpoint import load_state, save_state
from colora.training.loop.optimizer import TaskAdamW, parameter_groups
from tests.helpers.tiny import tiny_llama

STATE = ("step", "exp_avg", "exp_avg_sq")


class Bank:
    """A shared matrix and stacks of cores, with gradients drawn for chosen tasks."""

    def __init__(self, tasks=5, layers=2, rank=3, dtype=torch.float64, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.shared = nn.Parameter(self.draw(4, 6, dtype=dtype))
        self.cores = [nn.Parameter(self.draw(tasks, rank, rank, dtype=dtype)) for _ in range(layers)]

    def draw(self, *shape, dtype=torch.float64):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def optimizer(self, **kwargs):
        groups = [
            {"params": [self.shared], "lr": 1e-2, "weight_decay": 0.1, "role": "shared"},
            {"params": self.cores, "lr": 3e-2, "weight_decay": 0.2, "role": "core"},
        ]
        return TaskAdamW(groups, **kwargs)

    def set_gradients(self, present):
        self.shared.grad = self.draw(*self.shared.shape, dtype=self.shared.dtype)
        for core in self.cores:
            core.grad = torch.zeros_like(core)
            for task in present:
                core.grad[task] = self.draw(*core.shape[1:], dtype=core.dtype)

    def values(self):
        return [self.shared.detach().clone(), *(core.detach().clone() for core in self.cores)]


def presences(tasks, steps, seed=0):
    """Random sets of present tasks, among them an empty one and one of all tasks."""
    generator = torch.Generator().manual_seed(seed)
    sets = [torch.rand(tasks, generator=generator).lt(0.4).nonzero().flatten().tolist() for _ in range(steps)]
    sets[3], sets[5] = [], list(range(tasks))
    return sets


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95)])
def test_every_task_takes_the_steps_of_an_adamw_of_its_own(betas):
    bank = Bank()
    ours = bank.optimizer(betas=betas)
    copies = [[nn.Parameter(core.detach()[task].clone()) for core in bank.cores] for task in range(5)]
    theirs = [torch.optim.AdamW(own, lr=3e-2, weight_decay=0.2, betas=betas) for own in copies]
    for number, present in enumerate(presences(5, 15)):
        for optimizer in (ours, *theirs):
            optimizer.param_groups[-1]["lr"] = 3e-2 * (1 - number / 20)
        bank.set_gradients(present)
        ours.step()
        for task in present:
            for own, core in zip(copies[task], bank.cores, strict=True):
                own.grad = core.grad[task].clone()
            theirs[task].step()
    for task in range(5):
        for own, core in zip(copies[task], bank.cores, strict=True):
            torch.testing.assert_close(core.detach()[task], own.detach(), rtol=0, atol=1e-12)
            state = theirs[task].state[own]
            assert ours.state[core]["step"][task] == state["step"]
            for key in STATE[1:]:
                torch.testing.assert_close(ours.state[core][key][task], state[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_agrees_with_an_adamw_per_task_to_its_rounding(dtype):
    bank = Bank(dtype=dtype)
    ours = bank.optimizer()
    own = nn.Parameter(bank.cores[0].detach()[2].clone())
    theirs = torch.optim.AdamW([own], lr=3e-2, weight_decay=0.2)
    for present in ([2, 3], [1], [2], [2, 4]):
        bank.set_gradients(present)
        ours.step()
        if 2 in present:
            own.grad = bank.cores[0].grad[2].clone()
            theirs.step()
    assert bank.cores[0].dtype == dtype
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(bank.cores[0].detach()[2], own.detach(), **close)


def test_absent_tasks_do_not_move_by_one_bit_and_keep_their_state():
    bank = Bank()
    optimizer = bank.optimizer()
    bank.set_gradients(range(5))
    optimizer.step()
    before = bank.values()[1:]
    states = [{key: optimizer.state[core][key].clone() for key in STATE} for core in bank.cores]
    for _ in range(10):
        bank.set_gradients([1, 3])
        optimizer.step()
    absent, present = [0, 2, 4], [1, 3]
    for core, old, state in zip(bank.cores, before, states, strict=True):
        assert torch.equal(core.detach()[absent], old[absent])
        assert (core.detach()[present] != old[present]).all()
        for key in STATE:
            assert torch.equal(optimizer.state[core][key][absent], state[key][absent])
        assert optimizer.state[core]["step"].tolist() == [1, 11, 1, 11, 1]


def test_stock_adamw_moves_absent_tasks_even_without_weight_decay():
    bank = Bank()
    optimizer = torch.optim.AdamW(bank.cores, lr=3e-2, weight_decay=0.0)
    bank.set_gradients(range(5))
    optimizer.step()
    before = bank.cores[0].detach().clone()
    bank.set_gradients([1, 3])
    optimizer.step()
    assert (bank.cores[0].detach()[[0, 2, 4]] != before[[0, 2, 4]]).all()


def test_an_absent_task_with_a_stale_gradient_object_of_zeros_stays_absent():
    bank = Bank()
    optimizer = bank.optimizer()
    bank.set_gradients([])
    before = bank.values()
    optimizer.step()
    assert same(bank.values()[1:], before[1:])
    assert not torch.equal(bank.shared.detach(), before[0])


def test_a_task_is_present_in_all_layers_if_one_of_them_has_a_gradient():
    bank = Bank()
    optimizer = bank.optimizer()
    bank.set_gradients([2])
    bank.cores[1].grad.zero_()
    optimizer.step()
    assert [optimizer.state[core]["step"].tolist() for core in bank.cores] == [[0, 0, 1, 0, 0]] * 2


def test_the_shared_group_takes_exactly_the_steps_of_torchs_adamw():
    bank = Bank(dtype=torch.float32)
    ours = bank.optimizer()
    twin = nn.Parameter(bank.shared.detach().clone())
    theirs = torch.optim.AdamW([twin], lr=1e-2, weight_decay=0.1)
    for present in presences(5, 12):
        bank.set_gradients(present)
        twin.grad = bank.shared.grad.clone()
        ours.step()
        theirs.step()
    assert torch.equal(bank.shared, twin)
    assert all(torch.equal(ours.state[bank.shared][key], theirs.state[twin][key]) for key in STATE)


def test_cores_and_shared_factors_have_learning_rates_of_their_own():
    model = get_peft_model(tiny_llama(), CoLoRAConfig(r=4, tasks=["a", "b"], init_weights=False))
    groups = parameter_groups(model, lr=1e-3, core_lr=5e-2, weight_decay=0.3, core_weight_decay=0.7)
    assert [(g["role"], g["lr"], g["weight_decay"]) for g in groups] == [("shared", 1e-3, 0.3), ("core", 5e-2, 0.7)]
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
    assert {p.shape[1:] for p in groups[1]["params"]} == {(4, 4)}
    optimizer = TaskAdamW([{**group, "weight_decay": 0.0} for group in groups])
    before = [[p.detach().clone() for p in g["params"]] for g in groups]
    for parameter in (p for g in groups for p in g["params"]):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for group, olds, lr in zip(groups, before, (1e-3, 5e-2), strict=True):
        for parameter, old in zip(group["params"], olds, strict=True):
            # Adam's first step is the learning rate, whatever the gradient
            torch.testing.assert_close(old - parameter.detach(), torch.full_like(old, lr), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("frozen", ["shared", "core"])
def test_a_frozen_role_moves_neither_parameters_nor_moments_and_thaws(frozen):
    bank = Bank()
    optimizer = bank.optimizer()
    bank.set_gradients([0, 1])
    optimizer.step()
    resting = [bank.shared] if frozen == "shared" else bank.cores
    moving = bank.cores if frozen == "shared" else [bank.shared]
    optimizer.freeze({frozen})
    values = {p: p.detach().clone() for p in [*resting, *moving]}
    states = {p: {key: optimizer.state[p][key].clone() for key in STATE} for p in resting}
    for _ in range(3):
        bank.set_gradients([0, 2])
        gradients = [p.grad.clone() for p in resting]
        optimizer.step()
        assert same([p.grad for p in resting], gradients)
    for parameter in resting:
        assert torch.equal(parameter, values[parameter])
        assert all(torch.equal(optimizer.state[parameter][key], states[parameter][key]) for key in STATE)
    assert not any(torch.equal(parameter, values[parameter]) for parameter in moving)
    optimizer.freeze(())
    bank.set_gradients([0, 2])
    optimizer.step()
    assert not any(torch.equal(parameter, values[parameter]) for parameter in resting)


@pytest.mark.parametrize("through_files", [False, True])
def test_state_saved_in_the_middle_of_a_run_continues_bit_for_bit(tmp_path, through_files):
    steps = presences(5, 12)
    bank = Bank(dtype=torch.float32)
    optimizer = bank.optimizer()
    for number, present in enumerate(steps):
        if number == 6:
            state = copy.deepcopy(optimizer.state_dict())
            twin, generator = copy.deepcopy(bank), bank.generator.get_state()
        bank.set_gradients(present)
        optimizer.step()
    if through_files:
        save_state(tmp_path, "optimizer", state)
        state = load_state(tmp_path, "optimizer")
    twin.generator = torch.Generator()
    twin.generator.set_state(generator)
    resumed = twin.optimizer()
    resumed.load_state_dict(state)
    for present in steps[6:]:
        twin.set_gradients(present)
        resumed.step()
    assert same(bank.values(), twin.values())
    for ours, theirs in zip([bank.shared, *bank.cores], [twin.shared, *twin.cores], strict=True):
        assert all(torch.equal(optimizer.state[ours][key], resumed.state[theirs][key]) for key in STATE)


def test_a_state_that_was_kept_on_the_cpu_goes_to_where_the_cores_are():
    """As a run is resumed on an accelerator; here the other device is torch's own without memory."""
    bank = Bank(dtype=torch.float32)
    optimizer = bank.optimizer()
    bank.set_gradients([0, 2])
    optimizer.step()
    elsewhere = Bank(dtype=torch.float32)
    elsewhere.shared = nn.Parameter(elsewhere.shared.to("meta"))
    elsewhere.cores = [nn.Parameter(core.to("meta")) for core in elsewhere.cores]
    resumed = elsewhere.optimizer()
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {resumed.state[core][key].device.type for core in elsewhere.cores for key in STATE} == {"meta"}


# ---- a bank whose tasks change between steps --------------------------------------------------------------------


def tiny_bank(*names):
    model = get_peft_model(tiny_llama(layers=1), CoLoRAConfig(r=3, tasks=list(names), init_weights=False))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "colora_core" in name:
                rows = {task: torch.randn(3, 3, generator=generator) for task in "abc"}
                parameter.copy_(torch.stack([rows.get(task, torch.eye(3)) for task in names]))
    return model, TaskAdamW(parameter_groups(model, lr=1e-2, core_lr=3e-2, core_weight_decay=0.1))


def step_with(model, optimizer, present, seed):
    """One step with gradients that depend on the name of a task only, not on its place."""
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        if parameter.ndim == 3:
            parameter.grad = torch.zeros_like(parameter)
            draws = {task: torch.randn(3, 3, generator=generator) for task in "abcdef"}
            for row, task in enumerate(model.tasks):
                if task in present:
                    parameter.grad[row] = draws[task]
        else:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_tasks_added_and_removed_between_steps_leave_the_others_bit_for_bit():
    still, still_optimizer = tiny_bank("a", "b", "c")
    changing, changing_optimizer = tiny_bank("a", "b", "c")
    changes = {
        2: lambda bank: bank.add_tasks(["d", "e"]),
        3: lambda bank: bank.remove_task("a"),
        5: lambda bank: bank.remove_task("d"),
        6: lambda bank: bank.add_tasks(["a"], init="mean"),
        8: lambda bank: bank.remove_task("e"),
    }
    for step, present in enumerate(["abc", "ac", "bcd", "bd", "de", "ce", "ab", "abc", "bc", "ab"]):
        if step in changes:
            changes[step](changing)
        step_with(still, still_optimizer, set(present) & set("bc"), step)
        step_with(changing, changing_optimizer, present, step)
    assert changing.tasks == ["b", "c", "a"]
    for name in "bc":
        ours, theirs = changing.core(name), still.core(name)
        assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)
    core = next(p for p in changing.parameters() if p.requires_grad and p.ndim == 3)
    state = changing_optimizer.state_dict()["state"]
    steps = next(entry["step"] for entry in state.values() if entry["exp_avg"].shape == core.shape)
    assert steps.tolist() == [7, 6, 3]  # the "a" that came back is a new task


def test_all_tasks_may_be_replaced_between_two_steps():
    model, optimizer = tiny_bank("a", "b")
    step_with(model, optimizer, "ab", 0)
    model.add_tasks(["c"])
    model.remove_task("a")
    model.remove_task("b")
    before = model.core("c")
    step_with(model, optimizer, "c", 1)
    core = next(p for p in model.parameters() if p.requires_grad and p.ndim == 3)
    assert optimizer.state[core]["step"].tolist() == [1]
    for layer, value in model.core("c").items():
        # a fresh task: Adam's first step is the learning rate; and the decay
        moved = before[layer] * (1 - 3e-2 * 0.1) - value
        torch.testing.assert_close(moved.abs(), torch.full((3, 3), 3e-2), rtol=1e-3, atol=1e-6)


def test_a_loaded_state_follows_tasks_that_are_added_and_removed_after_loading():
    model, optimizer = tiny_bank("a", "b", "c")
    for step, present in enumerate(["abc", "c", "bc"]):
        step_with(model, optimizer, present, step)
    fresh = TaskAdamW(parameter_groups(model, lr=1e-2, core_lr=3e-2))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    model.add_tasks(["d"])
    model.remove_task("a")
    core = next(p for p in model.parameters() if p.requires_grad and p.ndim == 3)
    assert len(task_uids(core)) == 3
    step_with(model, fresh, "d", 3)
    assert fresh.state[core]["step"].tolist() == [2, 3, 1]


def test_a_task_present_in_any_micro_batch_is_present_in_the_step():
    def steps_after(batches):
        model = get_peft_model(tiny_llama(), CoLoRAConfig(r=4, tasks=["a", "b", "c", "d"], init_weights=False)).train()
        optimizer = TaskAdamW(parameter_groups(model, lr=1e-2, core_lr=2e-2))
        for ids in batches:
            tokens = torch.arange(10, 18).expand(len(ids), -1) + torch.tensor(ids)[:, None]
            model(input_ids=tokens, labels=tokens, task_ids=torch.tensor(ids)).loss.backward()
        optimizer.step()
        core = next(p for p in model.parameters() if p.requires_grad and p.ndim == 3)
        return optimizer.state[core]["step"].tolist()

    assert steps_after([[0, 2]]) == [1, 0, 1, 0]
    assert steps_after([[0, 2], [2, 3], [3, 3]]) == [1, 0, 1, 1]
