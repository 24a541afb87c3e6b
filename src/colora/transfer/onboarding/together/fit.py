"""Training the cores of several new tasks in the same passes, each as `fit_core` would train it alone.

A step has rows of every task, each in the order that it has alone; each task's loss is the mean over its own tokens,
and their sum is what is differentiated. Adam works number by number, so what is in one slot never meets another's. A
task whose loss or core becomes NaN or infinite is given up, with its reason, and the others go on.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from colora.models.modes import training_mode
from colora.tasks.mixing import TaskMixture
from colora.training.loop.optimizer import TaskAdamW, parameter_groups
from colora.transfer.onboarding.fit import BETAS, Settings, trainable, warmup_steps
from colora.transfer.onboarding.together.newcomer import Newcomer
from colora.transfer.onboarding.together.passes import Line, Passes
from colora.transfer.onboarding.together.slots import Slots

__all__ = ["fit_together"]


def fit_together(
    slots: Slots,
    passes: Passes,
    newcomers: Sequence[Newcomer],
    settings: Settings,
    stepped: Callable[[int], None] = lambda tasks: None,
) -> None:
    """Train the cores in the first slots, from where they are.

    Nothing else in the model changes; modes and random state are restored.

    Args:
        newcomers: the tasks in the slots; those with a fault rest, and one that diverges gets a fault.
        stepped: told after each step how many tasks took part.
    """
    model, device = slots.model, passes.device
    generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with trainable(model, 0), generators, training_mode(model):
        torch.manual_seed(settings.seed)  # for dropout
        _steps(slots, passes, newcomers, settings, stepped)


def _steps(
    slots: Slots,
    passes: Passes,
    newcomers: Sequence[Newcomer],
    settings: Settings,
    stepped: Callable[[int], None],
) -> None:
    lr, proximal = settings.rates(slots.rank)
    optimizer = TaskAdamW(parameter_groups(slots.model, 0.0, lr), betas=BETAS)
    optimizer.zero_grad()
    (cores,) = [group for group in optimizer.param_groups if group["role"] == "core"]
    starts = [core.detach().clone() for core in cores["params"]] if proximal else []
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup_steps(settings), settings.steps)
    live = [slot for slot, one in enumerate(newcomers) if one.fault is None]
    orders = {
        slot: iter(
            TaskMixture([len(newcomers[slot].rows)], batch_size=settings.rows, steps=settings.steps, seed=settings.seed)
        )
        for slot in live
    }
    for step in range(settings.steps):
        lines = [Line(slot, newcomers[slot].rows[next(orders[slot])]) for slot in live for _ in range(settings.rows)]
        if not lines:
            return
        with torch.enable_grad():
            losses = _backward(passes, lines, len(newcomers))
        slots.clear_gradients()
        for slot in live:
            if not math.isfinite(losses[slot]):
                newcomers[slot].fault = f"the loss became {losses[slot]} in step {step + 1}: lower lr"
        live = [slot for slot in live if newcomers[slot].fault is None]
        optimizer.expect(torch.tensor(live, dtype=torch.long))
        optimizer.step()
        if proximal:
            with torch.no_grad():
                index = torch.tensor(live, device=passes.device)
                for core, start in zip(cores["params"], starts, strict=True):
                    core[index] = core[index].lerp(start[index], proximal * cores["lr"] / lr)
        scheduler.step()
        optimizer.zero_grad()
        stepped(len(live))
    finite = torch.isfinite(slots.read(live)).all(1).tolist() if live else []
    for slot, fine in zip(live, finite, strict=True):
        if not fine:
            newcomers[slot].fault = f"the core became NaN or infinite in step {settings.steps}: lower lr"


def _backward(passes: Passes, lines: Sequence[Line], slots: int) -> list[float]:
    """Add up the gradients of each task's nats per token, in as many passes as it takes; these nats, by slot."""
    tokens = passes.tokens(lines, slots)
    totals = torch.zeros(slots, dtype=torch.float64)
    for batch in passes.step_batches(lines):
        index = torch.tensor([line.slot for line in batch], device=tokens.device)
        losses: Tensor = passes.row_nll(batch) / tokens[index]
        fine = torch.isfinite(losses)
        if fine.any():
            losses[fine].sum().backward()  # what is not finite would make the gradients of its row alone so
        totals.index_add_(0, index.cpu(), losses.detach().cpu().double())
    return totals.tolist()
