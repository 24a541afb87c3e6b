"""The one reader and writer of a saved bank: memory-mapped, whole on demand; no base model is needed.

What is written equals, byte for byte, what `colora.bank.load.save_bank` writes of a bank with these tasks and tensors.
The cores are a stack for each layer among the tensors, or, of banks of very many tasks, rows in files of their own
(`colora.bank.rows`).
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from colora.adapter.config import ROWS_VERSION
from colora.adapter.digest import tensors_sha256
from colora.adapter.model import CoLoRAModel
from colora.adapter.router import listed_tasks
from colora.adapter.task_names import TaskNames, TaskSequence
from colora.bank.card import changed_tasks, write_card
from colora.bank.config_file import checked_config, read_fields
from colora.bank.keys import PARTS, is_part, split_key, tensor_key
from colora.bank.layout import CONFIG_FILE, INFO_FILE, TENSORS_FILE, BankInfo, find_bank, read_bank_info
from colora.bank.rows.codec import core_of
from colora.bank.rows.folder import check_index, fields_without_rows, root_sha256
from colora.bank.rows.index import CORES_FOLDER
from colora.bank.rows.numbers import TaskNumbers
from colora.bank.rows.read import SavedRows
from colora.common.files import staged_folder, write_json
from colora.common.text import listed, shortened
from colora.errors import BankFileError, TaskIdError

__all__ = [
    "BankContents",
    "LayerTensors",
    "SavedBank",
    "shared_sha256",
    "write_bank",
]


def shared_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Digest of the A and B among a bank's tensors, which have the names of its file."""
    return tensors_sha256(_Some(tensors, [key for key in tensors if is_part(key, "A", "B")]))


class LayerTensors(NamedTuple):
    """One adapted layer: A (r, d_in), B (d_out, r), and the cores of all tasks (K, r, r).

    Of a bank in rows the cores have their shape alone (torch's device "meta"): `SavedBank.core` reads them.
    """

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
        return {key: value for key, value in self.tensors.items() if is_part(key, "core")}


