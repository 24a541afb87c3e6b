"""Batches that hold every task in equal blocks, in an order that no method changes."""

from collections.abc import Sequence

import numpy as np

from colora.errors import TaskFileError
from colora.experiments.methods.forward import Row
from colora.tasks.encode import encode_tasks
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer

__all__ = ["encode_rows", "step_rows"]


def encode_rows(tasks: Sequence[Task], tokenizer: Tokenizer, split: str, max_length: int) -> list[list[Row]]:
    """The rows of one split, task by task.

    Raises:
        TaskFileError: for a task without examples, or with an example that is too long.
    """
    encoded = encode_tasks(tasks, tokenizer, split, max_length)
    if empty := [task.name for task, size in zip(tasks, encoded.sizes, strict=True) if not size]:
        raise TaskFileError([f"task {name!r}: expected examples in split {split!r}, found none" for name in empty])
    rows = [
        Row(tuple(item["input_ids"]), tuple(item["labels"])) for item in map(encoded.__getitem__, range(len(encoded)))
    ]
    return [rows[start : start + size] for start, size in zip(encoded.offsets, encoded.sizes, strict=True)]


def step_rows(rows: Sequence[Sequence[Row]], per_task: int, step: int, seed: int) -> list[Row]:
    """The batch of a step: `per_task` rows of task 0, then of task 1, and so on.

    Each task goes through its examples in shuffled passes; its order depends on the seed and its index alone, so that
    every method sees the same rows in the same steps, and a task's order does not depend on the other tasks.
    """
    batch = []
    for task, examples in enumerate(rows):
        for position in range(step * per_task, (step + 1) * per_task):
            shuffle, index = divmod(position, len(examples))
            order = np.random.default_rng((seed, task, shuffle)).permutation(len(examples))
            batch.append(examples[order[index]])
    return batch
