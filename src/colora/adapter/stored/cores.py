"""`StoredCores`: the cores of a bank in a table, and on the model those of the tasks at hand.

The stacks of the layers, (room, r, r), hold the cores of a few tasks. Bringing others writes those that were trained
back, with what an optimiser keeps of them, and puts the others' in their place. So a step costs what its tasks cost,
however many there are, and the parameters keep their shape, as optimisers and data parallelism want.

A row of the table is a task, see `RowForm`. Tasks may have cores of several ranks, up to that of A and B: a row has the
numbers of its task's rank, and the stacks have zeros beyond them.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from colora.adapter.core_size import resized_core
from colora.adapter.stored.kept import KeptRows
from colora.adapter.stored.moments import KeepsMoments
from colora.adapter.stored.row import RowForm
from colora.adapter.stored.stacks import Stacks
from colora.adapter.stored.starts import Starts
from colora.adapter.stored.table import CoreTable, chunks
from colora.errors import ConfigError, TaskIdError

__all__ = ["StoredCores"]


class StoredCores:
    """The cores of K tasks, most of them not on the model; for one thread.

    Args:
        stacks: by layer, the parameters (K, r, r) that hold all cores now; afterwards they hold those at hand.
        room: the most tasks at hand; where it is K or more, all tasks always are.
        folder: where the table is, in a file for each rank; None: in memory.
        ranks: of the cores, (K,): each is the leading corner of what the stacks hold; by default all are r.
        starts: of K tasks, whose cores are these, whatever the stacks hold; by default those of the stacks are kept.
        kept: rows that there are already, in place of `folder`, `ranks` and `starts`.

    Attributes:
        room: as above.
        kept: the rows of all tasks.
        here: the tasks at hand, in the order of the stacks; ascending.

    Raises:
        ConfigError: a rank that is not from 1 to r.
        CheckpointError: a file cannot be written.
    """

    def __init__(
        self,
        stacks: Mapping[str, nn.Parameter],
        room: int,
        folder: Path | None = None,
        ranks: Int[np.ndarray, " K"] | None = None,
        starts: Starts | None = None,
        kept: KeptRows | None = None,
    ) -> None:
        self.at_hand = Stacks(stacks)
        self.room = max(1, room)
        first = next(iter(stacks.values()))
        self.here: Int[np.ndarray, " n"] = np.arange(0)
        self._versions = self.at_hand.now()  # when the stacks were last equal to the table
        dtype = np.float64 if first.dtype == torch.float64 else np.float32
        if ranks is None:
            ranks = np.full(len(first) if starts is None else len(starts), self.rank)
        if kept is None:
            self.kept = KeptRows(self.at_hand.ranks, ranks, dtype, folder, starts)
            if starts is None:
                self._take_over()
        else:
            self.kept = kept
            kept.enlarge(self.at_hand.ranks)
        self._resize()
        self.at_hand.watch()

    def __len__(self) -> int:
        return len(self.kept)

    def __getstate__(self) -> dict[str, object]:
        self.put_back()
        return self.__dict__

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.forget_here()
        self.at_hand.watch()

    @property
    def rank(self) -> int:
        """The highest that a core can have: that of A and B."""
        return max(self.at_hand.ranks)

    @property
    def stacks(self) -> dict[str, nn.Parameter]:
        """By layer, the parameters that hold the tasks at hand."""
        return self.at_hand.by_layer

    @property
    def table(self) -> CoreTable:
        """What the rows are in."""
        return self.kept.table

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
            raise TaskIdError(f"{len(wanted)} tasks at once, expected at most {self.room}: the `room` of `store_cores`")
        if self.at_hand.held:
            raise TaskIdError(
                "other tasks are requested while the tasks of a step are trained: end the `tasks_at_hand` block first"
            )
        if self.at_hand.have_gradients:
            raise TaskIdError(
                "other tasks are requested while gradients of the current tasks wait: call optimizer.step() "
                "and optimizer.zero_grad() first, or zero_grad() alone to drop the gradients"
            )
        self.put_back()
        self._put(wanted)
        self.here = wanted

    def make_room(self, tasks: int) -> None:
        """Have room for so many tasks at hand, at least; none are at hand then where that is more."""
        if tasks > self.room:
            self.put_back()
            self.room = tasks
            self._resize()

    def hold(self, tasks: Int[np.ndarray, " n"]) -> None:
        """Have these tasks at hand to be trained, until `release`. Raises as `bring`."""
        self.release()
        self.bring(tasks)
        self.at_hand.watch()
        self.at_hand.held = True

    def release(self) -> None:
        """Their training is over; others may take their place."""
        self.at_hand.held = False

    def use(self, optimizer: object) -> None:
        """Keep this optimiser's moments with the cores; those of another one before it count no more.

        Raises:
            ConfigError: it keeps no moments task by task, or keeps some of these cores from elsewhere.
        """
        if optimizer is self.at_hand.optimizer:
            return
        if not isinstance(optimizer, KeepsMoments):
            raise ConfigError(f"expected a colora.TaskAdamW for cores in a store, found a {type(optimizer).__name__}")
        if optimizer.has_state(self.stacks.values()):
            raise ConfigError(
                "this optimizer has moments of these cores from before they were in the store, or from a "
                "state_dict: make a new optimizer"
            )
        self.put_back()
        self.at_hand.optimizer = optimizer
        self.kept.begin_moments()
        self.forget_here()

    def put_back(self) -> None:
        """Write the cores at hand to the table if they have changed. Raises CheckpointError if that fails."""
        if self._versions != self.at_hand.now():
            for own in self.kept.by_form(self.here):
                tasks = self.here[own.places]
                rows = self.kept.read(tasks)  # without an optimiser their moments stay
                self.at_hand.take(own, torch.from_numpy(rows))
                self.kept.write(tasks, rows)
            self._versions = self.at_hand.now()

    def forget_here(self) -> None:
        """Have no tasks at hand; what was not put back is lost."""
        self.here, self._versions = np.arange(0), self.at_hand.now()

    def positions(self, ids: Int[Tensor, " *rows"]) -> Int[Tensor, " *rows"]:
        """Where the cores of these tasks are in the stacks; outside of training those that are not at hand are brought.

        Raises:
            TaskIdError: one is not at hand, and gradients are wanted.
        """
        wanted = ids.detach().cpu().numpy()
        absent = np.setdiff1d(wanted, self.here)
        if self.at_hand.want_gradients:
            self.at_hand.watch()
        if absent.size and self.at_hand.want_gradients:
            raise TaskIdError(
                f"the core of task {int(absent[0])} is in the store, and not on the model: train inside `with "
                "colora.tasks_at_hand(model, task_ids, optimizer):`, or evaluate inside torch.no_grad()"
            )
        if absent.size:
            self.bring(wanted)
        return torch.from_numpy(np.asarray(np.searchsorted(self.here, wanted))).to(ids.device).view(ids.shape)

    # ---- single tasks -----------------------------------------------------------------------------------------------

    def core(self, task: int) -> dict[str, Tensor]:
        """A task's core in each layer as it is now, (r, r) with r the task's own."""
        position = np.flatnonzero(self.here == task)
        form = self.kept.form(task)
        if position.size:
            pairs = zip(self.stacks.items(), form.ranks, strict=True)
            return {name: stack.detach()[int(position[0]), :rank, :rank].clone() for (name, stack), rank in pairs}
        values = form.cores(torch.from_numpy(self.kept.read(np.array([task]))[0]))
        stacks = self.stacks.items()
        return {name: value.to(stack) for (name, stack), value in zip(stacks, values, strict=True)}

    def set_core(self, task: int, core: Mapping[str, Tensor]) -> None:
        """Write a task's core, as `core` gives it; what an optimiser keeps of it stays.

        Raises:
            CheckpointError: it cannot be written.
        """
        self.put_back()
        row, form = self.kept.read(np.array([task])), self.kept.form(task)
        values = [core[name].detach().cpu().flatten().double() for name in self.stacks]
        row[0, : form.numbers] = torch.cat(values).numpy()
        self.kept.write(np.array([task]), row)
        self._put(self.here)

    def set_rows(self, tasks: Int[np.ndarray, " n"], rows: Float[np.ndarray, "n width"]) -> None:
        """Write whole rows of the table, of tasks of one rank, with the moments of the optimiser in use; no tasks are
        at hand then.

        Raises:
            ValueError, IndexError: they do not fit the table; CheckpointError: they cannot be written.
        """
        self.forget_here()
        self.kept.write(tasks, rows)

    def all_cores(self) -> dict[str, Float[Tensor, "K r r"]]:
        """The cores of all tasks, by layer, on the CPU; of a rank below r with zeros beyond them."""
        self.put_back()
        pairs = zip(self.stacks.items(), self.kept.all_cores(), strict=True)
        return {name: cores.to(stack.dtype) for (name, stack), cores in pairs}

    def core_rows(self) -> Iterator[tuple[Int[np.ndarray, " n"], RowForm, Float[Tensor, "n width"]]]:
        """All tasks and their rows as they are now, see `KeptRows.all`."""
        self.put_back()
        return self.kept.all()

    def whole_state(self, keys: Iterable[str], end: str) -> dict[str, Tensor]:
        """`all_cores` by the names that they have in a model's state, which end so; of these keys alone.

        Raises:
            ConfigError: a core is smaller than r × r, which stacks cannot say.
        """
        if len(smaller := np.flatnonzero(self.kept.ranks < self.rank)):
            raise ConfigError(
                f"{len(smaller)} of {len(self)} tasks have cores smaller than {self.rank} × {self.rank}, and PEFT "
                "saves stacks of one size: save the bank with colora.save_bank"
            )
        cores = self.all_cores()
        names = {
            key: key.removeprefix("base_model.model.").removesuffix(f".{end}") for key in keys if key.endswith(end)
        }
        found = {key: cores[name] for key, name in names.items() if name in cores}
        if len(found) != len(cores):
            raise ConfigError(f"{len(found)} of the {len(cores)} layers with cores in a store were found in the state")
        return found

    # ---- which tasks there are ---------------------------------------------------------------------------------------

    def add(self, tasks: int, init: int | str = "identity", rotation: float = 0.0, rank: int | None = None) -> None:
        """Add tasks, which take no room before they are trained.

        Args:
            tasks: how many.
            init: where they start: "identity"; "rotated", each at a rotation of its own; "mean", at the mean core; or
                at the core of another task, by its id. Of a higher rank, its leading corner.
            rotation: share of the directions that are rotated.
            rank: of their cores; by default that of A and B.

        Raises:
            ConfigError: a rank that is not from 1 to that of A and B.
        """
        rank = self.rank if rank is None else rank
        form, row = self.kept.form_of(rank), None
        self.put_back()
        found: Iterable[Tensor] | None = self.kept.mean_core() if init == "mean" else None
        if isinstance(init, int):
            found = self.core(init).values()
        if found is not None:
            cores = zip(found, form.ranks, strict=True)
            row = torch.cat([resized_core(one.double().cpu(), own).flatten() for one, own in cores])
        self.kept.add(tasks, rank, row, rotation if init == "rotated" else None)
        self._resize()

    def set_rank(self, task: int, rank: int) -> None:
        """Make a task's core larger, with zeros; what an optimiser keeps of it as well. No tasks are at hand then.

        Raises:
            ConfigError: the rank is lower than it was, or higher than that of A and B.
        """
        self.put_back()
        self.kept.set_rank(task, rank)
        self.forget_here()

    def moved(self, stacks: Mapping[str, nn.Parameter]) -> "StoredCores":
        """The same cores for the stacks (rows, r, r) of a larger bank; this one must not be used any more."""
        self.put_back()
        return StoredCores(stacks, self.room, kept=self.kept)

    def remove(self, task: int) -> None:
        """Remove a task; those after it move up by one id."""
        self.put_back()
        self.kept.remove(task)
        self._resize()

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Put what the stacks hold into the table."""
        for some in chunks(len(self)):
            for own in self.kept.by_form(some):
                tasks, form = some[own.places], own.form
                rows = np.zeros((len(tasks), form.width), dtype=self.table.dtype)
                corners = [
                    stack.detach()[torch.from_numpy(tasks), :rank, :rank].cpu().flatten(1)
                    for stack, rank in zip(self.stacks.values(), form.ranks, strict=True)
                ]
                rows[:, : form.numbers] = torch.cat(corners, 1).double().numpy()
                self.kept.write(tasks, rows)

    def _resize(self) -> None:
        """Give the stacks as many rows as there may be tasks at hand; none are at hand then."""
        self.at_hand.resize(min(self.room, len(self)))
        self.forget_here()

    def _put(self, tasks: Int[np.ndarray, " n"]) -> None:
        """Put tasks into the first places of the stacks."""
        groups = self.kept.by_form(tasks)
        self.at_hand.put([(own, torch.from_numpy(self.kept.read(tasks[own.places]))) for own in groups])
        self._versions = self.at_hand.now()
