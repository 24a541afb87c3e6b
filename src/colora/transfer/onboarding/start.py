"""Where a new task's core starts: of several candidates, the one under which its examples are likeliest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from colora.adapter.core_size import resized_core
from colora.adapter.model import bank_layers, bank_tuner
from colora.adapter.stored.access import core_rank
from colora.algebra import fresh_core
from colora.models.batching import device_of
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.models.modes import eval_mode, eval_mode_with_gradients
from colora.training.task_gradients import TaskGradients

__all__ = [
    "START_EXAMPLES",
    "Batches",
    "Start",
    "choose_start",
    "core_gradient",
    "evenly",
    "gradient_at_zero",
    "mean_nll",
    "mean_nlls",
]

NEIGHBOURS = 8  # tasks whose cores are tried; of more, those that look best by the gradient
ROWS_AT_ONCE = 16  # in a forward pass that looks at several tasks
START_EXAMPLES = 8  # that every candidate is tried on
SCALES = (0.3, 1.0)  # of the projected gradient, as a share of the mean norm of the bank's cores

Batches = Sequence[Mapping[str, Tensor]]
Core = dict[str, Tensor]


def evenly(count: int, most: int = START_EXAMPLES) -> list[int]:
    """At most so many of `count` places, at equal distances: a file is often sorted, by its labels for instance."""
    return [place * count // most for place in range(most)] if count > most else list(range(count))


@dataclass(frozen=True)
class Start:
    """The start that was chosen, and the token NLL of all candidates.

    Attributes:
        name: "identity", "mean", "gradient × SCALE", or "core of TASK".
        core: (r, r) for each layer.
        nll: nats per token of the new task's examples under each start that was tried, before any training.
    """

    name: str
    core: Core
    nll: dict[str, float]


def choose_start(
    model: PeftModel, task: str, batches: Batches, at_zero: Core, known: Sequence[str] | None = None
) -> Start:
    """Try candidates for the core of a task that has just been added to a bank, and write the best into it.

    Candidates are the identity, the mean of the others' cores, the cores of the tasks that seem nearest, and two
    lengths of minus the gradient at Λ = 0: steepest descent among all cores in the bank's own gauge, that in which the
    optimiser trains them.

    Args:
        model: with one active bank of at least two tasks, `task` among them; where its cores are in a store, with this
            one and the known ones held.
        batches: of `TaskCollator`; their `task_ids` are not looked at.
        at_zero: the gradient of the new task's loss by its core at Λ = 0, of `core_gradient` or `gradient_at_zero`.
        known: the other tasks that are looked at; by default all.
    """
    tuner = bank_tuner(model)
    names = tuner.tasks
    bank, index = tuner.active_adapters[0], names.index(task)
    known = [name for name in names if name != task] if known is None else known
    rank = core_rank(model, index)
    # Of larger cores than the new one's, what it can have of them: their leading corners, which are views.
    layers = bank_layers(model, bank).items()
    stacks = {name: resized_core(layer.colora_core[bank].detach(), rank) for name, layer in layers}
    at_zero = _resized(at_zero, rank)
    ids = {name: number for number, name in enumerate(names)}
    others = torch.tensor([tuner.router.place(bank, ids[name]) for name in known])
    mean = {name: stack[others.to(stack.device)].mean(0).clone() for name, stack in stacks.items()}
    near = _nearest(model, task, batches, stacks, mean, known)
    larger = [name for name in near if core_rank(model, ids[name]) > rank]
    starts: dict[str, Core] = {
        "identity": {name: fresh_core(stack.shape[-1]) for name, stack in stacks.items()},
        "mean": mean,
    }
    norms = torch.stack([stack[others.to(stack.device)].square().sum((1, 2)) for stack in stacks.values()])
    norm = float(norms.sum(0).sqrt().mean())
    length = float(torch.stack([slope.square().sum() for slope in at_zero.values()]).sum().sqrt()) or 1.0
    for scale in SCALES:
        starts[f"gradient × {scale:g}"] = {name: -scale * norm / length * slope for name, slope in at_zero.items()}
    starts |= {f"core of {name}": _resized(tuner.core(name), rank) for name in larger}
    near = [name for name in near if name not in larger]
    nll = {}
    for name, core in starts.items():
        tuner.set_core(task, core)
        nll[name] = mean_nll(model, batches, index)
    of_near = mean_nlls(model, batches, [ids[name] for name in near])
    nll |= {f"core of {name}": value for name, value in zip(near, of_near, strict=True)}
    best = min(nll, key=lambda name: nll[name] if math.isfinite(nll[name]) else math.inf)
    core = starts[best] if best in starts else _resized(tuner.core(best.removeprefix("core of ")), rank)
    tuner.set_core(task, core)
    return Start(best, core, nll)


def _nearest(
    model: PeftModel,
    task: str,
    batches: Batches,
    stacks: Mapping[str, Tensor],
    mean: Core,
    others: Sequence[str],
) -> list[str]:
    """The other tasks, of more than `NEIGHBOURS` those whose cores lie furthest down the gradient at the mean core."""
    if len(others) <= NEIGHBOURS:
        return list(others)
    slope = core_gradient(model, task, batches, mean)
    tuner, (bank,) = bank_tuner(model), model.active_adapters
    gain = torch.stack([((stacks[name] - mean[name]) * slope[name]).sum((1, 2)) for name in stacks]).sum(0)
    ids = {name: number for number, name in enumerate(tuner.tasks)}
    rows = torch.tensor([tuner.router.place(bank, ids[name]) for name in others])
    return [others[row] for row in gain[rows.to(gain.device)].argsort()[:NEIGHBOURS].tolist()]


def mean_nll(model: PeftModel, batches: Batches, index: int) -> float:
    """Nats per token of the batches' labels, all rows taken to be of task `index`."""
    return mean_nlls(model, batches, [index])[0]


