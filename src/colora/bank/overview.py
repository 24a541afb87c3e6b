"""What is in a bank and how large it is: of a saved one read off its files, of one in memory off its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_layers
from colora.bank.layout import BankInfo
from colora.bank.tensors import SavedBank

__all__ = ["BankOverview", "TaskSize", "bank_overview", "task_sizes"]


@dataclass(frozen=True)
class TaskSize:
    """What one task adds to a bank, or what all share, in numbers and bytes."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class BankOverview:
    """What is in a bank: names of the tasks, rank, sizes of one task's cores and of the shared A and B."""

    tasks: Sequence[str]
    r: int
    per_task: TaskSize
    shared: TaskSize
    info: BankInfo


def bank_overview(path: str | Path) -> BankOverview:
    """What is in a saved bank; its base model is not loaded, and its tensors are mapped and not read.

    Raises:
        BankFileError: a file is missing or damaged.
    """
    bank = SavedBank(path)
    layers = list(bank.layers.values())
    per_task = _size([layer.cores[0] for layer in layers])
    shared = _size([factor for layer in layers for factor in (layer.A, layer.B)])
    return BankOverview(bank.tasks, bank.config.r, per_task, shared, bank.info)


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
