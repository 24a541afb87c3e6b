"""Rows to a padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from colora.tasks.encode import IGNORED, EncodedRow

__all__ = ["TaskCollator"]


@dataclass(frozen=True)
class TaskCollator:
    """Pads the rows of `EncodedTasks` on the right; `labels` are filled up with `IGNORED`.

    Attributes:
        pad_token_id: fills `input_ids`; these places have 0 in `attention_mask`.
        pad_to_multiple_of: rounds both lengths up, which tensor cores like.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, items: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (batch, length), `labels` (batch, label length), `task_ids` (batch,)."""
        inputs = [item["input_ids"] for item in items]
        return {
            "input_ids": self._pad(inputs, self.pad_token_id),
            "attention_mask": self._pad([[1] * len(ids) for ids in inputs], 0),
            "labels": self._pad([item["labels"] for item in items], IGNORED),
            "task_ids": torch.tensor([item["task_ids"] for item in items], dtype=torch.long),
        }

    def _pad(self, rows: list[list[int]], value: int) -> Tensor:
        step = self.pad_to_multiple_of or 1
        length = -(-max(map(len, rows)) // step) * step
        return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.long)
