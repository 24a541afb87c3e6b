"""The tensors of a saved bank, layer by layer, read off its files."""

from pathlib import Path

from torch import Tensor

from colora.bankfiles import CORE, read_bank_config, read_bank_files

__all__ = ["bank_tensors"]

PREFIX = "base_model.model."


def bank_tensors(path: str | Path) -> tuple[list[str], float, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """A bank's tasks, its scale s, and for each layer A (r, d_in), B (d_out, r) and the cores (K, r, r).

    Raises:
        BankFileError: a file is missing or damaged, or it is another adapter.
    """
    bank = read_bank_files(path)
    names = sorted(key.removesuffix(CORE) for key in bank.cores)
    layers = {
        name.removeprefix(PREFIX): (
            bank.tensors[f"{name}.colora_A"], bank.tensors[f"{name}.colora_B"], bank.tensors[f"{name}{CORE}"]
        )
        for name in names
    }  # fmt: skip
    return bank.tasks, read_bank_config(path).scaling, layers
