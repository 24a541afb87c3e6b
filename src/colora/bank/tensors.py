"""The one reader and writer of a saved bank: memory-mapped, whole on demand; no base model is needed.

What is written equals, byte for byte, what `colora.bank.load.save_bank` writes of a bank with these tasks and tensors.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from colora.adapter.config import COLORA, CoLoRAConfig
from colora.adapter.digest import tensors_sha256
from colora.adapter.model import CoLoRAModel
from colora.bank.card import changed_tasks, write_card
from colora.bank.layout import CONFIG_FILE, INFO_FILE, TENSORS_FILE, BankInfo, find_bank, read_bank_info
from colora.common.files import staged_folder, write_json
from colora.common.json_text import parse_json
from colora.common.text import shortened
from colora.errors import BankFileError, ColoraError

__all__ = ["BankContents", "LayerTensors", "SavedBank", "shared_sha256", "split_key", "tensor_key", "write_bank"]

PEFT_PREFIX = "base_model.model."
PARTS = ("A", "B", "core")


def tensor_key(layer: str, part: str) -> str:
    """The name in a bank's file of "A", "B" or "core" of an adapted layer, which has its name in the base model."""
    return f"{PEFT_PREFIX}{layer}.{CoLoRAModel.prefix}{part}"


def split_key(key: str) -> tuple[str, str] | None:
    """Layer and part that a name in a bank's file stands for; None for a module that is trained whole."""
    layer, _, part = key.removeprefix(PEFT_PREFIX).rpartition(f".{CoLoRAModel.prefix}")
    return (layer, part) if layer and part in PARTS else None


def shared_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Digest of the A and B among a bank's tensors, which have the names of its file."""
    return tensors_sha256(_Some(tensors, [key for key in tensors if _is(key, "A", "B")]))


class LayerTensors(NamedTuple):
    """One adapted layer: A (r, d_in), B (d_out, r), and the cores of all tasks (K, r, r)."""

    A: Tensor
    B: Tensor
    cores: Tensor


