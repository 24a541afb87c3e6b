"""What each task would change first: the gradients of its loss by the weights of the adapted layers, in low rank.

For task k and a layer y = W x, the gradient G_k = Σ_t δ_t x_tᵀ is a sum over tokens, δ_t being the gradient by y. It
is reduced to its leading `rank` directions, G_k ≈ B_k A_k, one layer at a time as backward reaches it: a matrix as
large as a weight is held for one layer only. The stack over tasks has the form that
`colora.algebra.joint_diagonalisation` takes, so that the gradients' own shared factors and cores follow from it.

In a new bank B = 0, so these are the gradients at W0. In a trained one they are at W0 + s · B Λ_k A.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from colora.adapter.layer import CoLoRALinear
from colora.adapter.model import bank_layers
from colora.common.progress import progress_bar
from colora.errors import ConfigError
from colora.models.batching import device_of
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.models.modes import eval_mode_with_gradients
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks

__all__ = ["RANK", "TaskGradients", "reduced", "task_gradients"]

RANK = 32
"""Directions kept of a task's gradient in a layer."""

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TaskGradients:
    """Gradients of K tasks in all adapted layers.

    Attributes:
        names: the tasks.
        factors: of each layer B (K, d_out, rank), with orthonormal columns, and A (K, rank, d_in), in float32, or
            float64 of such a model, on the CPU: G_k ≈ B_k A_k. Where a gradient has fewer directions, the rest of both
            is zero.
        loss: nats per token of each task, (K,).
    """

    names: list[str]
    factors: dict[str, tuple[Tensor, Tensor]]
    loss: Tensor


def task_gradients(
    model: PeftModel,
    data: EncodedTasks,
    names: Sequence[str],
    pad_token_id: int,
    *,
    task_index: Sequence[int] | None = None,
    rows: int = 16,
    batch: int = 16,
    rank: int = RANK,
) -> TaskGradients:
    """The gradients of all tasks, each of its mean nats per token over its first `rows` examples.

    Of several tasks there is a progress bar, if standard error is a terminal.

    Args:
        model: with one active bank; nothing in it is changed.
        data: the tasks' examples, in the order of `names`.
        pad_token_id: what fills shorter rows.
        task_index: index in the bank of the core that each task is measured with; by default the ids in `data`.
        rows: examples of a task. batch: rows at once.
        rank: directions kept.

    Raises:
        ConfigError: if a task has no examples, or its loss or gradient is NaN or infinite.
    """
    if empty := [name for name, size in zip(names, data.sizes, strict=True) if not size]:
        raise ConfigError(f"gradients need training examples, but these tasks have none: {', '.join(empty)}")
    layers = bank_layers(model, model.active_adapters[0])
    collate = TaskCollator(pad_token_id)
    by_task: list[dict[str, Factors]] = []
    losses: list[float] = []
    with progress_bar(shown=len(names) > 1) as bar:
        counter = bar.add_task("gradients", total=len(names))
        for number, (name, offset, size) in enumerate(zip(names, data.offsets, data.sizes, strict=True)):
            examples = [data[offset + row] for row in range(min(rows, size))]
            batches = [collate(examples[start : start + batch]) for start in range(0, len(examples), batch)]
            if task_index is not None:
                for part in batches:
                    part["task_ids"].fill_(task_index[number])
            factors, loss = _gradient(model, layers, batches, rank)
            if not math.isfinite(loss) or not all(torch.isfinite(A).all() for _, A in factors.values()):
                raise ConfigError(f"task {name!r}: its loss or its gradient is NaN or infinite")
            by_task.append(factors)
            losses.append(loss)
            bar.advance(counter)
    stacks = {
        layer: (
            torch.stack([factors[layer][0] for factors in by_task]),
            torch.stack([factors[layer][1] for factors in by_task]),
        )
        for layer in layers
    }
    return TaskGradients(list(names), stacks, torch.tensor(losses))


def _gradient(
    model: PeftModel, layers: Mapping[str, CoLoRALinear], batches: Sequence[dict[str, Tensor]], rank: int
) -> tuple[dict[str, Factors], float]:
    """The gradient of the mean nats per token over all batches, in each layer, and these nats."""
    encoder_decoder, device = is_encoder_decoder(model), device_of(model)
    tokens = sum(int(label_tokens(batch["labels"], encoder_decoder).sum()) for batch in batches)
    # Backward goes to every B, and so passes the output of every layer.
    ends = [layer.colora_B[model.active_adapters[0]] for layer in layers.values()]
    # What backward does not reach, an expert that no token went to for one, has no gradient.
    factors = {
        name: (torch.zeros(layer.out_features, rank), torch.zeros(rank, layer.in_features))
        for name, layer in layers.items()
    }
    total = 0.0
    with eval_mode_with_gradients(model, ends), _watched(layers, factors, rank):
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = inputs.pop("labels")
            loss = row_nll(model, inputs, labels).sum() / tokens
            torch.autograd.grad(loss, ends, allow_unused=True)  # no .grad is touched
            total += float(loss.detach())
    return factors, total


def reduced(deltas: Tensor, inputs: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading directions of G = deltasᵀ inputs, as B (d_out, rank) with orthonormal columns and A (rank, d_in).

    By randomised subspace iteration (Halko, Martinsson and Tropp, arXiv:0909.4061), the same every time. G itself is
    never formed: products with its two factors cost less where texts are shorter than layers are wide. Where the rank
    is more than the tokens or the layer have, zeros fill it up.

    Args:
        deltas: (tokens, d_out). inputs: (tokens, d_in).
    """
    q = min(rank, deltas.shape[1], *inputs.shape)
    start = torch.randn(inputs.shape[1], q, generator=torch.Generator().manual_seed(0)).to(inputs)
    basis = torch.linalg.qr(deltas.mT @ (inputs @ start)).Q
    for _ in range(2):
        other = torch.linalg.qr(inputs.mT @ (deltas @ basis)).Q
        basis = torch.linalg.qr(deltas.mT @ (inputs @ other)).Q
    A = (deltas @ basis).mT @ inputs
    return F.pad(basis, (0, rank - q)), F.pad(A, (0, 0, 0, rank - q))


@contextmanager
def _watched(layers: Mapping[str, CoLoRALinear], factors: dict[str, Factors], rank: int) -> Iterator[None]:
    """Inside, each layer adds its weight's gradient to `factors` as soon as backward has reached it."""

    def watch(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2)

        def backward(gradient: Tensor) -> None:
            deltas = gradient.flatten(0, -2)
            real = deltas.any(1)  # padding has none
            work = torch.promote_types(deltas.dtype, torch.float32)
            deltas, inputs = deltas[real].to(work), x[real].to(work)
            B, A = (factor.to(deltas) for factor in factors[name])
            if A.any():  # of an earlier batch, or the layer is used twice: B A is so many more tokens
                deltas, inputs = torch.cat([deltas, B.mT]), torch.cat([inputs, A])
            B, A = reduced(deltas, inputs, rank)
            factors[name] = B.cpu(), A.cpu()

        output.register_hook(backward)

    handles = [layer.register_forward_hook(partial(watch, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
