"""Where a newcomer's core starts: of some that cost nothing, the one under which its examples are likeliest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_layers, bank_tuner
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.models.modes import eval_mode, eval_mode_with_gradients
from colora.training.task_gradients import TaskGradients

__all__ = ["Batches", "Start", "choose_start", "core_gradient", "gradient_at_zero", "mean_nll", "mean_nlls"]

NEIGHBOURS = 8  # tasks whose cores are tried; of more, those that look best by the gradient
ROWS_AT_ONCE = 16  # in a forward pass that looks at several tasks
SCALES = (0.3, 1.0)  # of the projected gradient, as a share of the mean norm of the bank's cores

Batches = Sequence[Mapping[str, Tensor]]
Core = dict[str, Tensor]


@dataclass(frozen=True)
class Start:
    """A start and what the others were worth.

    Attributes:
        name: "identity", "mean", "gradient × SCALE", or "core of TASK".
        core: (r, r) for each layer.
        nll: nats per token of the newcomer's examples under each start that was tried, before any training.
    """

    name: str
    core: Core
    nll: dict[str, float]


def choose_start(model: PeftModel, task: str, batches: Batches, at_zero: Core) -> Start:
    """Try the starts of a newcomer that has just been added to a bank, and write the best into its core.

    Tried are the identity, the mean of the others' cores, the cores of the tasks that seem nearest, and two lengths of
    minus the gradient at Λ = 0: steepest descent among all cores in the bank's own gauge, that in which the optimiser
    trains them.

    Args:
        model: with one active bank of at least two tasks, `task` among them.
        batches: of `TaskCollator`; their `task_ids` are not looked at.
        at_zero: the gradient of the newcomer's loss by its core at Λ = 0, of `core_gradient` or `gradient_at_zero`.
    """
    tuner = bank_tuner(model)
    others = [name for name in tuner.tasks if name != task]
    stacks = {name: layer.colora_core[tuner.active_adapters[0]].detach() for name, layer in bank_layers(
        model, tuner.active_adapters[0]).items()}  # fmt: skip
    own = tuner.tasks.index(task)
    rows = torch.tensor([place for place in range(len(tuner.tasks)) if place != own])
    mean = {name: stack[rows.to(stack.device)].mean(0).clone() for name, stack in stacks.items()}

    near = others
    if len(others) > NEIGHBOURS:
        slope = core_gradient(model, task, batches, mean)
        gain = torch.stack([((stacks[name] - mean[name]) * slope[name]).sum((1, 2)) for name in stacks]).sum(0)
        order = gain[rows.to(gain.device)].argsort()[:NEIGHBOURS]
        near = [others[place] for place in order.tolist()]
    norm = float(torch.stack([stack[rows.to(stack.device)].square().sum((1, 2)) for stack in stacks.values()])
                 .sum(0).sqrt().mean())  # fmt: skip
    length = float(torch.stack([one.square().sum() for one in at_zero.values()]).sum().sqrt()) or 1.0
    own_cores: dict[str, Core] = {
        "identity": {name: torch.eye(stack.shape[-1]) for name, stack in stacks.items()},
        "mean": mean,
    } | {
        f"gradient × {scale:g}": {name: -scale * norm / length * one for name, one in at_zero.items()}
        for scale in SCALES
    }
    nll = {}
    for name, core in own_cores.items():
        tuner.set_core(task, core)
        nll[name] = mean_nll(model, batches, own)
    theirs = mean_nlls(model, batches, [tuner.tasks.index(name) for name in near])
    nll |= {f"core of {name}": value for name, value in zip(near, theirs, strict=True)}
    best = min(nll, key=lambda name: nll[name] if math.isfinite(nll[name]) else math.inf)
    core = own_cores[best] if best in own_cores else tuner.core(best.removeprefix("core of "))
    tuner.set_core(task, core)
    return Start(best, core, nll)


def mean_nll(model: PeftModel, batches: Batches, task: int) -> float:
    """Nats per token of the batches' labels, all rows taken to be of this task."""
    return mean_nlls(model, batches, [task])[0]


@torch.no_grad()
def mean_nlls(model: PeftModel, batches: Batches, tasks: Sequence[int]) -> list[float]:
    """`mean_nll` of each of several tasks; of small batches several tasks share a forward pass."""
    nats, tokens = torch.zeros(len(tasks), dtype=torch.float64), 0
    with eval_mode(model):
        for batch in batches:
            tokens += int(label_tokens(batch["labels"], is_encoder_decoder(model)).sum())
            at_once = max(1, ROWS_AT_ONCE // len(batch["labels"]))
            for first in range(0, len(tasks), at_once):
                some = tasks[first : first + at_once]
                parts = [_of_task(model, batch, task) for task in some]
                inputs = {name: torch.cat([one[name] for one, _ in parts]) for name in parts[0][0]}
                found = row_nll(model, inputs, torch.cat([labels for _, labels in parts])).view(len(some), -1)
                nats[first : first + at_once] += found.sum(1).cpu().double()  # some devices have no float64
    return (nats / max(tokens, 1)).tolist()


def gradient_at_zero(model: PeftModel, gradients: TaskGradients, place: int) -> Core:
    """The gradient of a task's loss by its core at Λ = 0 in each layer, s Bᵀ G Aᵀ.

    Args:
        gradients: G, with the task at `place`, taken at W0.
    """
    bank = model.active_adapters[0]
    found = {}
    for name, layer in bank_layers(model, bank).items():
        A, B = layer.colora_A[bank].detach(), layer.colora_B[bank].detach()
        left, right = (one[place].to(A) for one in gradients.factors[name])
        found[name] = layer.scaling[bank] * (B.mT @ left) @ (right @ A.mT)
    return found


def core_gradient(model: PeftModel, task: str, batches: Batches, core: Core) -> Core:
    """The gradient of `mean_nll` by a task's core in each layer, taken at `core`, which is left in its place."""
    tuner = bank_tuner(model)
    tuner.set_core(task, core)
    own, bank = tuner.tasks.index(task), tuner.active_adapters[0]
    layers = bank_layers(model, bank)
    stacks = [layer.colora_core[bank] for layer in layers.values()]
    total = [torch.zeros_like(stack[own]) for stack in stacks]
    count = sum(int(label_tokens(batch["labels"], is_encoder_decoder(model)).sum()) for batch in batches)
    with eval_mode_with_gradients(model, stacks):
        for batch in batches:
            inputs, labels = _of_task(model, batch, own)
            loss = row_nll(model, inputs, labels).sum() / max(count, 1)
            slopes = torch.autograd.grad(loss, stacks, materialize_grads=True)
            for one, slope in zip(total, slopes, strict=True):
                one += slope[own]
    return dict(zip(layers, total, strict=True))


def _of_task(model: PeftModel, batch: Mapping[str, Tensor], task: int) -> tuple[dict[str, Any], Tensor]:
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    inputs["task_ids"] = torch.full_like(inputs["task_ids"], task)
    return inputs, inputs.pop("labels")
