"""A few tasks of a bank as a bank of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from colora.bank.layout import BankInfo
from colora.bank.rows.folder import fields_without_rows
from colora.bank.tensors import BankContents, SavedBank, write_bank

__all__ = ["write_part"]


def write_part(
    saved: SavedBank, tasks: Sequence[str], cores: Mapping[str, Tensor], info: BankInfo, folder: Path
) -> None:
    """Write a bank of a few tasks with another one's A and B, as PEFT reads it; nothing else of that one's folder.

    Args:
        saved: the other bank.
        tasks: names of the tasks.
        cores: by layer, the stack of their cores (n, r, r).
        info: of the bank to write.
        folder: to write.

    Raises:
        CheckpointError: if it cannot be written.
    """
    fields = (saved.fields if saved.rows is None else fields_without_rows(saved.fields)) | {"tasks": list(tasks)}
    write_bank(BankContents(folder, fields, saved.tensors_with(cores), {"format": "pt"}, info), folder)
