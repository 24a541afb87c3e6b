"""The tensors of a saved bank, layer by layer, read off its file."""

from pathlib import Path

from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from colora.adapter.config import CoLoRAConfig
from colora.bank import find_bank
from colora.errors import BankFileError, ColoraError

__all__ = ["bank_tensors"]

PREFIX = "base_model.model."


def bank_tensors(path: str | Path) -> tuple[list[str], float, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """A bank's tasks, its scale s, and for each layer A (r, d_in), B (d_out, r) and the cores (K, r, r).

    Raises:
        BankFileError: a file is missing or damaged, or it is another adapter.
    """
    folder = find_bank(path)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / "adapter_model.safetensors")
    except ColoraError as error:
        raise BankFileError(f"{folder}: {error}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BankFileError(f"{folder}: truncated or damaged: {error}") from error
    if not isinstance(config, CoLoRAConfig):
        raise BankFileError(f"{folder}: expected a bank, found an adapter of type {config.peft_type}")
    layers = {}
    for key in sorted(tensors):
        if key.endswith(".colora_A"):
            name = key.removesuffix(".colora_A")
            parts = [tensors.get(f"{name}.colora_{which}") for which in ("A", "B", "core")]
            if any(part is None for part in parts):
                raise BankFileError(f"{folder}: layer {name.removeprefix(PREFIX)} lacks A, B or its cores")
            layers[name.removeprefix(PREFIX)] = (parts[0], parts[1], parts[2])
    if not layers or any(len(cores) != len(config.tasks) for _, _, cores in layers.values()):
        raise BankFileError(f"{folder}: the cores are not those of its {len(config.tasks)} tasks")
    return list(config.tasks), config.scaling, layers
