"""A bank's files with a new task in them: all that was there is written again as it was read, to the bit."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_layers, bank_tuner
from colora.bank.growing import GrowingBank
from colora.bank.keys import tensor_key
from colora.bank.layout import BankInfo
from colora.bank.rows.change import extend_bank
from colora.bank.tensors import SavedBank

__all__ = ["write_new_task"]


def write_new_task(saved: SavedBank, model: PeftModel, name: str, info: BankInfo, target: Path) -> None:
    """Write a bank with the new task `name` of the one in `model`, which was loaded from there; atomic.

    A bank of cores of one size is written as it was. One of several sizes is one in rows: so is a bank that was
    extended for the new task.

    Raises:
        BankFileError: the bank is damaged; CheckpointError: it cannot be written, what was there still is.
    """
    tuner = bank_tuner(model)
    config, core = tuner.peft_config[tuner.active_adapters[0]], tuner.core(name)
    if config.r != saved.config.r or (saved.rows is None and len(next(iter(core.values()))) != config.r):
        fields = {"r": config.r, "lora_alpha": config.lora_alpha, "core_rank": config.core_rank}
        fields = {key: value for key, value in fields.items() if value is not None}
        extend_bank(saved, name, core, _factors(saved, model), fields, info, target)
    else:
        growing = GrowingBank(saved, info, target)
        growing.add(name, core)
        growing.write()


def _factors(saved: SavedBank, model: PeftModel) -> dict[str, Tensor]:
    """A and B of the model by the names of the file, where what the file has is as it is there."""
    bank, found = bank_tuner(model).active_adapters[0], {}
    for name, layer in bank_layers(model, bank).items():
        for part, tensors in (("A", layer.colora_A), ("B", layer.colora_B)):
            key = tensor_key(name, part)
            found[key] = _grown(saved[key], tensors[bank].detach().cpu())
    return found


def _grown(before: Tensor, after: Tensor) -> Tensor:
    if before.shape == after.shape:
        return before
    result = after.to(torch.promote_types(before.dtype, after.dtype), copy=True).contiguous()
    result[tuple(slice(size) for size in before.shape)] = before.to(result)
    return result
