"""Banks in rows for tests: small, on a tiny model, with cores that say whose they are."""

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

import colora
from colora.adapter.model import bank_tuner
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from tests.helpers.dense_oracle import make_bank
from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama

RANK = 4


def stored_bank(names: list[str], room: int = 4) -> PeftModel:
    """A bank of random cores on the tiny model that `save_base` saves, its cores in a store."""
    model = make_bank(tiny_llama(), names)
    colora.store_cores(model, room=room)
    return model


def base_in(folder: Path) -> str:
    """The tiny base model, saved there."""
    return save_base(folder / "base", chat=False)


def row_bank(folder: Path, names: list[str], info: BankInfo | None = None) -> tuple[Path, dict[str, dict]]:
    """A saved bank in rows, and the cores of its tasks by name."""
    model = stored_bank(names)
    info = info or BankInfo(base=base_in(folder), chat_template=False, max_length=96)
    save_bank(model, folder / "bank", info)
    return folder / "bank", {name: bank_tuner(model).core(name) for name in names}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two cores are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def flip_byte(file: Path, offset: int) -> None:
    """Change one byte of a file, where it lies."""
    content = np.fromfile(file, dtype=np.uint8)
    content[offset] ^= 1
    content.tofile(file)
