"""`Stacks`: the parameters on the model that hold the cores of a few tasks, and what an optimiser keeps of them.

A task whose cores are smaller than the stacks has them in the leading corner, and zeros elsewhere. There it gets no
gradient: so nothing outside of the corner ever moves, and A, B and the core are trained as if it were not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from colora.adapter.stored.moments import MOMENTS, KeepsMoments
from colora.adapter.stored.row import RowForm
from colora.errors import TaskIdError

__all__ = ["Stacks", "TasksOfForm"]


@dataclass(frozen=True)
class TasksOfForm:
    """Some tasks whose rows have the same form.

    Attributes:
        form: of their rows.
        places: of theirs among all tasks that were asked for; a slice where they are all of them.
    """

    form: RowForm
    places: Int[np.ndarray, " n"] | slice

    def corner(self, device: torch.device, rank: int | None = None) -> tuple[Tensor | slice, ...]:
        """The index of what they have in a stack: their rows, and of cores of a rank the leading corner."""
        places = self.places if isinstance(self.places, slice) else torch.from_numpy(self.places).to(device)
        return (places,) if rank is None else (places, slice(rank), slice(rank))


class Stacks:
    """The stacks of all layers.

    Args:
        stacks: by layer, parameters (rows, r, r).

    Attributes:
        optimizer: whose moments go with the cores; None: there is none.
        held: whether gradients are expected; without, they may be those of tasks that have left, and are refused.
    """

    def __init__(self, stacks: Mapping[str, nn.Parameter]) -> None:
        self.by_layer = dict(stacks)
        self.optimizer: KeepsMoments | None = None
        self.held = False
        self._watched: set[str] = set()
        self._ranks: Int[np.ndarray, " n"] | None = None  # of the tasks that are there, where they are not the stacks'
        self._outside: dict[tuple[int, torch.device], Tensor] = {}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"optimizer": None, "held": False, "_watched": set(), "_outside": {}}

    @property
    def rows(self) -> int:
        """Of each stack."""
        return len(next(iter(self.by_layer.values())))

    @property
    def ranks(self) -> list[int]:
        """Of each layer's stack."""
        return [stack.shape[-1] for stack in self.by_layer.values()]

    @property
    def want_gradients(self) -> bool:
        """Whether some stack is trained, and gradients are being recorded."""
        return torch.is_grad_enabled() and any(stack.requires_grad for stack in self.by_layer.values())

    @property
    def have_gradients(self) -> bool:
        """Whether a gradient waits for the optimiser."""
        return any(stack.grad is not None and bool(stack.grad.any()) for stack in self.by_layer.values())

    def now(self) -> list[int]:
        """A number for each stack that grows when it changes."""
        return [stack._version for stack in self.by_layer.values()]

    @torch.inference_mode(mode=False)
    def resize(self, rows: int) -> None:
        """Give the stacks so many rows."""
        for stack in self.by_layer.values():
            if stack.shape[0] != rows:
                stack.grad = None  # its shape must be that of the data at all times
                stack.data = stack.data.new_zeros(rows, *stack.shape[1:])
                stack.colora_task_uids = list(range(rows))  # type: ignore[attr-defined]

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def put(self, tasks: list[tuple[TasksOfForm, Float[Tensor, "n width"]]]) -> None:
        """Write rows into the first places of the stacks, and of what the optimiser keeps."""
        count = sum(len(rows) for _, rows in tasks)
        whole = all(own.form.ranks == self.ranks for own, _ in tasks)
        self._ranks, self._outside = None, {}
        if not whole:
            self._ranks = np.zeros(count, dtype=np.int64)
            for group in self._targets():
                for target in group:
                    target[:count].zero_()
        for own, rows in tasks:
            if self._ranks is not None:
                self._ranks[own.places] = own.form.rank
            for targets, values in zip(self._targets(), own.form.parts(rows, self.optimizer is not None), strict=True):
                _write(own, targets, values)

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def take(self, own: TasksOfForm, rows: Float[Tensor, "n width"]) -> None:
        """Write what the stacks hold of these tasks into rows of theirs; moments only where there is an optimiser."""
        for sources, values in zip(self._targets(), own.form.parts(rows, self.optimizer is not None), strict=True):
            found = [source[_index(own, source, value)] for source, value in zip(sources, values, strict=True)]
            torch._foreach_copy_(values, found)

    def _targets(self) -> list[list[Tensor]]:
        """What rows are made of on the model: cores, and with an optimiser both moments and steps."""
        found = [[stack.detach() for stack in self.by_layer.values()]]
        if self.optimizer is not None:
            states = [self.optimizer.core_state(stack) for stack in self.by_layer.values()]
            found += [[state[name] for state in states] for name in (*MOMENTS, "step")]
        return found

    def watch(self) -> None:
        """See to the gradients of every stack that is trained, from now on."""
        for name, stack in self.by_layer.items():
            if stack.requires_grad and name not in self._watched:
                stack.register_hook(self._checked)
                self._watched.add(name)

    def _checked(self, grad: Float[Tensor, "rows r r"]) -> Tensor | None:
        if not self.held:
            raise TaskIdError(
                "a backward pass outside of `tasks_at_hand`: its cores may have left the model; run forward and "
                "backward pass and the step inside one block"
            )
        return None if self._ranks is None else grad.masked_fill(self._beyond(grad), 0)

    def _beyond(self, grad: Float[Tensor, "rows r r"]) -> Bool[Tensor, "rows r r"]:
        """Where the stacks hold no number of the task that is there."""
        assert self._ranks is not None
        key = grad.shape[-1], grad.device
        if key not in self._outside:
            ranks = torch.zeros(len(grad), dtype=torch.long)
            ranks[: len(self._ranks)] = torch.from_numpy(self._ranks)
            inside = torch.arange(grad.shape[-1]) < ranks[:, None]
            self._outside[key] = ~(inside[:, :, None] & inside[:, None, :]).to(grad.device)
        return self._outside[key]


def _index(own: TasksOfForm, target: Tensor, value: Tensor) -> tuple[Tensor | slice, ...]:
    return own.corner(target.device, value.shape[-1] if value.ndim == 3 else None)


def _write(own: TasksOfForm, targets: list[Tensor], values: list[Tensor]) -> None:
    if isinstance(own.places, slice):  # views, all at once
        views = [target[_index(own, target, value)] for target, value in zip(targets, values, strict=True)]
        torch._foreach_copy_(views, values)
        return
    for target, value in zip(targets, values, strict=True):
        target[_index(own, target, value)] = value.to(target)
