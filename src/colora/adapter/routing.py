"""Which row of the batch belongs to which task: set once where the model is called, read by every adapted layer.

The ids must be the same in the forward pass and in the recomputation that gradient checkpointing does during the
backward pass, even if another forward pass has run in between. So each forward pass makes an immutable `Routing`;
the layers read the current one, and a checkpointed block keeps the one it was called with.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from colora.common.text import listed
from colora.errors import TaskIdError

__all__ = ["Router", "Routing", "TaskIds", "listed_tasks"]

TaskIds = Tensor | Sequence[int] | Sequence[str] | str | int


@dataclass(frozen=True)
class Routing:
    """The tasks of one forward pass.

    Attributes:
        ids: for each adapter name, LongTensor (batch,) or (batch, seq), or one integer for the whole batch.
        tokens: length of the sequences given to the model, to recognise inputs flattened to (batch · seq, d).
        expandable: in generation one given row may stand for several (beams, return sequences).
    """

    ids: dict[str, Tensor | int]
    tokens: int | None = None
    expandable: bool = False

    def rows(self, adapter_name: str, x: Tensor) -> Tensor | int:
        """Task ids for input `x`: (x.shape[0],) for one task per row, (x.shape[0], x.shape[1]) per token, or one.

        Raises:
            TaskIdError: if the ids do not fit the shape of `x`.
        """
        ids, rows = self.ids[adapter_name], x.shape[0]
        if isinstance(ids, int):
            return ids
        if ids.ndim == 1:
            if rows == ids.shape[0]:
                return ids
            if x.ndim == 2 and self.tokens is not None and rows == ids.shape[0] * self.tokens:
                return ids.repeat_interleave(self.tokens)
            if self.expandable and rows % ids.shape[0] == 0:
                return ids.repeat_interleave(rows // ids.shape[0])
        elif x.ndim >= 3 and ids.shape == x.shape[:2]:
            return ids
        elif x.ndim == 2 and rows == ids.numel():
            return ids.reshape(-1)
        raise TaskIdError(
            f"task_ids of shape {tuple(ids.shape)} do not fit a layer's input of shape {tuple(x.shape)}: "
            "expected one id per row, (batch,), or one per token, (batch, seq)"
        )


@dataclass
class Router:
    """The current routing of one base model; all its adapted layers and its forward hook hold the same router.

    Attributes:
        tasks: for each adapter name, its task names with their ids, in the order of the ids.
        selected: for each adapter name, the task set by `set_task`.
    """

    tasks: dict[str, dict[str, int]] = field(default_factory=dict)
    selected: dict[str, str] = field(default_factory=dict)
    current: Routing | None = None
    generating: Routing | None = None

    def resolve(
        self, task_ids: TaskIds, adapter_names: Sequence[str], device: torch.device | None
    ) -> dict[str, Tensor | int]:
        """Ids for each active adapter from integers or names, checked against its tasks.

        Raises:
            TaskIdError: naming what is unknown or out of range, and the tasks there are.
        """
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

    def register(self, adapter_name: str, names: Sequence[str]) -> None:
        """Take over the names of an adapter's tasks after they have changed."""
        self.tasks[adapter_name] = {name: index for index, name in enumerate(names)}
        self.current = None
        if self.selected.get(adapter_name) not in self.tasks[adapter_name]:
            self.selected.pop(adapter_name, None)

    def default(self, adapter_name: str) -> int | None:
        """The task used where none is given: the one set by `set_task`, or the only one."""
        names = self.tasks[adapter_name]
        if adapter_name in self.selected:
            return self.index(self.selected[adapter_name], adapter_name)
        return 0 if len(names) == 1 else None

    def index(self, name: str, adapter_name: str) -> int:
        """The id of a task. Raises TaskIdError with the names there are if this is none of them."""
        try:
            return self.tasks[adapter_name][name]
        except KeyError:
            raise TaskIdError(
                f"unknown task {name!r}; this bank knows {listed_tasks(self.tasks[adapter_name])}"
            ) from None

    def rows(self, adapter_name: str, x: Tensor) -> Tensor | int:
        """What a layer asks: ids per row or token, or one integer if the whole batch has the same task.

        Raises:
            TaskIdError: if there are several tasks and none was chosen.
        """
        if self.current is not None and adapter_name in self.current.ids:
            return self.current.rows(adapter_name, x)
        task, names = self.default(adapter_name), self.tasks[adapter_name]
        if task is None:
            raise TaskIdError(
                f"which task? This bank has {len(names)} tasks ({listed_tasks(names)}): pass "
                "task_ids=... with the batch (with transformers' Trainer set remove_unused_columns=False), "
                "or choose one with set_task(name)"
            )
        return task

    @contextmanager
    def generation(
        self, task_ids: TaskIds | None, adapter_names: Sequence[str], device: torch.device | None
    ) -> Iterator[dict[str, Tensor | int] | None]:
        """For the duration of one `generate` call every forward pass uses these ids, which it yields."""
        before, ids = (self.generating, self.current), None
        if task_ids is not None:
            ids = self.resolve(task_ids, adapter_names, device)
            if any(isinstance(one, Tensor) and one.ndim != 1 for one in ids.values()):
                raise TaskIdError("generation takes one task per row: task_ids of shape (batch,)")
            self.generating = self.current = Routing(ids, expandable=True)
        else:
            self.current = self.generating  # an outer `generation`, as encoders are called without the model's hook
        try:
            yield ids
        finally:
            self.generating, self.current = before

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
