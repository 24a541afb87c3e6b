"""The tasks of a step, and what was measured of each, at a cost that goes by the tasks there are in it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["TaskLosses", "tasks_of_step"]


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


class TaskLosses:
    """Nats and tokens of each task that there were rows of, added up in the order in which they came."""

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}

    def add(self, tasks: Int[Tensor, " rows"], nats: Float[Tensor, " rows"], tokens: Int[Tensor, " rows"]) -> None:
        """Add rows: of each its task, the sum of its token losses, and how many tokens these are."""
        for task, loss, count in zip(tasks.tolist(), nats.double().tolist(), tokens.tolist(), strict=True):
            sums = self._sums.setdefault(task, [0.0, 0.0])
            sums[0] += loss
            sums[1] += count

    def of_all(self, device: torch.device) -> "TaskLosses":
        """Those of all processes together; to be called by each."""
        if not dist.is_initialized():
            return self
        own = torch.tensor([[task, *sums] for task, sums in self._sums.items()], dtype=torch.float64).view(-1, 3)
        sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(own)], device=device))
        longest = int(max(int(size) for size in sizes))
        padded = torch.zeros(longest, 3, dtype=torch.float64, device=device)
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        whole = TaskLosses()
        for rows, size in zip(found, sizes, strict=True):
            task, nats, tokens = rows[: int(size)].cpu().unbind(1)
            whole.add(task.long(), nats, tokens)
        return whole

    def of_first(self, device: torch.device) -> "TaskLosses":
        """Those of the first process, for all that have the same tasks; to be called by each."""
        if not dist.is_initialized() or not self._sums:
            return self
        first, tasks = TaskLosses(), sorted(self._sums)
        moved = torch.tensor([self._sums[task] for task in tasks], dtype=torch.float64, device=device)
        dist.broadcast(moved, 0)
        first._sums = dict(zip(tasks, moved.cpu().tolist(), strict=True))
        return first

    def by_name(self, names: Sequence[str]) -> dict[str, float]:
        """Nats per token of each task that has tokens, in the order of their ids."""
        return {names[task]: nats / tokens for task, (nats, tokens) in sorted(self._sums.items()) if tokens}
