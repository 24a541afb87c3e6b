"""The files of a saved bank as they are: read and written back without a base model.

What is written equals, byte for byte, what `colora.bank.load.save_bank` writes of a bank with these tasks and tensors.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import CoLoRAModel, tensors_sha256
from colora.bank.load import INFO_FILE, NEEDED, BankInfo, find_bank, read_bank_info
from colora.common.files import staged_folder, write_json
from colora.errors import BankFileError

__all__ = ["CORE", "BankFiles", "read_bank_config", "read_bank_files", "write_bank_files"]

CONFIG, WEIGHTS = NEEDED
CORE = f".{CoLoRAModel.prefix}core"


@dataclass
class BankFiles:
    """A bank on disk.

    Attributes:
        folder: where it was read.
        config: `adapter_config.json`, with fields that this version may not know.
        tensors: A, B, cores, and any further module, by PEFT's names.
        metadata: of the file of tensors.
        info: `bank.json`; None if there is none.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    info: BankInfo | None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the stacked cores."""
        names: list[str] = self.config["tasks"]
        return names

    @property
    def cores(self) -> dict[str, Tensor]:
        """The stacks of cores (K, r, r) among the tensors."""
        return {key: value for key, value in self.tensors.items() if key.endswith(CORE)}


def read_bank_config(path: str | Path) -> CoLoRAConfig:
    """The config of a bank, given its folder or the run's. Raises BankFileError if there is none or it is damaged."""
    folder = find_bank(path)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BankFileError(f"{folder / CONFIG}: damaged: {error}") from error
    if not isinstance(config, CoLoRAConfig):
        raise BankFileError(f"{folder}: expected a bank, found an adapter of type {config.peft_type}")
    return config


def read_bank_files(path: str | Path) -> BankFiles:
    """Everything of a bank, given its folder or the run's.

    Raises:
        BankFileError: a file is missing, truncated, of a newer version, or the tensors are not those of the config.
    """
    # Links followed: where the bank is replaced, the old one must go and not a link to it.
    folder = find_bank(path).resolve()
    checked = read_bank_config(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, "pt") as file:
            keys = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BankFileError(f"{folder / WEIGHTS}: truncated or no safetensors file ({error})") from error
    bank = BankFiles(folder, config, tensors, metadata, None)
    if (folder / INFO_FILE).is_file():
        bank.info = read_bank_info(folder)
    shape = (len(checked.tasks), checked.r, checked.r)
    faults = [f"{key}: expected {shape}, found {tuple(one.shape)}" for key, one in bank.cores.items()
              if tuple(one.shape) != shape]  # fmt: skip
    if faults or not bank.cores:
        raise BankFileError(f"{folder / WEIGHTS}: {faults[0] if faults else 'holds no cores'}")
    if checked.weights_sha256 and checked.weights_sha256 != _digest(tensors):
        raise BankFileError(
            f"{folder / WEIGHTS}: not the tensors that {CONFIG} was saved with (digest weights_sha256); if the change "
            f"is intended, remove that field from {CONFIG}"
        )
    return bank


def write_bank_files(bank: BankFiles, folder: Path) -> None:
    """Write a bank, with whatever else is in the folder it was read from; atomic, and `folder` may be that one.

    Raises:
        CheckpointError: if it cannot be written; what was in `folder` is then still there.
    """
    if bank.config.get("weights_sha256"):
        bank.config["weights_sha256"] = _digest(bank.tensors)
    with staged_folder(folder.resolve()) as staging:
        ours = {CONFIG, WEIGHTS, INFO_FILE}
        shutil.copytree(
            bank.folder, staging, dirs_exist_ok=True,
            ignore=lambda place, names: ours & set(names) if Path(place) == bank.folder else set(),
        )  # fmt: skip
        save_file(bank.tensors, staging / WEIGHTS, metadata=bank.metadata)
        # as PEFT writes it
        (staging / CONFIG).write_text(json.dumps(bank.config, indent=2, sort_keys=True), encoding="utf-8")
        if bank.info is not None:
            write_json(staging / INFO_FILE, asdict(bank.info))


def _digest(tensors: dict[str, Tensor]) -> str:
    return tensors_sha256({key: value for key, value in tensors.items() if f".{CoLoRAModel.prefix}" in key})
