"""`StoredCores`: the cores of a bank in a table, and on the model those of the tasks at hand.

The stacks of the layers, (room, r, r), hold the cores of a few tasks. Bringing others writes those that were trained
back, with what an optimiser keeps of them, and puts the others' in their place. So a step costs what its tasks cost,
however many there are, and the parameters keep their shape, as optimisers and data parallelism want.

A row of the table is a task: of each layer, one layer after the other, the core; then, in the same order, the first
moments, the second moments, and the number of steps.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from colora.adapter.stored.moments import MOMENTS, KeepsMoments
from colora.adapter.stored.starts import Starts
from colora.adapter.stored.table import CoreTable, chunks
from colora.errors import ConfigError, TaskIdError

__all__ = ["StoredCores"]


class StoredCores:
    """The cores of K tasks, most of them not on the model; for one thread.

    Args:
        stacks: by layer, the parameters (K, r, r) that hold all cores now; afterwards they hold those at hand.
        room: the most tasks at hand; where it is K or more, all tasks always are.
        folder: where the table is, in a file; None: in memory.
        starts: of K tasks, whose cores are these, whatever the stacks hold; by default those of the stacks are kept.

    Attributes:
        here: the tasks at hand, in the order of the stacks; ascending.
        changed: for each task, whether its row may have changed since `changed` was last cleared.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(
        self,
        stacks: Mapping[str, nn.Parameter],
        room: int,
        folder: Path | None = None,
        starts: Starts | None = None,
    ) -> None:
        self.stacks = dict(stacks)
        first = next(iter(self.stacks.values()))
        tasks = len(first) if starts is None else len(starts)
        self.room = max(1, room)
        self._optimizer: KeepsMoments | None = None
        self._sizes = [stack[0].numel() for stack in self.stacks.values()]
        self._numbers = sum(self._sizes)
        dtype, width = np.float64 if first.dtype == torch.float64 else np.float32, self._numbers * 3 + len(self._sizes)
        self.table = CoreTable(width, tasks, dtype, folder)
        self._starts = starts or Starts([stack.shape[-1] for stack in self.stacks.values()], tasks)
        self._moments_of = np.zeros(tasks, dtype=np.int32)  # the optimiser's number
        self._optimizers = 0
        self.changed = np.full(tasks, starts is None)
        self.here: Int[np.ndarray, " n"] = np.arange(0)
        self._held = False  # whether they are being trained, and stay
        if starts is None:
            self._take_over(tasks)
        self._resize()
        self._versions = self._now()  # when the stacks were last equal to the table
        self._watch()

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, object]:
        self.put_back()
        return self.__dict__ | {"_optimizer": None, "_held": False}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.forget_here()
        self._watch()

    # ---- tasks at hand ----------------------------------------------------------------------------------------------

    def bring(self, tasks: Int[np.ndarray, " n"]) -> None:
        """Have these tasks at hand, and no others unless there is room for all.

        Args:
            tasks: ids, in any order.

        Raises:
            TaskIdError: more tasks than room, or those at hand are being trained.
            CheckpointError: the table cannot be written or read.
        """
        wanted = np.unique(np.asarray(tasks, dtype=np.int64))
        if self.room >= len(self):
            wanted = np.arange(len(self))
        if np.array_equal(wanted, self.here):
            return
        if len(wanted) > self.room:
            raise TaskIdError(f"{len(wanted)} tasks at once, expected at most {self.room}: the room of `store_cores`")
        if self._held:
            raise TaskIdError(
                "other tasks are asked for while a step's are being trained: end the `tasks_at_hand` block first"
            )
        if any(stack.grad is not None and bool(stack.grad.any()) for stack in self.stacks.values()):
            raise TaskIdError(
                "other tasks are asked for while gradients of those at hand wait: optimizer.step() and "
                "optimizer.zero_grad() first, or zero_grad() alone to drop them"
            )
        self.put_back()
        self._put(torch.from_numpy(self.rows(wanted)))
        self.here = wanted

    def hold(self, tasks: Int[np.ndarray, " n"]) -> None:
        """Have these tasks at hand to be trained, until `release`. Raises as `bring`."""
        self.release()
        self.bring(tasks)
        self._held = True

    def release(self) -> None:
        """Their training is over; others may take their place."""
        self._held = False

    def use(self, optimizer: object) -> None:
        """Keep this optimiser's moments with the cores; those of another one before it count no more.

        Raises:
            ConfigError: it keeps no moments task by task, or keeps some of these cores from elsewhere.
        """
        if optimizer is self._optimizer:
            return
        if not isinstance(optimizer, KeepsMoments):
            raise ConfigError(f"expected a colora.TaskAdamW for cores in a store, found a {type(optimizer).__name__}")
        if optimizer.has_state(self.stacks.values()):
            raise ConfigError(
                "this optimizer has moments of these cores from before they were in the store, or from a state_dict: "
                "make a new one"
            )
        self.put_back()
        self._optimizer = optimizer
        self._optimizers += 1
        self.forget_here()

    def put_back(self) -> None:
        """Write the cores at hand to the table if they have changed. Raises CheckpointError if that fails."""
        if self._versions != self._now():
            self.table.write(self.here, self._taken().numpy())
            self._moments_of[self.here] = self._optimizers
            self.changed[self.here] = True
            self._versions = self._now()

    def forget_here(self) -> None:
        """Have no tasks at hand; what was not put back is lost."""
        self.here, self._versions = np.arange(0), self._now()

    def positions(self, ids: Int[Tensor, " *rows"]) -> Int[Tensor, " *rows"]:
        """Where the cores of these tasks are in the stacks; outside of training those that are not at hand are brought.

        Raises:
            TaskIdError: one is not at hand, and gradients are wanted.
        """
        wanted = ids.detach().cpu().numpy()
        absent = np.setdiff1d(wanted, self.here)
        if absent.size and torch.is_grad_enabled() and any(stack.requires_grad for stack in self.stacks.values()):
            raise TaskIdError(
                f"the core of task {int(absent[0])} is in the store and not at hand: train inside "
                "`with colora.tasks_at_hand(model, task_ids, optimizer):`, or evaluate inside torch.no_grad()"
            )
        if absent.size:
            self.bring(wanted)
        return torch.from_numpy(np.asarray(np.searchsorted(self.here, wanted))).to(ids.device).view(ids.shape)

    def _now(self) -> list[int]:
        """A number for each stack that grows when it changes."""
        return [stack._version for stack in self.stacks.values()]

    def _watch(self) -> None:
        """Refuse gradients that come when no tasks are held: they may be those of tasks that have left."""

        def check(grad: Tensor) -> None:
            if not self._held:
                raise TaskIdError(
                    "a backward pass outside of `tasks_at_hand`: its cores may have left the model; run forward and "
                    "backward pass and the step inside one block"
                )

        for stack in self.stacks.values():
            if stack.requires_grad:
                stack.register_hook(check)

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
        values = [core[name].detach().cpu().flatten().double() for name in self.stacks]
        row[0, : self._numbers] = torch.cat(values).numpy()
        self.table.write(np.array([task]), row)
        self.changed[task] = True
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
        self.changed[tasks] = True

    def all_cores(self) -> dict[str, Float[Tensor, "K r r"]]:
        """The cores of all tasks, by layer, on the CPU."""
        found = [np.empty((len(self), size), dtype=self.table.dtype) for size in self._sizes]
        ends = np.cumsum(self._sizes)[:-1]
        for some, rows in self.core_rows():
            for layer, values in zip(found, np.split(rows, ends, axis=1), strict=True):
                layer[some] = values
        pairs = zip(self.stacks.items(), found, strict=True)
        return {name: torch.from_numpy(one).view(-1, *stack.shape[1:]).to(stack.dtype) for (name, stack), one in pairs}

    def core_rows(self) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n numbers"]]]:
        """All tasks and their cores, of each layer one after the other, some tasks at a time; as they are now."""
        self.put_back()
        for some in chunks(len(self)):
            yield some, self.rows(some)[:, : self._numbers]

    def whole_state(self, keys: Iterable[str], end: str) -> dict[str, Tensor]:
        """`all_cores` by the names that they have in a model's state, which end so; of these keys alone."""
        cores = self.all_cores()
        names = {
            key: key.removeprefix("base_model.model.").removesuffix(f".{end}") for key in keys if key.endswith(end)
        }
        found = {key: cores[name] for key, name in names.items() if name in cores}
        if len(found) != len(cores):
            raise ConfigError(f"{len(found)} of the {len(cores)} layers with cores in a store were found in the state")
        return found

    # ---- which tasks there are ---------------------------------------------------------------------------------------

    def add(self, tasks: int, init: int | str = "identity", rotation: float = 0.0) -> None:
        """Add tasks, which take no room before they are trained.

        Args:
            tasks: how many.
            init: where they start: "identity"; "rotated", each at a rotation of its own; "mean", at the mean core; or
                at the core of another task, by its id.
            rotation: share of the directions that are rotated.
        """
        row = None
        if init == "mean":
            row = torch.from_numpy(sum(rows.sum(0, dtype=np.float64) for _, rows in self.core_rows()) / len(self))
        elif isinstance(init, int):
            row = torch.cat([one.double().cpu().flatten() for one in self.core(init).values()])
        self.put_back()
        self.table.append(tasks)
        self._starts.add(tasks, row, rotation if init == "rotated" else None)
        self._moments_of = np.pad(self._moments_of, (0, tasks))
        self.changed = np.pad(self.changed, (0, tasks))
        self._resize()

    def remove(self, task: int) -> None:
        """Remove a task; those after it move up by one id."""
        self.put_back()
        self.table.remove(task)
        self._starts.remove(task)
        self._moments_of, self.changed = np.delete(self._moments_of, task), np.delete(self.changed, task)
        self._resize()

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _take_over(self, tasks: int) -> None:
        """Put what the stacks hold into the table, and keep room for a few of them there."""
        for some in chunks(tasks):
            rows = np.zeros((len(some), self.table.width), dtype=self.table.dtype)
            values = [stack.detach()[torch.from_numpy(some)].cpu().flatten(1) for stack in self.stacks.values()]
            rows[:, : self._numbers] = torch.cat(values, 1).double().numpy()
            self.table.write(some, rows)

    @torch.inference_mode(mode=False)
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
        if (new := np.flatnonzero(~self.table.written(tasks))).size:
            rows[new, : self._numbers] = self._starts.rows(tasks[new])
        rows[self._moments_of[tasks] != self._optimizers, self._numbers :] = 0
        return rows

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _put(self, rows: Float[Tensor, "n width"]) -> None:
        """Write rows into the first places of the stacks, and of what the optimiser keeps."""
        for views, values in zip(self._views(len(rows)), self._parts(rows), strict=True):
            torch._foreach_copy_(views, [one.view_as(view) for one, view in zip(values, views, strict=True)])
        self._versions = self._now()

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
