"""The tensors of a saved bank, layer by layer, read off its files."""

from pathlib import Path

from torch import Tensor

from colora.bank.tensors import CORE, read_bank_config, read_bank_files
from colora.errors import BankFileError

__all__ = ["bank_tensors"]

PREFIX = "base_model.model."


def bank_tensors(path: str | Path) -> tuple[list[str], float, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """A bank's tasks, its scale s, and for each layer A (r, d_in), B (d_out, r) and the cores (K, r, r).

    Raises:
        BankFileError: a file is missing or damaged, or it is another adapter; A or B of a layer is missing.
    """
    bank = read_bank_files(path)
    names = sorted(key.removesuffix(CORE) for key in bank.cores)
    config = read_bank_config(path)
    layers = {}
    for name in names:
        A, B = bank.tensors.get(f"{name}.colora_A"), bank.tensors.get(f"{name}.colora_B")
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or not A.shape[0] == B.shape[1] == config.r:
            found = " and ".join("none" if one is None else str(tuple(one.shape)) for one in (A, B))
            raise BankFileError(f"{bank.folder}: {name}: expected A and B of rank {config.r}, found {found}")
        layers[name.removeprefix(PREFIX)] = (A, B, bank.tensors[f"{name}{CORE}"])
    return bank.tasks, config.scaling, layers
