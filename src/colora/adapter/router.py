"""`Router`: the routing that is current, set once where the model is called and read by every adapted layer.

Several threads may call one model at once: servers do, and `torch.nn.DataParallel` runs its replicas so. The current
routing therefore belongs to the thread, and the tasks of a `generation` block to the context of Python, so that
coroutines of one thread do not mix either. Only the choice of `set_task` is common to all.
"""

import itertools
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from colora.adapter.routing import Routing, TaskIds
from colora.adapter.row_layout import RowLayout
from colora.adapter.stored.cores import StoredCores
from colora.adapter.task_names import TaskNames, TaskSequence
from colora.common.text import listed
from colora.errors import ConfigError, TaskIdError

__all__ = ["Router", "listed_tasks"]


class _Call:
    """The forward pass that a thread is in, or was in last.

    Attributes:
        routing: its tasks.
        backward: the backward pass that `routing` was set in, as torch numbers them; -1 outside of any.
        waiting: the routing of the forward pass before, if its backward pass has not been seen.
        left: it has ended, and `routing` is kept for what its backward pass computes again, for nothing else.
    """

    def __init__(self) -> None:
        self.routing: Routing | None = None
        self.backward = -1
        self.waiting: Routing | None = None
        self.left = False


class _Calls(threading.local):
    """A `_Call` for each thread.

    No context variable, which torch.compile cannot trace; and an object for each thread rather than attributes of this
    one, for code that was compiled loses what it writes to a `threading.local`.
    """

    def __init__(self) -> None:  # called anew in every thread
        self.of_thread = _Call()


_GENERATING: ContextVar[Mapping[int, Routing]] = ContextVar("colora_generating")
"""For each router's key, the tasks of the `generation` block that this context is in."""
_KEYS = itertools.count()