@torch.no_grad()
def mean_nlls(model: PeftModel, batches: Batches, indices: Sequence[int]) -> list[float]:
    """`mean_nll` of each of several tasks; of small batches several tasks share a forward pass."""
    nats, tokens = torch.zeros(len(indices), dtype=torch.float64), 0
    with eval_mode(model):
        for batch in batches:
            tokens += int(label_tokens(batch["labels"], is_encoder_decoder(model)).sum())
            at_once = max(1, ROWS_AT_ONCE // len(batch["labels"]))
            for first in range(0, len(indices), at_once):
                parts = [_of_task(model, batch, index) for index in indices[first : first + at_once]]
                inputs = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
                nll = row_nll(model, inputs, torch.cat([labels for _, labels in parts])).view(len(parts), -1)
                nats[first : first + at_once] += nll.sum(1).cpu().double()  # some devices have no float64
    return (nats / max(tokens, 1)).tolist()


def gradient_at_zero(model: PeftModel, gradients: TaskGradients, index: int) -> Core:
    """The gradient of a task's loss by its core at Λ = 0 in each layer, s Bᵀ G Aᵀ.

    Args:
        gradients: G, with the task at `index`, taken at W0.
    """
    bank = model.active_adapters[0]
    slopes = {}
    for name, layer in bank_layers(model, bank).items():
        A, B = layer.colora_A[bank].detach(), layer.colora_B[bank].detach()
        left, right = (factor[index].to(A) for factor in gradients.factors[name])
        slopes[name] = layer.scaling[bank] * (B.mT @ left) @ (right @ A.mT)
    return slopes


def core_gradient(model: PeftModel, task: str, batches: Batches, core: Core) -> Core:
    """The gradient of `mean_nll` by a task's core in each layer, taken at `core`, which stays the task's core."""
    tuner = bank_tuner(model)
    tuner.set_core(task, core)
    index, bank = tuner.tasks.index(task), tuner.active_adapters[0]
    layers = bank_layers(model, bank)
    stacks, place = [layer.colora_core[bank] for layer in layers.values()], tuner.router.place(bank, index)
    total = [torch.zeros_like(stack[place]) for stack in stacks]
    count = sum(int(label_tokens(batch["labels"], is_encoder_decoder(model)).sum()) for batch in batches)
    with eval_mode_with_gradients(model, stacks):
        for batch in batches:
            inputs, labels = _of_task(model, batch, index)
            loss = row_nll(model, inputs, labels).sum() / max(count, 1)
            slopes = torch.autograd.grad(loss, stacks, materialize_grads=True)
            for sum_of_layer, slope in zip(total, slopes, strict=True):
                sum_of_layer += slope[place]
    return _resized(dict(zip(layers, total, strict=True)), core_rank(model, index))


def _resized(core: Core, rank: int) -> Core:
    return {name: resized_core(one, rank) for name, one in core.items()}


def _of_task(model: PeftModel, batch: Mapping[str, Tensor], index: int) -> tuple[dict[str, Tensor], Tensor]:
    device = device_of(model)
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    inputs["task_ids"] = torch.full_like(inputs["task_ids"], index)
    return inputs, inputs.pop("labels")
