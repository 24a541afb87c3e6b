"""Names of tensors in a bank's file: of A, B and the cores of an adapted layer."""

from colora.adapter.model import CoLoRAModel

__all__ = ["PARTS", "is_part", "split_key", "tensor_key"]

PEFT_PREFIX = "base_model.model."
PARTS = ("A", "B", "core")


def tensor_key(layer: str, part: str) -> str:
    """The name in a bank's file of "A", "B" or "core" of an adapted layer, which has its name in the base model."""
    return f"{PEFT_PREFIX}{layer}.{CoLoRAModel.prefix}{part}"


def split_key(key: str) -> tuple[str, str] | None:
    """Layer and part that a name in a bank's file stands for; None for a module that is trained whole."""
    layer, _, part = key.removeprefix(PEFT_PREFIX).rpartition(f".{CoLoRAModel.prefix}")
    return (layer, part) if layer and part in PARTS else None


def is_part(key: str, *parts: str) -> bool:
    """Whether a name in a bank's file is that of one of these parts of a layer."""
    split = split_key(key)
    return split is not None and split[1] in parts
