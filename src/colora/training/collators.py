"""`TaskIdsCollator`: the tasks of the rows, brought past a collator that knows nothing of them.

Collators of TRL and transformers make tensors of the columns that they know and drop the others, so `task_ids` would
be lost even where the trainer keeps the column. This one takes the column out, calls the other, and puts the ids back
in the shape that its batch has.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from colora.adapter.lookup import bank_tasks
from colora.errors import TaskIdError

__all__ = ["TaskIdsCollator"]

_SIDES = ("chosen", "rejected", "reference")
"""Answers that TRL's collators for preferences put below each other: first all chosen, then all rejected, ..."""

Row = Mapping[str, Any]


class TaskIdsCollator:
    """Wraps a collator so that its batches have `task_ids`.

    With a trainer of transformers or TRL, in two lines:

        args = SFTConfig(..., remove_unused_columns=False)
        trainer.data_collator = TaskIdsCollator(trainer.data_collator, model)

    The ids are (batch,), one for each row; for pairs of a chosen and a rejected answer twice as many, in TRL's order;
    for rows flattened into one (padding-free) and for packed rows (rows, length), one for each token.

    Args:
        collator: makes a batch of a list of rows, without the column.
        model: the model with the bank; or the names of its tasks in the order of their ids.
        column: holds for each row a task, as name or id; for a packed row a list, one entry for each token, or for each
            of its `seq_lengths`.

    Raises:
        TaskIdError: naming the row where the column is missing, holds no task of the bank, or does not fit the tokens;
            and if the collator made a batch of another number of rows.
    """

    def __init__(
        self,
        collator: Callable[..., Any],
        model: PeftModel | nn.Module | Sequence[str],
        column: str = "task_ids",
    ) -> None:
        self.collator, self.model, self.column = collator, model, column
        self._position()  # a model without a bank is refused here, not in the first batch

    def __call__(self, rows: Sequence[Row], *args: object, **kwargs: object) -> Any:
        """The inner collator's batch with `task_ids`, a LongTensor."""
        position = self._position()
        tasks = [self._tasks(index, row, position) for index, row in enumerate(rows)]
        plain = [{key: value for key, value in row.items() if key != self.column} for row in rows]
        batch = self.collator(plain, *args, **kwargs)
        if not isinstance(batch, MutableMapping):
            raise TaskIdError(
                f"the collator made a {type(batch).__name__}, no batch of tensors: a trainer that generates from "
                "prompts, as GRPO and RLOO do, hands no task_ids to the model; train one task at a time with set_task"
            )
        inputs = batch.get("input_ids")
        batch["task_ids"] = _laid_out(tasks, plain, None if inputs is None else torch.as_tensor(inputs), batch)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        """For the processes of a data loader: the names of the tasks in place of the model."""
        return {**self.__dict__, "model": list(self._position())}

    def _position(self) -> dict[str, int]:
        # At every batch, for tasks may have been added or removed since.
        names = bank_tasks(self.model) if isinstance(self.model, nn.Module) else self.model
        return {name: index for index, name in enumerate(names)}

    def _tasks(self, index: int, row: Row, position: Mapping[str, int]) -> int | list[int]:
        """The id of a row, or those of its tokens."""
        value = row.get(self.column)
        if value is None:
            raise TaskIdError(
                f"row {index} of the batch has no {self.column!r}, only {', '.join(map(repr, row))}: keep the column "
                "with remove_unused_columns=False in the trainer's arguments; TRL's own packing drops it too, so pack "
                "the rows beforehand (docs/trl.md, Packing)"
            )
        value = value.tolist() if hasattr(value, "tolist") else value
        many = isinstance(value, list | tuple)
        ids = [self._id(index, one, position) for one in (value if many else [value])]
        if not many:
            return ids[0]
        lengths = row.get("seq_lengths")
        if lengths is not None and len(lengths) == len(ids):
            return [one for one, length in zip(ids, lengths, strict=True) for _ in range(int(length))]
        return ids

    def _id(self, index: int, task: object, position: Mapping[str, int]) -> int:
        if isinstance(task, str) and task in position:
            return position[task]
        if isinstance(task, int) and not isinstance(task, bool) and 0 <= task < len(position):
            return task
        raise TaskIdError(
            f"row {index} of the batch, {self.column!r}: {task!r} is no task of this bank, which has "
            f"{', '.join(position)} (ids 0 to {len(position) - 1})"
        )


def _laid_out(tasks: list[int | list[int]], rows: list[dict[str, Any]], inputs: Tensor | None, batch: Row) -> Tensor:
    """The ids in the shape of a batch: (batch,), or (rows, length) where a row has several tasks."""
    each = all(isinstance(task, int) for task in tasks)
    found = len(rows) if inputs is None else inputs.shape[0]
    if each and found == len(rows):
        return torch.tensor(tasks)
    if inputs is not None and found == len(rows):
        mask = batch.get("attention_mask")
        mask = mask if mask is not None and mask.ndim == 2 else None
        return torch.stack(
            [
                _of_tokens(_spread([task], [row]), [row], inputs[index], None if mask is None else mask[index])
                for index, (task, row) in enumerate(zip(tasks, rows, strict=True))
            ]
        )
    if inputs is not None and found == 1:
        return _of_tokens(_spread(tasks, rows), rows, inputs[0], None)[None]
    sides = sum(f"{side}_ids" in rows[0] or side in rows[0] for side in _SIDES)
    if each and found in [len(rows) * count for count in range(2, sides + 1)]:
        return torch.tensor(tasks).repeat(found // len(rows))
    raise TaskIdError(
        f"the collator made {found} rows of {len(rows)}: expected as many, one for all (padding-free), or one for each "
        "chosen and rejected answer, with one task a row; put task_ids into the batch yourself"
    )


def _spread(tasks: list[int | list[int]], rows: list[dict[str, Any]]) -> list[int]:
    """One id for each token of these rows."""
    spread: list[int] = []
    for index, (task, row) in enumerate(zip(tasks, rows, strict=True)):
        tokens = len(row["input_ids"]) if "input_ids" in row else None
        if tokens is None or (isinstance(task, list) and len(task) != tokens):
            has = "no input_ids" if tokens is None else f"{tokens} input_ids"
            raise TaskIdError(
                f"row {index} of the batch has {has}, but its tasks are told token by token: "
                f"{len(task) if isinstance(task, list) else 'one'} for the row; pack rows that are tokenized already"
            )
        spread += task if isinstance(task, list) else [task] * tokens
    return spread


def _of_tokens(ids: list[int], rows: list[dict[str, Any]], inputs: Tensor, mask: Tensor | None) -> Tensor:
    """The ids where their tokens are in one row of the batch, (length,); padding belongs to the last task."""
    tokens = torch.cat([torch.as_tensor(row["input_ids"]) for row in rows])
    places = torch.arange(len(inputs)) < len(ids) if mask is None else torch.as_tensor(mask) > 0
    if int(places.sum()) != len(ids) or not torch.equal(inputs[places].cpu(), tokens.to(inputs.dtype)):
        raise TaskIdError(
            f"the collator's row of {len(inputs)} tokens does not consist of the {len(ids)} given tokens, "
            "one after the other (it may have cut them), so the task of each token is unknown; use a "
            "collator that cuts nothing"
        )
    laid_out = torch.full((len(inputs),), ids[-1])
    laid_out[places] = torch.tensor(ids)
    return laid_out
