"""A bank on its base model: saved from there, and brought back."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError

from colora.adapter.config import ADAPTER_NAME
from colora.bank.card import CARD_FILE, write_card
from colora.bank.layout import INFO_FILE, TENSORS_FILE, BankInfo, find_bank
from colora.bank.tensors import SavedBank
from colora.common.files import staged_folder, write_json
from colora.errors import BankFileError, ColoraError
from colora.models.base import load_base
from colora.tasks.tokenizer import Tokenizer

__all__ = ["attach_adapter", "attach_bank", "load_bank", "save_bank"]


def save_bank(model: PeftModel, folder: Path, info: BankInfo) -> None:
    """Write a bank atomically. Raises CheckpointError if that fails; what was in `folder` is then still there."""
    with staged_folder(folder) as staging:
        if (folder / CARD_FILE).is_file():  # what a user wrote there stays
            shutil.copyfile(folder / CARD_FILE, staging / CARD_FILE)
        # save_embedding_layers=False: otherwise PEFT asks the hub whether the vocabulary was resized
        model.save_pretrained(str(staging), save_embedding_layers=False)
        write_json(staging / INFO_FILE, info.as_json())
        write_card(staging)


def load_bank(
    bank: str | Path | SavedBank,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    trainable: bool = False,
) -> tuple[Any, Tokenizer, BankInfo]:
    """A bank on its base model, the tokenizer with the prompt style of training, and what is known about the bank.

    Args:
        bank: folder of a bank or of a run, or one that is open already.
        base: another place of the same base model.

    Raises:
        BankFileError: a file is missing, truncated, edited, or of a newer version; the message names it.
        BaseMismatchError: the base is another model.
    """
    saved = bank if isinstance(bank, SavedBank) else SavedBank(bank)
    info = saved.info
    if not (base or info.base):
        raise BankFileError(f"{saved.folder}: the bank does not name its base model; name it with base=... (--base)")
    model, tokenizer = load_base(base or info.base, dtype=dtype, device=device, chat_template=info.chat_template)
    return attach_bank(model, saved, trainable), tokenizer, info


def attach_bank(model: Any, bank: str | Path | SavedBank, trainable: bool = False) -> PeftModel:
    """A saved bank on a base model that is loaded already, as `PeftModel.from_pretrained` would attach it.

    Raises:
        BankFileError: a file is missing, truncated, edited, or of a newer version.
        BaseMismatchError: the base is another model.
    """
    saved = bank if isinstance(bank, SavedBank) else SavedBank(bank)
    saved.check()
    config = type(saved.config)(**saved.config.to_dict())
    config.inference_mode = not trainable
    config.unchecked_sha256 = None  # it has been checked
    if getattr(model, "hf_device_map", None) or getattr(model, "_checkpoint_conversion_mapping", None):
        # Weights that lie elsewhere or have other names: PEFT knows what to do about them.
        return _from_pretrained(model, saved.folder, trainable, config)
    model_class: Any = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
    with _told_of(saved.folder):
        attached = model_class(model, config, ADAPTER_NAME, autocast_adapter_dtype=model.dtype != torch.float64)
        set_peft_model_state_dict(attached, dict(saved), ADAPTER_NAME)
    attached.peft_config[ADAPTER_NAME].loaded_from = str(saved.folder)
    peft_model: PeftModel = attached if trainable else attached.eval()
    return peft_model


def attach_adapter(model: Any, folder: Path) -> PeftModel:
    """A saved bank, or another of PEFT's adapters, for inference on a base model that is loaded already.

    Raises:
        as `attach_bank`.
    """
    return _from_pretrained(model, find_bank(folder))  # what is missing PEFT would ask the hub for


def _from_pretrained(model: Any, folder: Path, trainable: bool = False, config: Any = None) -> PeftModel:
    with _told_of(folder):
        return PeftModel.from_pretrained(
            model,
            str(folder),
            is_trainable=trainable,
            config=config,
            autocast_adapter_dtype=model.dtype != torch.float64,
            torch_device="cpu",
        )


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """What goes wrong inside names the folder of the bank."""
    try:
        yield
    except BankFileError as error:
        raise BankFileError(f"{folder}: {error}") from error
    except ColoraError:
        raise
    except SafetensorError as error:
        raise BankFileError(
            f"{folder / TENSORS_FILE}: truncated or no safetensors file ({error}); restore it from a copy or a "
            "checkpoint"
        ) from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise BankFileError(f"{folder}: cannot be loaded: {error}") from error
