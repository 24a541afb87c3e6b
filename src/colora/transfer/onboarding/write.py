"""A bank's files with a new task in them: all that was there is written again as it was read, to the bit."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_layers, bank_tuner
from colora.bank.keys import tensor_key
from colora.bank.layout import BankInfo
from colora.bank.tensors import BankContents, SavedBank, write_bank

__all__ = ["add_to_files", "write_extended"]


def write_extended(saved: SavedBank, info: BankInfo, model: PeftModel, name: str, target: Path) -> None:
    """Write the bank that `model` was loaded from with the last task of `model`, and its further directions.

    Raises:
        BankFileError: the bank is damaged; CheckpointError: it cannot be written.
    """
    files = saved.load()
    files.info = info
    add_to_files(files, model, name)
    write_bank(files, target)


def add_to_files(files: BankContents, model: PeftModel, name: str) -> None:
    """Add the task `name`, the last of the bank in `model`, to the bank that `model` was loaded from.

    Files may hold other numbers than the model computes in (bfloat16, float64). What they hold stays; only stacks that
    grow become as fine as both, so that neither is rounded.
    """
    bank = bank_tuner(model).active_adapters[0]
    for layer_name, layer in bank_layers(model, bank).items():
        for part, tensors in (("A", layer.colora_A), ("B", layer.colora_B), ("core", layer.colora_core)):
            key = tensor_key(layer_name, part)
            files.tensors[key] = _grown(files.tensors[key], tensors[bank].detach().cpu())
    config = bank_tuner(model).peft_config[bank]
    files.config["tasks"] = [*files.tasks, name]
    if files.config["r"] != config.r:
        files.config |= {"r": config.r, "lora_alpha": config.lora_alpha}


def _grown(before: Tensor, after: Tensor) -> Tensor:
    if before.shape == after.shape:
        return before
    result = after.to(torch.promote_types(before.dtype, after.dtype), copy=True).contiguous()
    result[tuple(slice(size) for size in before.shape)] = before.to(result)
    return result
