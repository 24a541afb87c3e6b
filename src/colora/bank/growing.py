"""A saved bank that tasks are added to, in either of its forms."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from colora.bank.keys import tensor_key
from colora.bank.layout import BankInfo
from colora.bank.rows.change import append_tasks
from colora.bank.tensors import BankContents, SavedBank, write_bank

__all__ = ["START_TASKS", "GrowingBank", "start_tasks"]

START_TASKS = 256
"""Of a bank in rows, the tasks whose cores a new one may start from."""


def start_tasks(saved: SavedBank) -> list[str] | None:
    """Tasks of a bank in rows, evenly spread, that stand for all where a new one is trained; None: all."""
    if saved.rows is None:
        return None
    step = max(1, len(saved.tasks) // START_TASKS)
    return list(saved.tasks[::step])[:START_TASKS]


class GrowingBank:
    """Keeps new tasks in memory until `write`, which writes the bank with them as a whole.

    Args:
        saved: the bank, as it is on disk now.
        info: of the bank, in which the new tasks are noted; None: it has none, and keeps none.
        target: folder to write.

    Raises:
        BankFileError: the bank is damaged.
    """

    def __init__(self, saved: SavedBank, info: BankInfo | None, target: Path) -> None:
        self.info, self.target = info, target
        self._saved, self._new = saved, dict[str, Mapping[str, Tensor]]()
        self._files: BankContents | None = None if saved.rows is not None else saved.load()
        if self._files is not None:
            self._files.info = info

    def add(self, name: str, core: Mapping[str, Tensor]) -> None:
        """`add_all` of one task."""
        self.add_all([(name, core)])

    def add_all(self, cores: Sequence[tuple[str, Mapping[str, Tensor]]]) -> None:
        """Add tasks in this order, each with its core, (r, r) for each layer; nothing is written yet.

        Files may hold other numbers than the cores have (bfloat16, float64): stacks become as fine as both, so that
        neither is rounded; rows stay as they are, and the cores are rounded to them.
        """
        if self._files is None:
            self._new |= dict(cores)
            return
        for layer in cores[0][1] if cores else ():
            key = tensor_key(layer, "core")
            before, new = self._files.tensors[key], torch.stack([core[layer].detach().cpu() for _, core in cores])
            work = torch.promote_types(before.dtype, new.dtype)
            self._files.tensors[key] = torch.cat([before.to(work), new.to(work)])
        self._files.config["tasks"] = [*self._files.tasks, *(name for name, _ in cores)]

    def write(self) -> None:
        """Write the bank with what was added. Raises as `write_bank` and `append_tasks`."""
        if self._files is not None:
            write_bank(self._files, self.target)
        elif self._new:
            append_tasks(self._saved, self._new, self.info or self._saved.info, self.target)
            self._saved, self._new = SavedBank(self.target), {}