class SavedBank(Mapping[str, Tensor]):
    """A bank on disk. As a mapping it gives its tensors by the names of the file, each read when it is asked for.

    Both files are opened at once and never again, so that they belong together even where the bank is replaced while
    its base model is being loaded; the tensors are mapped, and read where they are needed.

    Args:
        path: folder of a bank or of the run around it.

    Attributes:
        folder: of the bank, links followed: where the bank is replaced, the old one must go and not a link to it.
        fields: `adapter_config.json` as it stands, with fields that this version may not know.
        config: the same, checked; as if the cores were among the tensors, and with all tasks.
        rows: where the cores are, if they are in rows.

    Raises:
        BankFileError: no bank there, of a newer version, or damaged; what is read later raises it too.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = find_bank(path).resolve()
        self.fields = read_fields(self.folder / CONFIG_FILE)
        in_rows = self.fields.get("format_version") == ROWS_VERSION
        self.rows = SavedRows(self.folder) if in_rows else None
        self.config = checked_config(self.folder, fields_without_rows(self.fields) if in_rows else self.fields)
        if self.rows is not None:
            self.config.tasks = TaskSequence(self.rows.index.names)  # type: ignore[assignment]
        self._file = _opened(self.folder / TENSORS_FILE)
        self._keys = dict.fromkeys(self._file.keys())
        self._is_checked = False

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks, in the order of the cores."""
        return self.config.tasks

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The place of each task among the cores, by its name."""
        return TaskNames(self.config.tasks) if self.rows is None else self.rows.index.names

    def indices(self, tasks: Sequence[str]) -> list[int]:
        """The places of these tasks. Raises TaskIdError naming those that the bank does not know."""
        if unknown := [name for name in tasks if name not in self.index]:
            missing = listed(map(repr, unknown), 10)
            raise TaskIdError(f"{self.folder} has no task {missing}; it has {listed_tasks(self.index)}")
        return [self.index[name] for name in tasks]

    @cached_property
    def info(self) -> BankInfo:
        """How the bank came to be; from its config, if it has no `bank.json`."""
        info = read_bank_info(self.folder)
        if self.rows is not None:
            names, columns = self.rows.index.names, self.rows.index.columns
            info.examples, info.seen = TaskNumbers(names, columns["examples"]), TaskNumbers(names, columns["seen"])
        return info

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
            if self.rows is not None:
                cores = torch.empty(len(self.rows), self.config.r, self.config.r, dtype=self.rows.dtype, device="meta")
            faults += self._faults_of(name, A, B, cores)
            if A is not None and B is not None and cores is not None:
                layers[name] = LayerTensors(A, B, cores)
        if not names:
            faults = ["holds no cores"]
        if self.rows is not None and names != self.rows.index.form.layers:
            faults.append(f"expected the layers of its cores in {CORES_FOLDER}, found others")
        if faults:
            told = "\n  - ".join([f"{len(faults)} faults:", *shortened(faults, 5)]) if len(faults) > 1 else faults[0]
            raise BankFileError(f"{self.folder / TENSORS_FILE}: {told}")
        return layers

    def core(self, index: int) -> dict[str, Tensor]:
        """A task's core, (r_k, r_k) for each adapted layer by its name in the base model; nothing else is read.

        Raises:
            IndexError: there is no such task.
            BankFileError: of a bank in rows, the core is not the one that was saved.
        """
        if self.rows is not None:
            return core_of(self.rows.row(index), self.rows.index.form.layers)
        return {name: layer.cores[index].clone() for name, layer in self.layers.items()}

    def core_rank(self, index: int) -> int:
        """r_k, the rank of a task's core; at most r."""
        return self.config.r if self.rows is None else self.rows.rank(index)

    def cores(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The cores of a few tasks, (n, r, r) for each layer; smaller ones are in a corner. Raises as `core`."""
        if self.rows is None:
            return {name: layer.cores[list(indices)] for name, layer in self.layers.items()}
        found = self.rows.rows(np.asarray(indices, dtype=np.int64), self.config.r)
        return {name: found[:, number].contiguous() for number, name in enumerate(self.rows.index.form.layers)}

    def mean_core(self) -> dict[str, Tensor]:
        """The mean of all cores, (r, r) for each layer, read some at a time. Raises as `core`."""
        if self.rows is None:
            return {name: layer.cores.mean(0) for name, layer in self.layers.items()}
        return core_of(self.rows.mean(self.config.r), self.rows.index.form.layers)

    def tensors_with(self, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a bank of other tasks with this one's A, B and modules that were trained whole.

        Args:
            cores: by layer, the stack of those tasks (n, r, r).
        """
        shared = {key: self[key] for key in self if not is_part(key, "core")}
        return shared | {tensor_key(name, "core"): stack for name, stack in cores.items()}

    @cached_property
    def shared_sha256(self) -> str:
        """Digest of A and B."""
        return shared_sha256(self)

    def check(self, tasks: Sequence[int] | None = None) -> None:
        """See that every layer is whole and that the tensors are those that the config was saved with; read once.

        Of a bank in rows, A, B and the index of tasks are; a core is checked when it is read.

        Args:
            tasks: of a bank in rows, the only ones whose files must be there; by default all.

        Raises:
            BankFileError: if not.
        """
        if self.rows is not None:
            self.rows.check_files(None if tasks is None else np.asarray(tasks, dtype=np.int64))
        if self._is_checked:
            return
        assert self.layers  # raises for what is missing or misshapen
        own = _Some(self, [key for key in self if f".{CoLoRAModel.prefix}" in key])
        if self.rows is not None:
            check_index(self.folder / CONFIG_FILE, self.fields, self.rows.index)
        if self.config.weights_sha256 and self.config.weights_sha256 != (
            tensors_sha256(own) if self.rows is None else root_sha256(own, self.rows.index.sha256)
        ):
            raise BankFileError(
                f"{self.folder / TENSORS_FILE}: not the tensors that {CONFIG_FILE} was saved with (digest "
                f"weights_sha256); if the change is intended, remove that field from {CONFIG_FILE}"
            )
        self._is_checked = True

    def load(self) -> BankContents:
        """Everything, checked and in memory.

        Raises:
            BankFileError: as `check`; or the cores are in rows, which are not read whole.
        """
        if self.rows is not None:
            raise BankFileError(
                f"{self.folder}: a bank in rows is not read as a whole: load some of its tasks, as in "
                "load_bank(bank, tasks=[...])"
            )
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
        if bank.folder.is_dir():
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


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise BankFileError(
            f"{file}: truncated or no safetensors file ({error}); restore it from a copy or a checkpoint"
        ) from error