@dataclass
class BankContents:
    """A bank whole in memory, to be changed and written.

    Attributes:
        folder: where it was read.
        config: `adapter_config.json`, with fields that this version may not know.
        tensors: A, B, cores, and any further module, by the names of the file (`tensor_key`).
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
        return {key: value for key, value in self.tensors.items() if _is(key, "core")}


class SavedBank(Mapping[str, Tensor]):
    """A bank on disk. As a mapping it gives its tensors by the names of the file, each read when it is asked for.

    Both files are opened at once and never again, so that they belong together even where the bank is replaced while
    its base model is being loaded; the tensors are mapped, and read where they are needed.

    Args:
        path: folder of a bank or of the run around it.

    Attributes:
        folder: of the bank, links followed: where the bank is replaced, the old one must go and not a link to it.
        fields: `adapter_config.json` as it stands, with fields that this version may not know.
        config: the same, checked.

    Raises:
        BankFileError: no bank there, of a newer version, or damaged; what is read later raises it too.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = find_bank(path).resolve()
        self.fields = _read_fields(self.folder / CONFIG_FILE)
        self.config = _checked_config(self.folder, self.fields)
        self._file = _opened(self.folder / TENSORS_FILE)
        self._keys = dict.fromkeys(self._file.keys())
        self._is_checked = False

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the stacked cores."""
        return list(self.config.tasks)

    @cached_property
    def index(self) -> dict[str, int]:
        """The place of each task among the stacked cores, by its name."""
        return {name: number for number, name in enumerate(self.config.tasks)}

    @cached_property
    def info(self) -> BankInfo:
        """How the bank came to be; from its config, if it has no `bank.json`."""
        return read_bank_info(self.folder)

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        try:
            tensor: Tensor = self._file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise BankFileError(f"{self.folder / TENSORS_FILE}: {key} cannot be read ({error})") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @cached_property
    def layers(self) -> dict[str, LayerTensors]:
        """The adapted layers by their name in the base model, sorted.

        The tensors are views of the mapped file: a page is read when a number on it is.
        """
        names = sorted({split[0] for key in self if (split := split_key(key))})
        layers, faults = {}, []
        for name in names:
            A, B, cores = (self.get(tensor_key(name, part)) for part in PARTS)
            faults += self._faults_of(name, A, B, cores)
            if A is not None and B is not None and cores is not None:
                layers[name] = LayerTensors(A, B, cores)
        if not names:
            faults = ["holds no cores"]
        if faults:
            told = "\n  - ".join([f"{len(faults)} faults:", *shortened(faults, 5)]) if len(faults) > 1 else faults[0]
            raise BankFileError(f"{self.folder / TENSORS_FILE}: {told}")
        return layers

    def core(self, index: int) -> dict[str, Tensor]:
        """A task's core, (r, r) for each adapted layer by its name in the base model; nothing else is read."""
        return {name: layer.cores[index].clone() for name, layer in self.layers.items()}

    @cached_property
    def shared_sha256(self) -> str:
        """Digest of A and B."""
        return shared_sha256(self)

    def check(self) -> None:
        """See that every layer is whole and that the tensors are those that the config was saved with; read once.

        Raises:
            BankFileError: if not.
        """
        if self._is_checked:
            return
        assert self.layers  # raises for what is missing or misshapen
        own = [key for key in self if f".{CoLoRAModel.prefix}" in key]
        if self.config.weights_sha256 and self.config.weights_sha256 != tensors_sha256(_Some(self, own)):
            raise BankFileError(
                f"{self.folder / TENSORS_FILE}: not the tensors that {CONFIG_FILE} was saved with (digest "
                f"weights_sha256); if the change is intended, remove that field from {CONFIG_FILE}"
            )
        self._is_checked = True

    def load(self) -> BankContents:
        """Everything, checked and in memory.

        Raises:
            BankFileError: as `check`.
        """
        self.check()
        info = self.info if (self.folder / INFO_FILE).is_file() else None
        fields = json.loads(json.dumps(self.fields))  # a copy to be changed
        return BankContents(self.folder, fields, dict(self), self._file.metadata() or {}, info)

    def _faults_of(self, name: str, A: Tensor | None, B: Tensor | None, cores: Tensor | None) -> list[str]:
        faults, r, shape = [], self.config.r, (len(self.config.tasks), self.config.r, self.config.r)
        if cores is None or tuple(cores.shape) != shape:
            faults.append(f"{tensor_key(name, 'core')}: expected {shape}, found {_shape(cores)}")
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or not A.shape[0] == B.shape[1] == r:
            faults.append(f"{name}: expected A and B of rank {r}, found {_shape(A)} and {_shape(B)}")
        return faults


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def write_bank(bank: BankContents, folder: Path) -> None:
    """Write a bank, with whatever else is in the folder it was read from; atomic, and `folder` may be that one.

    Raises:
        CheckpointError: if it cannot be written; what was in `folder` is then still there.
    """
    if bank.config.get("weights_sha256"):
        own = {key: value for key, value in bank.tensors.items() if f".{CoLoRAModel.prefix}" in key}
        bank.config["weights_sha256"] = tensors_sha256(own)
    ours = {CONFIG_FILE, TENSORS_FILE, INFO_FILE}

    def ignored(place: str, names: list[str]) -> set[str]:
        return ours & set(names) if Path(place) == bank.folder else set()

    with staged_folder(folder.resolve()) as staging:
        shutil.copytree(bank.folder, staging, dirs_exist_ok=True, ignore=ignored)
        save_file(bank.tensors, staging / TENSORS_FILE, metadata=bank.metadata)
        # as PEFT writes it
        (staging / CONFIG_FILE).write_text(json.dumps(bank.config, indent=2, sort_keys=True), encoding="utf-8")
        if bank.info is not None:
            write_json(staging / INFO_FILE, bank.info.as_json())
        write_card(staging, outdated=changed_tasks(bank.folder, bank.tasks, bank.info))


class _Some(Mapping[str, Tensor]):
    """Some of a bank's tensors, each still read when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], keys: Iterable[str]) -> None:
        self.tensors, self.keys_kept = tensors, list(keys)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_kept)

    def __len__(self) -> int:
        return len(self.keys_kept)


def _is(key: str, *parts: str) -> bool:
    split = split_key(key)
    return split is not None and split[1] in parts


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise BankFileError(
            f"{file}: truncated or no safetensors file ({error}); restore it from a copy or a checkpoint"
        ) from error


def _read_fields(file: Path) -> dict[str, Any]:
    try:
        fields = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BankFileError(f"{file}: damaged: {error}") from error
    if not isinstance(fields, dict):
        raise BankFileError(f"{file}: damaged: expected an object, found {type(fields).__name__}")
    return fields


def _checked_config(folder: Path, fields: dict[str, Any]) -> CoLoRAConfig:
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
