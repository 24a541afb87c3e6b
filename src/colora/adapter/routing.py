"""`Routing`: which row of a batch belongs to which task, in one forward pass.

The ids must be the same in the forward pass and in the recomputation that gradient checkpointing does during the
backward pass, even if another forward pass has run in between. So each forward pass makes an immutable `Routing`;
the layers read the current one, and a checkpointed block keeps the one it was called with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from colora.adapter.row_layout import RowLayout
from colora.errors import TaskIdError

__all__ = ["Routing", "TaskIds"]

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

    def same(self, other: "Routing") -> bool:
        """Whether both name the same tasks."""
        return self.ids.keys() == other.ids.keys() and all(
            _equal(ids, other.ids[adapter_name]) for adapter_name, ids in self.ids.items()
        )

    def rows(
        self, adapter_name: str, x: Tensor, layer: str = "", layout: RowLayout = RowLayout.BATCH_FIRST
    ) -> Tensor | int:
        """Task ids for input `x`: (x.shape[0],) for one task per row, (x.shape[0], x.shape[1]) per token, or one.

        Args:
            adapter_name: whose ids.
            x: what a layer sees, (batch, seq, d), (batch, d), (batch · seq, d), or another layout.
            layer: its name, for the error.
            layout: how the rows lie in `x`.

        Raises:
            TaskIdError: if the ids do not fit the shape of `x`, or `x` has other rows and the tasks differ.
        """
        ids = self.ids[adapter_name]
        if isinstance(ids, int):
            return ids
        foreign = layout is RowLayout.FOREIGN
        if foreign:
            problem = f"layer {layer!r} sees {layout.value} (images, frames, or the tokens sent to one expert)"
        else:
            turned = layout is RowLayout.TIME_FIRST and x.ndim == 3
            if (found := self._time_first(ids, x) if turned else self._batch_first(ids, x)) is not None:
                return found
            problem = (
                f"task_ids of shape {tuple(ids.shape)} do not fit the input of layer {layer!r}, of shape "
                f"{tuple(x.shape)}: expected one id per row, (batch,), or one per token, (batch, seq)"
            )
        if (foreign or ids.ndim == 1) and bool((ids == ids.flatten()[0]).all()):
            return int(ids.flatten()[0])  # whatever the layer sees, its task is known
        raise TaskIdError(
            f"{problem}. CoLoRA cannot tell the tasks of a mixed batch apart there: leave this layer out "
            "with exclude_modules, or give the whole batch one task"
        )

    def _batch_first(self, ids: Tensor, x: Tensor) -> Tensor | None:
        rows = x.shape[0]
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
        return None

    def _time_first(self, ids: Tensor, x: Tensor) -> Tensor | None:
        length, rows = x.shape[:2]
        if ids.ndim == 2:
            return ids.T if ids.shape == (rows, length) else None
        if rows != ids.shape[0] and not (self.expandable and rows % ids.shape[0] == 0):
            return None
        return ids.repeat_interleave(rows // ids.shape[0]).expand(length, rows)


def _equal(ids: Tensor | int, other: Tensor | int) -> bool:
    if isinstance(ids, Tensor) and isinstance(other, Tensor):
        return ids is other or torch.equal(ids, other)
    return not isinstance(ids, Tensor) and not isinstance(other, Tensor) and ids == other
