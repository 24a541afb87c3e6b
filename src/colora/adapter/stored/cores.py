"""`StoredCores`: the cores of a bank in a table, and on the model those of the tasks at hand.

The stacks of the layers, (room, r, r), hold the cores of a few tasks. Bringing others writes those that were trained
back, with what an optimiser keeps of them, and puts the others' in their place. So a step costs what its tasks cost,
however many there are, and the parameters keep their shape, as optimisers and data parallelism want.

A row of the table is a task: of each layer, one layer after the other, the core; then, in the same order, the first
moments, the second moments, and the number of steps.
"""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from colora.adapter.core_start import rotated_cores
from colora.adapter.stored.table import CoreTable
from colora.algebra import fresh_core
from colora.errors import TaskIdError

__all__ = ["KeepsMoments", "StoredCores"]

MOMENTS = ("exp_avg", "exp_avg_sq")
ROTATED = -1  # in place of the number of a start


class KeepsMoments(Protocol):
    """An optimiser with a state for each row of a stack of cores."""

    def core_state(self, cores: Tensor) -> dict[str, Tensor]:
        """Of a stack (n, r, r): "exp_avg" and "exp_avg_sq", (n, r, r), and "step", (n,); they may be written to."""


class StoredCores:
    """The cores of K tasks, most of them not on the model.

    Args:
        stacks: by layer, the parameters (K, r, r) that hold all cores now; afterwards they hold those at hand.
        room: the most tasks at hand; where it is K or more, all tasks always are.
        folder: where the table is, in a file; None: in memory.

    Attributes:
        here: the tasks at hand, in the order of the stacks; ascending.
        changed: for each task, whether it was brought to be trained since `changed` was last cleared.
        ever_changed: the same since the beginning.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(self, stacks: Mapping[str, nn.Parameter], room: int, folder: Path | None = None) -> None:
        self.stacks = dict(stacks)
        first = next(iter(self.stacks.values()))
        tasks = first.shape[0]
        self.room = max(1, room)
        self._optimizer: KeepsMoments | None = None
        self._sizes = [stack[0].numel() for stack in self.stacks.values()]
        self._numbers = sum(self._sizes)
        dtype = np.float64 if first.dtype == torch.float64 else np.float32
        self.table = CoreTable(self._numbers * 3 + len(self._sizes), tasks, dtype, folder)
        identity = [fresh_core(stack.shape[-1], torch.float64).flatten() for stack in self.stacks.values()]
        self._starts = [torch.cat(identity)]  # cores of tasks that have no row yet
        self._start_of = np.zeros(tasks, dtype=np.int16)
        self._serial, self._next = np.arange(tasks, dtype=np.int32), tasks  # stays with a task, and is no other's
        self._seed, self._rotation = torch.initial_seed(), 0.0  # of rotated starts
        self._moments_of = np.zeros(tasks, dtype=np.int16)  # the optimiser's number
        self._optimizers = 0
        self.changed, self.ever_changed = np.zeros((2, tasks), dtype=bool)
        self.here: Int[np.ndarray, " n"] = np.arange(0)
        self._trained = False  # whether those at hand may have changed
        self._take_over(tasks)

    def __len__(self) -> int:
        return len(self.table)

    # ---- tasks at hand ----------------------------------------------------------------------------------------------

    def bring(self, tasks: Int[np.ndarray, " n"], *, to_train: bool = False) -> None:
        """Have these tasks at hand, and no others unless there is room for all.

        Args:
            tasks: ids, in any order.
            to_train: whether their cores may change; they are then written back when others are brought.

        Raises:
            TaskIdError: more tasks than room, or the gradients of the tasks at hand have not been used yet.
            CheckpointError: the table cannot be written or read.
        """
        wanted = np.unique(np.asarray(tasks, dtype=np.int64))
        if self.room >= len(self):
            wanted = np.arange(len(self))
        if to_train:
            self.changed[wanted] = self.ever_changed[wanted] = True
        if np.array_equal(wanted, self.here):
            self._trained |= to_train
            return
        if len(wanted) > self.room:
            raise TaskIdError(f"{len(wanted)} tasks at once, expected at most {self.room}: the room of `store_cores`")
        if any(stack.grad is not None for stack in self.stacks.values()):
            raise TaskIdError(
                "other tasks are asked for while gradients of cores wait: call optimizer.step() and zero_grad() first"
            )
        self.put_back()
        self._put(torch.from_numpy(self.rows(wanted)))
        self.here, self._trained = wanted, to_train

    def use(self, optimizer: KeepsMoments) -> None:
        """Keep this optimiser's moments with the cores; those of another one before it count no more."""
        if optimizer is not self._optimizer:
            self.put_back()
            self._optimizer = optimizer
            self._optimizers += 1
            self.forget_here()

    def put_back(self) -> None:
        """Write the cores at hand that may have changed to the table. Raises CheckpointError if that fails."""
        if self._trained:
            self.table.write(self.here, self._taken().numpy())
            self._moments_of[self.here] = self._optimizers
            self._trained = False

    def forget_here(self) -> None:
        """Have no tasks at hand; what was not put back is lost."""
        self.here, self._trained = np.arange(0), False

    def positions(self, ids: Int[Tensor, " *rows"]) -> Int[Tensor, " *rows"]:
        """Where the cores of these tasks are in the stacks; outside of training those that are not at hand are brought.

        Raises:
            TaskIdError: one is not at hand, and gradients are wanted.
        """
        wanted = ids.detach().cpu().numpy()
        absent = np.setdiff1d(wanted, self.here)
        if absent.size and torch.is_grad_enabled():
            raise TaskIdError(
                f"the core of task {int(absent[0])} is in the store and not at hand: train inside "
                "`with model.tasks_at_hand(task_ids, optimizer):`, or evaluate inside torch.no_grad()"
            )
        if absent.size:
            self.bring(wanted)
        found = np.asarray(np.searchsorted(self.here, wanted))
        return torch.from_numpy(found).to(ids.device).view(ids.shape)

    # ---- single tasks -----------------------------------------------------------------------------------------------

    def core(self, task: int) -> dict[str, Tensor]:
        """A task's core in each layer, (r, r), as it is now."""
        position = np.flatnonzero(self.here == task)
        if position.size:
            return {name: stack.detach()[int(position[0])].clone() for name, stack in self.stacks.items()}
        values = torch.from_numpy(self.rows(np.array([task]))[0, : self._numbers]).split(self._sizes)
        pairs = zip(self.stacks.items(), values, strict=True)
        return {name: value.view(stack.shape[1:]).to(stack) for (name, stack), value in pairs}

    def set_core(self, task: int, core: Mapping[str, Tensor]) -> None:
        """Write a task's core; what an optimiser keeps of it stays. Raises CheckpointError if it cannot be written."""
        self.put_back()
        row = self.rows(np.array([task]))
        row[0, : self._numbers] = torch.cat([core[name].detach().cpu().flatten() for name in self.stacks]).numpy()
        self.table.write(np.array([task]), row)
        self.changed[task] = self.ever_changed[task] = True
        self._put(torch.from_numpy(self.rows(self.here)))

    def set_rows(self, tasks: Int[np.ndarray, " n"], rows: Float[np.ndarray, "n width"]) -> None:
        """Write whole rows of the table, with the moments of the optimiser in use; no tasks are at hand then.

        Raises:
            ValueError, IndexError: they do not fit the table; CheckpointError: they cannot be written.
        """
        if rows.shape != (len(tasks), self.table.width):
            raise ValueError(f"expected rows of shape {(len(tasks), self.table.width)}, found {rows.shape}")
        self.forget_here()
        self.table.write(tasks, rows)
        self._moments_of[tasks] = self._optimizers
        self.changed[tasks] = self.ever_changed[tasks] = True

    def all_cores(self) -> dict[str, Float[Tensor, "K r r"]]:
        """The cores of all tasks, by layer, on the CPU."""
        self.put_back()
        found = [np.empty((len(self), size), dtype=self.table.dtype) for size in self._sizes]
        ends = np.cumsum(self._sizes)[:-1]
        for some in _chunks(len(self)):
            for layer, values in zip(found, np.split(self.rows(some)[:, : self._numbers], ends, axis=1), strict=True):
                layer[some] = values
        pairs = zip(self.stacks.items(), found, strict=True)
        return {name: torch.from_numpy(one).view(-1, *stack.shape[1:]).to(stack.dtype) for (name, stack), one in pairs}

    def whole_state(self, keys: Container[str], end: str) -> dict[str, Tensor]:
        """`all_cores` by the names that they have in a model's state, which end so; of these keys alone."""
        by_key = {f"base_model.model.{name}.{end}": one for name, one in self.all_cores().items()}
        return {key: one for key, one in by_key.items() if key in keys}

    # ---- which tasks there are ---------------------------------------------------------------------------------------

    def add(self, tasks: int, init: int | str = "identity", rotation: float = 0.0) -> None:
        """Add tasks, which take no room before they are trained.

        Args:
            tasks: how many.
            init: where they start: "identity"; "rotated", each at a rotation of its own; "mean", at the mean core; or
                at the core of another task, by its id.
            rotation: share of the directions that are rotated.
        """
        start = 0
        if init == "rotated":
            start, self._rotation = ROTATED, rotation
        elif init == "mean":
            start = self._new_start(torch.cat([one.double().mean(0).flatten() for one in self.all_cores().values()]))
        elif isinstance(init, int):
            start = self._new_start(torch.cat([one.double().cpu().flatten() for one in self.core(init).values()]))
        self.put_back()
        self.table.append(tasks)
        self._start_of = np.concatenate([self._start_of, np.full(tasks, start, dtype=np.int16)])
        self._serial = np.concatenate([self._serial, self._next + np.arange(tasks, dtype=np.int32)])
        self._next += tasks
        self._moments_of = np.pad(self._moments_of, (0, tasks))
        self.changed, self.ever_changed = (np.pad(one, (0, tasks)) for one in (self.changed, self.ever_changed))
        self._resize()

    def remove(self, task: int) -> None:
        """Remove a task; those after it move up by one id."""
        self.put_back()
        self.table.remove(task)
        for name in ("_start_of", "_serial", "_moments_of", "changed", "ever_changed"):
            setattr(self, name, np.delete(getattr(self, name), task))
        self._resize()

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _take_over(self, tasks: int) -> None:
        """Put what the stacks hold into the table, and keep room for a few of them there."""
        values = torch.cat([stack.detach().cpu().flatten(1) for stack in self.stacks.values()], 1).numpy()
        for some in _chunks(tasks):
            rows = np.zeros((len(some), self.table.width), dtype=self.table.dtype)
            rows[:, : self._numbers] = values[some]
            self.table.write(some, rows)
        self._resize()

    def _resize(self) -> None:
        """Give the stacks as many rows as there may be tasks at hand; none are at hand then."""
        self.forget_here()
        rows = min(self.room, len(self))
        for stack in self.stacks.values():
            if stack.shape[0] != rows:
                stack.grad = None  # its shape must be that of the data at all times
                stack.data = stack.data.new_zeros(rows, *stack.shape[1:])
                stack.colora_task_uids = list(range(rows))  # type: ignore[attr-defined]

    def rows(self, tasks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n width"]:
        """Rows of the table; where there are none yet, the task's start, and moments of the optimiser in use alone."""
        rows = self.table.read(tasks)
        for number in np.flatnonzero(~self.table.written(tasks)):
            rows[number, : self._numbers] = self._start(int(tasks[number]))
        rows[self._moments_of[tasks] != self._optimizers, self._numbers :] = 0
        return rows

    def _start(self, task: int) -> Float[np.ndarray, " numbers"]:
        """The core of a task that was never written, of all layers."""
        if self._start_of[task] != ROTATED:
            return self._starts[self._start_of[task]].numpy()
        generator = torch.Generator().manual_seed((self._seed + 0x9E3779B9 * (int(self._serial[task]) + 1)) % 2**63)
        ranks = [stack.shape[-1] for stack in self.stacks.values()]
        if len(set(ranks)) == 1:  # one decomposition for all layers
            return rotated_cores(len(ranks), ranks[0], self._rotation, generator).flatten().numpy()
        return torch.cat([rotated_cores(1, rank, self._rotation, generator).flatten() for rank in ranks]).numpy()

    def _new_start(self, values: Float[Tensor, " numbers"]) -> int:
        self._starts.append(values.to(torch.float64))
        return len(self._starts) - 1

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _put(self, rows: Float[Tensor, "n width"]) -> None:
        """Write rows into the first places of the stacks, and of what the optimiser keeps."""
        for views, values in zip(self._views(len(rows)), self._parts(rows), strict=True):
            torch._foreach_copy_(views, [one.view_as(view) for one, view in zip(values, views, strict=True)])

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _taken(self) -> Float[Tensor, "n width"]:
        """The rows of the tasks at hand as they are now."""
        rows = torch.from_numpy(self.rows(self.here))  # without an optimiser its moments stay
        for views, values in zip(self._views(len(rows)), self._parts(rows), strict=True):
            torch._foreach_copy_([one.view_as(view) for one, view in zip(values, views, strict=True)], views)
        return rows

    def _views(self, tasks: int) -> list[list[Tensor]]:
        """What rows of the table are made of on the model: cores, and with an optimiser both moments and steps."""
        found = [[stack.detach()[:tasks] for stack in self.stacks.values()]]
        if self._optimizer is not None:
            states = [self._optimizer.core_state(stack) for stack in self.stacks.values()]
            found += [[state[name][:tasks] for state in states] for name in (*MOMENTS, "step")]
        return found

    def _parts(self, rows: Float[Tensor, "n width"]) -> list[tuple[Tensor, ...]]:
        """Columns of rows in the order of `_views`, layer by layer."""
        values, first, second, steps = rows.split([self._numbers] * 3 + [len(self._sizes)], 1)
        found = [part.split(self._sizes, 1) for part in (values, first, second)]
        if self._optimizer is None:
            return found[:1]
        return [*found, steps.split(1, 1)]


def _chunks(tasks: int, size: int = 1024) -> Iterator[Int[np.ndarray, " n"]]:
    """The ids of all tasks, some at a time."""
    for begin in range(0, tasks, size):
        yield np.arange(begin, min(begin + size, tasks))
