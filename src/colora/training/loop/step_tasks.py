"""The tasks of a step, and what was measured of each, at a cost that goes by the tasks there are in it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["losses_by_task", "tasks_of_step"]


def tasks_of_step(ids: Sequence[Int[Tensor, " rows"]], device: torch.device) -> Int[Tensor, " n"]:
    """The tasks of all micro-batches and processes, ascending; each process has equally many rows.

    Args:
        ids: of the rows of each micro-batch of this process.
        device: where they are.
    """
    rows = torch.cat(list(ids)) if ids else torch.zeros(0, dtype=torch.long, device=device)
    if dist.is_initialized():
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows)
        rows = torch.cat(gathered)
    return rows.unique()


def losses_by_task(sums: Float[Tensor, "2 K"], names: Sequence[str]) -> dict[str, float]:
    """Nats per token by task, of those that have tokens; `sums` are nats and tokens."""
    tasks = sums[1].nonzero().squeeze(1)
    losses = (sums[0, tasks] / sums[1, tasks]).tolist()
    return {names[task]: loss for task, loss in zip(tasks.tolist(), losses, strict=True)}
