"""What is in a bank and how large it is: of a saved one read off its files, of one in memory off its model."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_layers
from colora.bank.layout import BankInfo
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError

__all__ = ["PAGE", "BankOverview", "TaskPage", "TaskSize", "bank_overview", "task_page", "task_sizes"]

PAGE = 100
"""Tasks on a page."""


@dataclass(frozen=True)
class TaskSize:
    """What one task adds to a bank, or what all share, in numbers and bytes."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class BankOverview:
    """What is in a bank: names of the tasks, rank, sizes of one task's cores of that rank, and of A and B."""

    tasks: Sequence[str]
    r: int
    per_task: TaskSize
    shared: TaskSize
    info: BankInfo
    saved: SavedBank

    def size_of(self, task: str) -> TaskSize:
        """What a task adds, whose core may be of a smaller rank. Raises KeyError if there is no such task."""
        share = self.saved.core_rank(self.saved.index[task]) ** 2, self.r**2
        return TaskSize(self.per_task.parameters * share[0] // share[1], self.per_task.bytes * share[0] // share[1])


@dataclass(frozen=True)
class TaskPage:
    """Some of the tasks of a bank.

    Attributes:
        names: of the tasks on this page.
        number: of the page, from 1.
        pages: how many there are; 1 where there is nothing to show.
        found: tasks on all of them.
    """

    names: list[str]
    number: int
    pages: int
    found: int


def task_page(names: Sequence[str], number: int = 1, matching: str | None = None, size: int = PAGE) -> TaskPage:
    """A page of tasks, in their order; without a pattern no other name is looked at.

    Args:
        names: of all tasks.
        number: of the page, from 1.
        matching: a pattern, as `user-12*`, that the names must match; case counts.
        size: tasks on a page.

    Raises:
        ConfigError: there is no such page.
    """
    begin = (number - 1) * size
    if matching is None:
        found, shown = len(names), list(names[begin : begin + size])
    else:
        found, shown, match = 0, [], re.compile(fnmatch.translate(matching)).match
        for name in names:
            if match(name):
                if begin <= found < begin + size:
                    shown.append(name)
                found += 1
    pages = max(1, -(-found // size))
    if not 1 <= number <= pages:
        raise ConfigError(f"page {number}: expected a page from 1 to {pages}, because there are {found} tasks")
    return TaskPage(shown, number, pages, found)


def bank_overview(path: str | Path | SavedBank) -> BankOverview:
    """What is in a saved bank; its base model is not loaded, and its tensors are mapped and not read.

    Raises:
        BankFileError: a file is missing or damaged.
    """
    bank = path if isinstance(path, SavedBank) else SavedBank(path)
    layers = list(bank.layers.values())
    per_task = _size([layer.cores[0] for layer in layers])
    shared = _size([factor for layer in layers for factor in (layer.A, layer.B)])
    return BankOverview(bank.tasks, bank.config.r, per_task, shared, bank.info, bank)


def task_sizes(model: PeftModel) -> tuple[TaskSize, TaskSize]:
    """What each task has for itself, and what all share (A and B)."""
    name = model.active_adapters[0]
    layers = list(bank_layers(model, name).values())
    per_task = _size([layer.colora_core[name][0] for layer in layers])
    shared = _size([factor for layer in layers for factor in (layer.colora_A[name], layer.colora_B[name])])
    return per_task, shared


def _size(tensors: list[Tensor]) -> TaskSize:
    numbers = sum(tensor.numel() for tensor in tensors)
    return TaskSize(numbers, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
