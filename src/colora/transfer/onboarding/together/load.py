"""A bank on its base model, as new tasks are trained on it together: in float32, or the frozen parts in bfloat16."""

from collections.abc import Sequence
from typing import Any

import torch

from colora.adapter.model import bank_layers
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank
from colora.bank.tensors import SavedBank
from colora.common.device import base_dtype_on, cpu_multiplies_bfloat16, training_device
from colora.errors import ConfigError
from colora.tasks.tokenizer import Tokenizer

__all__ = ["load_for_training", "most_tokens_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_TOKENS = {"cpu": 1024}  # more of them are no faster there, and need more memory
MOST_TOKENS_ELSEWHERE = 16384


def load_for_training(
    saved: SavedBank, base: str | None, dtype: str | None, tasks: Sequence[str] | None = None
) -> tuple[Any, Tokenizer, BankInfo]:
    """The model, its tokenizer, and what is known of the bank. Cores of several sizes are padded with zeros.

    Args:
        tasks: the only ones that are read; None: all.
        dtype: of the base, A and B, which rest: "float32" or "bfloat16"; None: bfloat16 where CPU or
            accelerator multiplies it, else float32. Cores, their gradients and Adam's moments are float32 in any case.

    Raises:
        ConfigError: another dtype.
        BankFileError, BaseMismatchError: see `load_bank`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype: expected {' or '.join(DTYPES)}, found {dtype}")
    device = training_device("auto")
    on_cpu = torch.device(device or "cpu").type == "cpu"
    quick = torch.bfloat16 if on_cpu and cpu_multiplies_bfloat16() else base_dtype_on(device)
    chosen = quick if dtype is None else DTYPES[dtype]
    model, tokenizer, info = load_bank(saved, base, dtype=chosen, device=device, tasks=tasks, padded=True)
    if chosen is torch.bfloat16:
        bank = model.active_adapters[0]
        for layer in bank_layers(model, bank).values():
            for factors in (layer.colora_A, layer.colora_B):  # products of two precisions cost a copy of their inputs
                factors[bank].data = factors[bank].data.to(chosen)
        if on_cpu and getattr(model.config, "_attn_implementation", None) == "sdpa":
            # torch's fused attention with a mask takes several times as long as two products in bfloat16.
            model.get_base_model().set_attn_implementation("eager")
    return model, tokenizer, info


def most_tokens_of(device: torch.device) -> int:
    """Tokens of a forward pass, padding included."""
    return MOST_TOKENS.get(device.type, MOST_TOKENS_ELSEWHERE)
