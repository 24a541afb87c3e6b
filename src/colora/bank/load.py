"""A bank on its base model: saved from there, and brought back."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from colora.adapter.config import ADAPTER_NAME, ROWS_VERSION
from colora.adapter.lookup import bank_tasks, wrapped_router
from colora.adapter.stored.access import ROOM, store_cores, stored_cores
from colora.bank.card import CARD_FILE, write_card
from colora.bank.config_file import read_fields
from colora.bank.layout import CONFIG_FILE, INFO_FILE, TENSORS_FILE, BankInfo, find_bank
from colora.bank.part import write_part
from colora.bank.rows.save import save_stored
from colora.bank.rows.stored import RowChoice, store_saved
from colora.bank.tensors import SavedBank
from colora.common.device import base_dtype_on
from colora.common.files import staged_folder, write_json
from colora.errors import BankFileError, ColoraError
from colora.models.base import load_base
from colora.tasks.tokenizer import Tokenizer

__all__ = ["ROOM", "attach_adapter", "attach_bank", "attach_stored", "load_bank", "save_bank"]


def save_bank(model: PeftModel, folder: Path, info: BankInfo) -> None:
    """Write a bank atomically; one whose cores are in a store (`store_cores`), in rows, which are never all in memory.

    Raises:
        CheckpointError: if that fails; what was in `folder` is then still there.
        BankFileError: a core in a store holds NaN or infinity, or cannot be read where it is kept.
    """
    stored = None if wrapped_router(model) is None else stored_cores(model)  # a plain LoRA is saved so as well
    with staged_folder(folder) as staging:
        if (folder / CARD_FILE).is_file():  # what a user wrote there stays
            shutil.copyfile(folder / CARD_FILE, staging / CARD_FILE)
        if stored is not None:
            save_stored(model, stored, staging, info)
            return
        # save_embedding_layers=False: otherwise PEFT asks the hub whether the vocabulary was resized
        model.save_pretrained(str(staging), save_embedding_layers=False)
        if not isinstance(info.examples, dict):  # that of a bank in rows, with all of its tasks
            info = info.of_tasks(bank_tasks(model))
        write_json(staging / INFO_FILE, info.as_json())
        write_card(staging)


def load_bank(
    bank: str | Path | SavedBank,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    trainable: bool = False,
    tasks: Sequence[str] | None = None,
    padded: bool = False,
) -> tuple[Any, Tokenizer, BankInfo]:
    """A bank on its base model, the tokenizer with the prompt style of training, and what is known about the bank.

    Args:
        bank: folder of a bank or of a run, or one that is open already.
        base: another place of the same base model.
        dtype: of the base; None: bfloat16 where `device` is an accelerator that computes in it, else float32.
        tasks: the only ones that are wanted, whose cores alone are read; see `attach_bank`. What is known is then of
            these tasks alone; `SavedBank.info` has that of all.
        padded: of these tasks, see `attach_bank`.

    Raises:
        BankFileError: a file is missing, truncated, edited, or of a newer version; the message names it.
        BaseMismatchError: the base is another model.
        TaskIdError: the bank does not know one of the tasks.
    """
    saved = bank if isinstance(bank, SavedBank) else SavedBank(bank)
    info = saved.info if tasks is None else saved.info.of_tasks(tasks)
    if not (base or info.base):
        raise BankFileError(f"{saved.folder}: the bank does not name its base model; name it with base=... (--base)")
    dtype = base_dtype_on(device) if dtype is None else dtype
    model, tokenizer = load_base(base or info.base, dtype=dtype, device=device, chat_template=info.chat_template)
    return attach_bank(model, saved, trainable, tasks, padded=padded), tokenizer, info


def attach_bank(
    model: Any,
    bank: str | Path | SavedBank,
    trainable: bool = False,
    tasks: Sequence[str] | None = None,
    *,
    padded: bool = False,
    room: int = ROOM,
    folder: Path | None = None,
) -> PeftModel:
    """A saved bank on a base model that is loaded already, as `PeftModel.from_pretrained` would attach it.

    Of a bank in rows the cores are in a store then (`store_cores`), which reads each from the bank's files when it is
    wanted, and keeps those that change.

    Args:
        model: the base model.
        bank: folder of a bank or of a run, or one that is open already.
        trainable: whether it is to be trained.
        tasks: the only ones that are wanted, in this order: the bank on the model is one of these tasks, with all
            their cores on the model (in a store with room for them, where they are of several sizes). By default all.
        padded: whether the cores of these tasks stay on the model all the same where they are of several sizes, padded
            with zeros to the largest: for those who do not train or save them.
        room: of a bank in rows, the most tasks at a time; `store_cores` says more.
        folder: of a bank in rows, where cores that change are kept; None: in memory.

    Raises:
        BankFileError: a file is missing, truncated, edited, or of a newer version.
        BaseMismatchError: the base is another model.
        TaskIdError: the bank does not know one of the tasks.
    """
    saved = bank if isinstance(bank, SavedBank) else SavedBank(bank)
    if tasks is not None:
        indices = saved.indices(tasks)
        saved.check(indices)
        attached = _attach(model, saved, list(tasks), saved.cores(indices), trainable)
        ranks = {task: saved.core_rank(index) for task, index in zip(tasks, indices, strict=True)}
        if not padded and min(saved.config.rank_of_new, *ranks.values()) < saved.config.r:
            store_cores(attached, max(room, len(tasks)), folder, ranks)
        return attached
    if saved.rows is not None:
        choice = RowChoice(saved.rows.index.names, np.arange(len(saved.rows)))
        return attach_stored(model, saved, choice, trainable, room, folder)
    saved.check()
    return _attach(model, saved, saved.tasks, None, trainable)


def attach_stored(
    model: PreTrainedModel, saved: SavedBank, choice: RowChoice, trainable: bool, room: int, folder: Path | None
) -> PeftModel:
    """A bank of tasks that are, or start as, some of a saved one, with its cores in a store; see `attach_bank`.

    Raises:
        BankFileError, BaseMismatchError: as `attach_bank`; CheckpointError: the folder cannot be written.
    """
    saved.check()
    places = [f"place {number}" for number in range(min(room, len(choice.names)))]
    attached = _attach(model, saved, places, saved.cores([0] * len(places)), trainable)
    store_saved(attached, saved, choice, room, folder)
    return attached


def _attach(
    model: PreTrainedModel, saved: SavedBank, tasks: Sequence[str], cores: Mapping[str, Tensor] | None, trainable: bool
) -> PeftModel:
    """A bank of these tasks with the saved one's A and B; `cores` None: it is the saved one, as it is."""
    config = saved.config.with_tasks(tasks)
    config.inference_mode = not trainable
    config.unchecked_sha256 = None  # it has been checked
    if getattr(model, "hf_device_map", None) or getattr(model, "_checkpoint_conversion_mapping", None):
        # Weights that lie elsewhere or have other names: PEFT knows what to do about them, with a folder.
        if cores is None:
            return _from_pretrained(model, saved.folder, trainable, config)
        with TemporaryDirectory(prefix="colora-bank-") as folder:
            write_part(saved, tasks, cores, saved.info.of_tasks([]), Path(folder) / "bank")
            return _from_pretrained(model, Path(folder) / "bank", trainable, config)
    state = dict(saved) if cores is None else saved.tensors_with(cores)
    model_class: Any = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
    with _told_of(saved.folder):
        attached = model_class(model, config, ADAPTER_NAME, autocast_adapter_dtype=model.dtype != torch.float64)
        set_peft_model_state_dict(attached, state, ADAPTER_NAME)
    attached.peft_config[ADAPTER_NAME].loaded_from = str(saved.folder)
    peft_model: PeftModel = attached if trainable else attached.eval()
    return peft_model


def attach_adapter(model: Any, folder: Path) -> PeftModel:
    """A saved bank, or another of PEFT's adapters, for inference on a base model that is loaded already.

    Raises:
        as `attach_bank`.
    """
    found = find_bank(folder)  # what is missing PEFT would ask the hub for
    if read_fields(found / CONFIG_FILE).get("format_version") == ROWS_VERSION:
        return attach_bank(model, found)
    return _from_pretrained(model, found)


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
