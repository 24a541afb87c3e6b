"""The spectral start of a run: from the tasks' gradients at the base model to a bank that training goes on from.

What each layer begins with stands in `colora.training.starts.spectral_layer`.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_layers
from colora.common.device import training_device
from colora.common.text import listed
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks
from colora.training.config import SPECTRAL, RunConfig
from colora.training.starts.spectral_layer import layer_start
from colora.training.task_gradients import task_gradients

__all__ = [
    "ROWS",
    "STEPS_TRIED",
    "StartLosses",
    "spectral_start",
    "start_cost",
    "start_run",
]

ROWS, BATCH = 32, 16
"""Examples of each task that the start looks at, the first of its training split, and how many at once."""
STEPS_TRIED = tuple(2.0**-power for power in range(11))
"""Values of b. Steps are tried from the largest; beyond the best one the loss only rises again."""
DIRECTIONS, FEWEST = 1024, 4
"""Of all tasks' gradients in a layer, and of one task's at least."""
SHOWN = 12


@dataclass(frozen=True)
class StartLosses:
    """What a start did before any training.

    Attributes:
        names: the tasks.
        before, after: nats per token of each task on the examples looked at, at W0 and at the start, float64 (K,).
        b: the scale of B; 0 where the start is at W0.
    """

    names: list[str]
    before: Tensor
    after: Tensor
    b: float

    def line(self) -> str:
        """One line for the user."""
        if not self.b:
            return f"the gradients' directions, at the base model: {float(self.before.mean()):.3f} nats per token"
        pairs = zip(self.names, self.before.tolist(), self.after.tolist(), strict=True)
        shown = [f"{name} {one:.3f} → {two:.3f}" for name, one, two in pairs]
        mean = f"mean {float(self.before.mean()):.3f} → {float(self.after.mean()):.3f}"
        return f"b = {self.b:g}, nats per token before and at the start: {mean}, {listed(shown, SHOWN)}"


def start_cost(config: RunConfig, tasks: int) -> list[str]:
    """What a run's start costs, a line for the user; none if nothing."""
    kind = config.adapter.init_weights
    if kind not in SPECTRAL:
        return []
    tried = f", then at most {len(STEPS_TRIED) + 2} times the forward passes" if kind == "spectral" else ""
    return [
        f"{kind} start: {tasks} forward and backward passes before the first step, one for each task over at most "
        f"{ROWS} of its examples{tried}"
    ]


def start_run(
    config: RunConfig,
    bank: PeftModel,
    data: EncodedTasks,
    names: list[str],
    pad_token_id: int,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Begin a run's bank as `adapter.init_weights` says; does nothing unless that is a spectral start.

    Of several processes each does the same, on its own accelerator.
    """
    kind = config.adapter.init_weights
    if kind not in SPECTRAL:
        return
    device = training_device(config.training.device)
    if device is not None:
        bank.to(torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0"))))
    found = spectral_start(bank, data, names, pad_token_id, kind)
    log(f"{kind} start: {found.line()}")


def spectral_start(model: PeftModel, data: EncodedTasks, names: list[str], pad_token_id: int, kind: str) -> StartLosses:
    """Write a spectral start into a new bank. The same every time: nothing is drawn.

    Takes a forward and a backward pass over the examples of each task and, for "spectral", a forward pass for each
    step tried. Keeps at most 2 r (d_in + d_out) numbers for each task and layer while it computes.

    Args:
        model: with one active bank of K tasks, B = 0.
        data: the tasks' examples, in the order of the bank's tasks.
        names: the tasks.
        pad_token_id: what fills shorter rows.
        kind: one of `SPECTRAL`.

    Raises:
        ConfigError: a task has no examples, or its loss or gradient is NaN or infinite.
    """
    bank = model.active_adapters[0]
    layers = bank_layers(model, bank)
    r = next(iter(layers.values())).colora_A[bank].shape[0]
    # What a task's gradient has beyond twice r directions is hardly in the shared spaces in any case; and where tasks
    # are many, fewer of each suffice to find these spaces, at a cost that grows with the square of them all.
    rank = min(2 * r, max(FEWEST, DIRECTIONS // len(names)))
    gradients = task_gradients(model, data, names, pad_token_id, rows=ROWS, batch=BATCH, rank=rank)
    directions: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, layer in layers.items():
            B, A = gradients.factors[name]
            found = layer_start(A, B, r, kind)
            for parameter, value in zip(
                (layer.colora_A[bank], layer.colora_B[bank], layer.colora_core[bank]), found, strict=True
            ):
                parameter.copy_(value)
            directions[name] = layer.colora_B[bank].clone()
    batches = _batches(data, pad_token_id)
    if kind != "spectral":
        losses = _losses(model, batches)
        return StartLosses(list(names), losses, losses, 0.0)

    def move(b: float) -> Tensor:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.colora_B[bank].copy_(b * directions[name])
        return _losses(model, batches)

    before = move(0.0)
    best, after = 0.0, before
    for b in STEPS_TRIED:
        losses = move(b)
        if bool((losses <= before).all()) and bool(losses.mean() < after.mean()):
            best, after = b, losses
        elif best:
            break
    move(best)
    return StartLosses(list(names), before, after, best)


def _batches(data: EncodedTasks, pad_token_id: int) -> list[list[dict[str, Tensor]]]:
    """The examples that the start looks at, for each task in batches."""
    collate, found = TaskCollator(pad_token_id), []
    for offset, size in zip(data.offsets, data.sizes, strict=True):
        items = [data[offset + row] for row in range(min(ROWS, size))]
        found.append([collate(items[at : at + BATCH]) for at in range(0, len(items), BATCH)])
    return found


@torch.no_grad()
def _losses(model: PeftModel, batches: list[list[dict[str, Tensor]]]) -> Tensor:
    """Nats per token of each task, float64 (K,); infinite where a step went so far that they are no number."""
    device, encoder_decoder, training = next(model.parameters()).device, is_encoder_decoder(model), model.training
    model.eval()
    found = []
    for own in batches:
        nats, tokens = 0.0, 0
        for batch in own:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = inputs.pop("labels")
            nats += float(row_nll(model, inputs, labels).double().sum())
            tokens += int(label_tokens(labels, encoder_decoder).sum())
        found.append(nats / tokens)
    model.train(training)
    return torch.tensor(found, dtype=torch.float64).nan_to_num(nan=math.inf)