@dataclass
class Router:
    """The routing of one base model; all its adapted layers and its forward hook hold the same router.

    Attributes:
        tasks: for each adapter name, its task names with their ids, in the order of the ids.
        selected: for each adapter name, the task set by `set_task`.
        follows: for an adapter that stands in for another, as TRL's reference does: whose choice of task it takes.
        stored: for each adapter whose cores are not all on the model, where they are.
    """

    tasks: dict[str, TaskNames] = field(default_factory=dict)
    selected: dict[str, str] = field(default_factory=dict)
    follows: dict[str, str] = field(default_factory=dict)
    stored: dict[str, StoredCores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._calls = _Calls()
        self._asked: dict[str, tuple[Routing, object, Routing]] = {}  # of `_placed`, the last answer
        self._key = next(_KEYS)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model, or a pickled one, starts outside of any forward pass.
        return {name: getattr(self, name) for name in ("tasks", "selected", "follows", "stored")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def _call(self) -> _Call:
        return self._calls.of_thread

    @property
    def current(self) -> Routing | None:
        """The routing of the forward pass that this thread is in, or whose backward pass it is in."""
        call = self._call
        if call.left and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() == -1:
            return self.generating
        return call.routing

    @current.setter
    def current(self, routing: Routing | None) -> None:
        self._call.routing, self._call.left = routing, False
        if not torch.compiler.is_compiling():
            self._call.backward, self._call.waiting = torch._C._current_graph_task_id(), None

    def enter(self, routing: Routing | None) -> None:
        """Set the routing of a forward pass that begins, and keep the one before while that waits for its backward
        pass: a layer that is computed again without a routing of its own may belong to either."""
        waiting = self._call.routing if self._call.backward == -1 else None  # another number: it has been seen
        self.current = routing
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._call.backward == -1:
            self._call.waiting = waiting

    def leave(self) -> None:
        """A forward pass has ended. What calls an inner module now must not find the ids of that batch."""
        if not torch.is_grad_enabled():
            self.current = self.generating  # nothing will be computed again
        elif not torch.compiler.is_compiling():
            self._call.left = True

    @contextmanager
    def during(self, routing: Routing | None) -> Iterator[None]:
        """Use `routing` inside the `with` block."""
        call = self._call
        before = (call.routing, call.backward, call.waiting, call.left)
        self.current = routing
        try:
            yield
        finally:
            call.routing, call.backward, call.waiting, call.left = before

    @property
    def generating(self) -> Routing | None:
        """The tasks of the `generation` block that the caller is in."""
        if torch.compiler.is_compiling():  # which cannot read a context variable
            current = self.current
            return current if current is not None and current.expandable else None
        return _GENERATING.get({}).get(self._key)

    def resolve(
        self, task_ids: TaskIds, adapter_names: Sequence[str], device: torch.device | None
    ) -> dict[str, Tensor | int]:
        """Ids for each active adapter from integers or names, checked against its tasks.

        Raises:
            TaskIdError: naming what is unknown or out of range, and the tasks there are.
        """
        if not adapter_names:
            raise TaskIdError(
                "task_ids were given, but no bank is active: choose one with set_adapter(name), or leave the ids out"
            )
        if isinstance(task_ids, str | int) and not isinstance(task_ids, bool):
            task_ids = [task_ids]  # type: ignore[assignment]
        if isinstance(task_ids, Tensor):
            if task_ids.is_floating_point() or task_ids.is_complex() or task_ids.dtype == torch.bool:
                raise TaskIdError(f"task_ids must be integers, found a tensor of {task_ids.dtype}")
            if task_ids.ndim not in (1, 2):
                raise TaskIdError(f"task_ids must be (batch,) or (batch, seq), found shape {tuple(task_ids.shape)}")
            ids = task_ids.to(device=device, dtype=torch.long)
            if not torch.compiler.is_compiling():
                self._check_range(ids, adapter_names)
            return dict.fromkeys(adapter_names, ids)
        names: list[Any] = list(task_ids) if isinstance(task_ids, Iterable) else [task_ids]
        if all(isinstance(name, str) for name in names):
            return {adapter_name: self._index(names, adapter_name, device) for adapter_name in adapter_names}
        try:
            numbers = torch.as_tensor(names)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TaskIdError(f"task_ids must be integers or names, one per row, found {task_ids!r}") from error
        return self.resolve(numbers, adapter_names, device)

    def forget(self, adapter_name: str) -> None:
        """Keep nothing of an earlier adapter of this name."""
        self.selected.pop(adapter_name, None)
        self.follows.pop(adapter_name, None)
        self.stored.pop(adapter_name, None)

    def check_on_model(self, adapter_name: str) -> None:
        """Raises ConfigError where most cores of an adapter are in a store."""
        if adapter_name in self.stored:
            raise ConfigError(
                "this needs all cores on the model, but most cores of this bank are in a store: save the "
                "bank, and load it again"
            )

    def register(self, adapter_name: str, names: Sequence[str] | TaskNames) -> None:
        """Take over the names of an adapter's tasks after they have changed."""
        self.tasks[adapter_name] = names if isinstance(names, TaskNames) else TaskNames(names)
        self.current = None
        if self.selected.get(adapter_name) not in self.tasks[adapter_name]:
            self.selected.pop(adapter_name, None)

    def listing(self, adapter_name: str) -> Sequence[str]:
        """Names of an adapter's tasks: a list, or where its cores are in a store, what stands for one."""
        names = self.tasks[adapter_name]
        return TaskSequence(names) if adapter_name in self.stored else list(names)

    def choose(self, adapter_name: str, name: str | None) -> None:
        """Use one task wherever no ids are given; None takes the choice back. Raises TaskIdError if unknown."""
        self.current = None  # ids of an earlier batch
        if name is None:
            self.selected.pop(adapter_name, None)
        else:
            self.index(name, adapter_name)
            self.selected[adapter_name] = name

    def default(self, adapter_name: str) -> int | None:
        """The task used where none is given: the one set by `set_task`, or the only one."""
        names = self.tasks[adapter_name]
        chosen = self.selected.get(adapter_name) or self.selected.get(self.follows.get(adapter_name, ""))
        if chosen is not None:
            return self.index(chosen, adapter_name)
        return 0 if len(names) == 1 else None

    def index(self, name: str, adapter_name: str) -> int:
        """The id of a task. Raises TaskIdError with the names there are if this is none of them."""
        try:
            return self.tasks[adapter_name][name]
        except KeyError:
            raise TaskIdError(
                f"unknown task {name!r}; this bank knows {listed_tasks(self.tasks[adapter_name])}"
            ) from None

    def rows(
        self, adapter_name: str, x: Tensor, layer: str = "", layout: RowLayout = RowLayout.BATCH_FIRST
    ) -> Tensor | int:
        """What a layer asks: ids per row or token, or one integer if the whole batch has the same task.

        Raises:
            TaskIdError: if there are several tasks and none was chosen, or if it cannot be told which was; or a core is
                in a store, see `StoredCores.positions`.
        """
        current = self.current
        if not torch.compiler.is_compiling():
            self._check_backward(adapter_name)
        if current is not None and adapter_name in current.ids:
            return self._placed(current, adapter_name).rows(adapter_name, x, layer, layout)
        task, names = self.default(adapter_name), self.tasks[adapter_name]
        if task is None:
            raise TaskIdError(
                f"which task? This bank has {len(names)} tasks ({listed_tasks(names)}): pass task_ids=... "
                "with the batch (a trainer of transformers or TRL keeps the column with "
                "remove_unused_columns=False; if its collator drops the column, wrap the collator: "
                "trainer.data_collator = colora.TaskIdsCollator(trainer.data_collator, model)), or choose "
                "one with set_task(name)"
            )
        return self.place(adapter_name, task)

    def place(self, adapter_name: str, task: int) -> int:
        """Where a task's core is in the stacks: at its id, but where most cores are in a store; there it is brought.

        Raises:
            TaskIdError: see `StoredCores.positions`.
        """
        return int(self.stored[adapter_name].positions(torch.tensor(task))) if adapter_name in self.stored else task

    @contextmanager
    def generation(
        self, task_ids: TaskIds | None, adapter_names: Sequence[str], device: torch.device | None
    ) -> Iterator[dict[str, Tensor | int] | None]:
        """For the duration of one `generate` call every forward pass uses these ids, which it yields.

        Without ids the call has those of the block around it, or the default of now: a `set_task` of another thread
        does not change the task of what is being generated.
        """
        ids = None
        if task_ids is not None:
            ids = self.resolve(task_ids, adapter_names, device)
            if any(isinstance(one, Tensor) and one.ndim != 1 for one in ids.values()):
                raise TaskIdError("generation takes one task per row: task_ids of shape (batch,)")
        routing = (
            Routing(ids, expandable=True) if ids is not None else self.generating or self.bound(adapter_names, True)
        )
        token = _GENERATING.set({**_GENERATING.get({}), **({} if routing is None else {self._key: routing})})
        try:
            with self.during(routing):  # for encoders, which are called without the model's hook
                yield ids
        finally:
            _GENERATING.reset(token)

    def bound(self, adapter_names: Sequence[str], expandable: bool = False) -> Routing | None:
        """The default tasks as they are now, or None without any: what runs later must not see a later `set_task`."""
        chosen: dict[str, Tensor | int] = {
            adapter_name: task for adapter_name in adapter_names if (task := self.default(adapter_name)) is not None
        }
        return Routing(chosen, expandable=expandable) if chosen else None

    def _placed(self, routing: Routing, adapter_name: str) -> Routing:
        """The routing with the places of its cores in the stacks: that is their ids, but where most are in a store."""
        if adapter_name not in self.stored:
            return routing
        stored, (asked, here, placed) = self.stored[adapter_name], self._asked.get(adapter_name, (None, None, routing))
        if asked is routing and here is stored.here:  # by the layer before
            return placed
        ids = routing.ids[adapter_name]
        places = stored.positions(ids) if isinstance(ids, Tensor) else self.place(adapter_name, ids)
        placed = Routing({adapter_name: places}, routing.tokens, routing.expandable)
        self._asked[adapter_name] = routing, stored.here, placed
        return placed

    def _check_backward(self, adapter_name: str) -> None:
        """In a backward pass the layer is computed again, by a checkpoint that did not keep the routing of its call."""
        call, backward = self._call, torch._C._current_graph_task_id()
        if backward in (-1, call.backward) or len(self.tasks[adapter_name]) == 1:
            return
        routing, waiting = call.routing, call.waiting
        if routing is None or not (waiting is None or waiting.same(routing)):
            raise TaskIdError(
                "a layer is computed again during the backward pass, and the tasks of its rows are unknown: "
                + ("several forward passes went before" if routing else "its forward pass ran in another thread")
                + ". Use the gradient checkpointing of transformers (gradient_checkpointing_enable), which keeps the "
                "tasks of each call, or run each backward pass right after its forward pass, in the same thread"
            )
        call.backward = backward  # seen

    def _index(self, names: list[str], adapter_name: str, device: torch.device | None) -> Tensor:
        position = self.tasks[adapter_name]
        if unknown := sorted(set(names) - position.keys()):
            raise TaskIdError(
                f"unknown task{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}; "
                f"this bank knows {listed_tasks(self.tasks[adapter_name])}"
            )
        return torch.tensor([position[name] for name in names], device=device)

    def _check_range(self, ids: Tensor, adapter_names: Sequence[str]) -> None:
        if ids.numel() == 0 or ids.device.type == "meta":
            return
        low, high = (int(value) for value in torch.aminmax(ids))
        for adapter_name in adapter_names:
            names = self.tasks[adapter_name]
            if low < 0 or high >= len(names):
                raise TaskIdError(
                    f"task id {low if low < 0 else high} is out of range: this bank has ids 0 to {len(names) - 1} "
                    f"({listed_tasks(names)})"
                )


def listed_tasks(names: Collection[str], most: int = 20) -> str:
    """The names for an error message, cut after `most`."""
    return listed(names, most)
