"""A saved bank as a folder: what `PeftModel.save_pretrained` writes, and `bank.json` with how it came to be.

bank/adapter_config.json, adapter_model.safetensors    what stock PEFT (with colora imported) loads
bank/bank.json                                         base, prompt style, examples seen by each task
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers
from colora.common.files import staged_folder, write_json
from colora.errors import BankFileError, ColoraError
from colora.models.base import load_base

__all__ = [
    "BankInfo",
    "BankOverview",
    "TaskSize",
    "attach_bank",
    "bank_overview",
    "find_bank",
    "load_bank",
    "read_bank_info",
    "save_bank",
    "task_sizes",
]

INFO_FILE = "bank.json"
NEEDED = ("adapter_config.json", "adapter_model.safetensors")


@dataclass
class BankInfo:
    """How a bank came to be.

    Attributes:
        base: name of the base model, as `load_base` takes it.
        chat_template: whether prompts use the tokenizer's chat template.
        max_length: longest prompt and output in training, in tokens.
        examples, seen: for each task, how many training examples it had, and how many rows of it were trained on.
        sources: for each task, the seed of drawn splits.
    """

    base: str
    chat_template: bool = True
    max_length: int = 512
    examples: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskSize:
    """What one task adds to a bank, in numbers and bytes."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class BankOverview:
    """What is in a bank: names of the tasks, rank, sizes of one task's cores and of the shared A and B."""

    tasks: list[str]
    r: int
    per_task: TaskSize
    shared: TaskSize
    info: BankInfo


def save_bank(model: PeftModel, folder: Path, info: BankInfo) -> None:
    """Write a bank atomically. Raises CheckpointError if that fails; what was in `folder` is then still there."""
    with staged_folder(folder) as staging:
        # save_embedding_layers=False: otherwise PEFT asks the hub whether the vocabulary was resized
        model.save_pretrained(str(staging), save_embedding_layers=False)
        write_json(staging / INFO_FILE, asdict(info))


def find_bank(path: str | Path) -> Path:
    """The folder of a bank, given it or the run folder around it.

    Raises:
        BankFileError: naming what is missing.
    """
    path = Path(path)
    for folder in (path, path / "bank"):
        if all((folder / name).is_file() for name in NEEDED):
            return folder
    if not path.is_dir():
        raise BankFileError(f"{path}: no such folder; expected a bank, or a run that has ended")
    if groups := sorted(one.name for one in path.glob("groups/*") if (one / "run.yaml").is_file()):
        raise BankFileError(
            f"{path}: expected one bank, found a run in groups, each with a bank of its own: name one of them, "
            f"{', '.join(str(path / 'groups' / name) for name in groups)}"
        )
    inner = (path / "bank").is_dir()
    folder = path / "bank" if inner else path
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    unfinished = not inner and any((path / "checkpoints").glob("checkpoint-*"))
    raise BankFileError(
        f"{folder}: expected a bank, but {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
        + ("; this run has checkpoints but has not ended: run `colora train` again to go on" if unfinished else "")
    )


def read_bank_info(folder: Path) -> BankInfo:
    """What `bank.json` says; for a bank saved by `save_pretrained` alone, what its config says."""
    try:
        if (folder / INFO_FILE).is_file():
            return BankInfo(**json.loads((folder / INFO_FILE).read_text(encoding="utf-8")))
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return BankInfo(base=config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BankFileError(f"{folder}: {INFO_FILE} or adapter_config.json is damaged: {error}") from error


def load_bank(
    path: str | Path,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    trainable: bool = False,
) -> tuple[Any, Any, BankInfo]:
    """A bank on its base model, the tokenizer with the prompt style of training, and what is known about the bank.

    Args:
        path: folder of a bank or of a run.
        base: another place of the same base model.

    Raises:
        BankFileError: a file is missing, truncated, edited, or of a newer version; the message names it.
        BaseMismatchError: the base is another model.
    """
    folder = find_bank(path)
    info = read_bank_info(folder)
    if not (base or info.base):
        raise BankFileError(f"{folder}: the bank does not name its base model; name it with base=... (--base)")
    model, tokenizer = load_base(base or info.base, dtype=dtype, device=device)
    if not info.chat_template:
        tokenizer.chat_template = None
    return attach_bank(model, folder, device, trainable), tokenizer, info


def attach_bank(
    model: Any, folder: Path, device: str | torch.device | None = None, trainable: bool = False
) -> PeftModel:
    """A saved bank, or another adapter, on a base model that is loaded already.

    Raises:
        BankFileError: a file is missing, truncated, edited, or of a newer version.
        BaseMismatchError: the base is another model.
    """
    folder = find_bank(folder)  # else PEFT asks the hub for what is missing
    try:
        return PeftModel.from_pretrained(
            model, str(folder), is_trainable=trainable, autocast_adapter_dtype=model.dtype != torch.float64,
            torch_device=str(device) if device is not None else "cpu",
        )  # fmt: skip
    except BankFileError as error:
        raise BankFileError(f"{folder}: {error}") from error
    except ColoraError:
        raise
    except SafetensorError as error:
        raise BankFileError(
            f"{folder / NEEDED[1]}: truncated or no safetensors file ({error}); restore it from a copy or a checkpoint"
        ) from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise BankFileError(f"{folder}: cannot be loaded: {error}") from error


def task_sizes(model: PeftModel) -> tuple[TaskSize, TaskSize]:
    """What each task has for itself, and what all share (A and B)."""
    name = model.active_adapters[0]
    own = own_bytes = shared = shared_bytes = 0
    for layer in bank_layers(model, name).values():
        core = layer.colora_core[name][0]
        own += core.numel()
        own_bytes += core.numel() * core.element_size()
        for factor in (layer.colora_A[name], layer.colora_B[name]):
            shared += factor.numel()
            shared_bytes += factor.numel() * factor.element_size()
    return TaskSize(own, own_bytes), TaskSize(shared, shared_bytes)


def bank_overview(path: str | Path) -> BankOverview:
    """What is in a saved bank, read off its files; the base model is not loaded.

    Raises:
        BankFileError: a file is missing or damaged.
    """
    folder = find_bank(path)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        own = own_bytes = shared = shared_bytes = 0
        with safe_open(folder / NEEDED[1], "pt") as file:
            for key in file.keys():  # noqa: SIM118  (no mapping: it has no other way to list them)
                value = file.get_slice(key)
                numbers = math.prod(value.get_shape())
                size = numbers * (8 if value.get_dtype() == "F64" else 4 if value.get_dtype() == "F32" else 2)
                if "colora_core" in key:
                    own, own_bytes = own + numbers, own_bytes + size
                elif "colora_" in key:
                    shared, shared_bytes = shared + numbers, shared_bytes + size
    except ColoraError as error:
        raise BankFileError(f"{folder}: {error}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BankFileError(f"{folder}: truncated or damaged: {error}") from error
    if not isinstance(config, CoLoRAConfig):
        raise BankFileError(f"{folder}: expected a bank, found an adapter of type {config.peft_type}")
    count = len(config.tasks)
    per_task = TaskSize(own // count, own_bytes // count)
    return BankOverview(config.tasks, config.r, per_task, TaskSize(shared, shared_bytes), read_bank_info(folder))
