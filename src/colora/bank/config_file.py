"""`adapter_config.json` of a saved bank, as it stands and checked."""

from pathlib import Path
from typing import Any

from peft import PeftConfig

from colora.adapter.config import COLORA, CoLoRAConfig
from colora.bank.layout import CONFIG_FILE
from colora.common.json_text import parse_json
from colora.errors import BankFileError, ColoraError

__all__ = ["checked_config", "read_fields"]


def read_fields(file: Path) -> dict[str, Any]:
    """The fields as they stand. Raises BankFileError if it cannot be read."""
    try:
        fields = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BankFileError(f"{file}: damaged: {error}") from error
    if not isinstance(fields, dict):
        raise BankFileError(f"{file}: damaged: expected an object, found {type(fields).__name__}")
    return fields


def checked_config(folder: Path, fields: dict[str, Any]) -> CoLoRAConfig:
    """What they say, checked. Raises BankFileError if it is not the config of a bank, or of a newer version."""
    if fields.get("peft_type") != COLORA:
        advice = "; `colora import` makes a bank of plain LoRAs" if fields.get("peft_type") == "LORA" else ""
        raise BankFileError(f"{folder}: expected a bank, found an adapter of type {fields.get('peft_type')}{advice}")
    try:
        config = PeftConfig.from_peft_type(**fields)
    except ColoraError as error:
        raise BankFileError(f"{folder / CONFIG_FILE}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BankFileError(f"{folder / CONFIG_FILE}: damaged: {error}") from error
    assert isinstance(config, CoLoRAConfig)
    return config
