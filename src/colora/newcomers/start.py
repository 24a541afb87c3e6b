"""Where a newcomer's core starts: of some that cost nothing, the one under which its examples are likeliest."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_layers, bank_tuner
from colora.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.similarity.still import still

__all__ = ["Batches", "Start", "choose_start", "core_gradient", "mean_nll"]

NEIGHBOURS = 8  # tasks whose cores are tried; of more, those that look best by the gradient
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


def choose_start(model: PeftModel, task: str, batches: Batches) -> Start:
    """Try the starts of a newcomer that has just been added to a bank, and write the best into its core.

    Tried are the identity, the mean of the others' cores, the cores of the tasks that seem nearest, and minus the
    gradient of the loss by the core at Λ = 0, s Bᵀ G Aᵀ with G the newcomer's gradient at W0: steepest descent among
    all cores in the bank's own gauge, that in which the optimiser trains them.

    Args:
        model: with one active bank of at least two tasks, `task` among them.
        batches: of `TaskCollator`; their `task_ids` are not looked at.
    """
    tuner = bank_tuner(model)
    others = [name for name in tuner.tasks if name != task]
    stacks = {name: layer.colora_core[tuner.active_adapters[0]].detach() for name, layer in bank_layers(
        model, tuner.active_adapters[0]).items()}  # fmt: skip
    own = tuner.tasks.index(task)
    rows = torch.tensor([place for place in range(len(tuner.tasks)) if place != own])
    mean = {name: stack[rows.to(stack.device)].mean(0).clone() for name, stack in stacks.items()}

    def nll_of(core: Core) -> float:
        tuner.set_core(task, core)
        return mean_nll(model, batches, own)

    starts: dict[str, Callable[[], Core]] = {
        "identity": lambda: {name: torch.eye(stack.shape[-1]) for name, stack in stacks.items()},
        "mean": lambda: mean,
    }
    near = others
    if len(others) > NEIGHBOURS:
        slope = core_gradient(model, task, batches, mean)
        gain = torch.stack([((stacks[name] - mean[name]) * slope[name]).sum((1, 2)) for name in stacks]).sum(0)
        order = gain[rows.to(gain.device)].argsort()[:NEIGHBOURS]
        near = [others[place] for place in order.tolist()]
    starts |= {f"core of {name}": (lambda name=name: tuner.core(name)) for name in near}  # type: ignore[misc]
    at_zero = core_gradient(model, task, batches, {name: torch.zeros_like(core) for name, core in mean.items()})
    norm = float(torch.stack([stack[rows.to(stack.device)].square().sum((1, 2)) for stack in stacks.values()])
                 .sum(0).sqrt().mean())  # fmt: skip
    length = float(torch.stack([one.square().sum() for one in at_zero.values()]).sum().sqrt()) or 1.0
    for scale in SCALES:
        step = scale * norm / length
        starts[f"gradient × {scale:g}"] = lambda step=step: {name: -step * one for name, one in at_zero.items()}  # type: ignore[misc]
    nll = {name: nll_of(make()) for name, make in starts.items()}
    best = min(nll, key=lambda name: nll[name] if math.isfinite(nll[name]) else math.inf)
    core = starts[best]()
    tuner.set_core(task, core)
    return Start(best, core, nll)


@torch.no_grad()
def mean_nll(model: PeftModel, batches: Batches, task: int) -> float:
    """Nats per token of the batches' labels, all rows taken to be of this task."""
    nats, tokens = torch.zeros((), dtype=torch.float64), 0
    with still(model):
        for batch in batches:
            inputs, labels = _of_task(model, batch, task)
            nats += row_nll(model, inputs, labels).sum().cpu().double()  # some devices have no float64
            tokens += int(label_tokens(labels, is_encoder_decoder(model)).sum())
    return float(nats) / max(tokens, 1)


def core_gradient(model: PeftModel, task: str, batches: Batches, core: Core) -> Core:
    """The gradient of `mean_nll` by a task's core in each layer, taken at `core`, which is left in its place."""
    tuner = bank_tuner(model)
    tuner.set_core(task, core)
    own, bank = tuner.tasks.index(task), tuner.active_adapters[0]
    layers = bank_layers(model, bank)
    stacks = [layer.colora_core[bank] for layer in layers.values()]
    total = [torch.zeros_like(stack[own]) for stack in stacks]
    count = sum(int(label_tokens(batch["labels"], is_encoder_decoder(model)).sum()) for batch in batches)
    with still(model, stacks), torch.enable_grad():
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
