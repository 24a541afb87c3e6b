"""The index of a bank in rows: its tasks by name, and of each where its core lies, as arrays of a mapped file.

BANK/cores/tasks.safetensors: of the names `letters`, `ends`, `hashes` and `order` (see `TaskNames`); the `COLUMNS`, an
entry a task; and `form`, which is JSON. It is covered by a digest in the bank's config, and covers each row by its
digest: so a row of another bank, or a torn one, is found when it is read, and no other need be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from colora.adapter.digest import tensors_sha256
from colora.adapter.task_names import NameArrays, TaskNames
from colora.errors import BankFileError

__all__ = ["COLUMNS", "CORES_FOLDER", "DIGEST_BYTES", "INDEX_FILE", "UNKNOWN", "Form", "TaskIndex", "read_index"]

CORES_FOLDER = "cores"
INDEX_FILE = "tasks.safetensors"
DIGEST_BYTES = 16
UNKNOWN = -1
"""In `examples` and `seen`, where nothing is known of them."""
COLUMNS: dict[str, type[np.generic]] = {
    "shard": np.int32,
    "row": np.int32,
    "rank": np.uint16,
    "digest": np.uint8,
    "examples": np.int64,
    "seen": np.int64,
}
NAMES: dict[str, type[np.generic]] = {"letters": np.uint8, "ends": np.int64, "hashes": np.int64, "order": np.int32}


@dataclass(frozen=True)
class Form:
    """What is common to all rows.

    Attributes:
        layers: names of the adapted layers in the base model, ascending: a row is the core of each, one after another.
        dtype: of the numbers, a name in torch.
        shards: names of the files of rows, as `shard` numbers them; files of the same rows are one.
    """

    layers: list[str]
    dtype: str
    shards: list[str]


@dataclass(frozen=True)
class TaskIndex:
    """The tasks of a bank in rows.

    Attributes:
        names: of the tasks, with their ids.
        columns: by name, see `COLUMNS`, an entry a task: `shard` and `row`, where its core lies; its `rank`; the
            `digest` of the row, (K, 16); `examples` that it had, and rows that were `seen` in training.
        form: what is common to all rows.
    """

    names: TaskNames
    columns: Mapping[str, np.ndarray]
    form: Form

    def __len__(self) -> int:
        return len(self.names)

    def extended(self, names: Sequence[str], columns: Mapping[str, np.ndarray], form: Form) -> "TaskIndex":
        """With further tasks after the others."""
        both = {name: np.concatenate([one, columns[name].astype(one.dtype)]) for name, one in self.columns.items()}
        return TaskIndex(self.names.extended(names), both, form)

    def without(self, tasks: Sequence[int]) -> "TaskIndex":
        """Without these tasks; those after them move up."""
        kept = {name: np.delete(one, list(tasks), axis=0) for name, one in self.columns.items()}
        return replace(self, names=self.names.without(tasks), columns=kept)

    @cached_property
    def sha256(self) -> str:
        """Digest of everything in it."""
        return tensors_sha256(self._tensors())

    def write(self, folder: Path) -> None:
        """Write it into the folder of cores. Raises OSError, SafetensorError."""
        save_file(self._tensors(), folder / INDEX_FILE)

    def _tensors(self) -> dict[str, Tensor]:
        form = np.frombuffer(json.dumps(asdict(self.form)).encode(), dtype=np.uint8).copy()
        arrays = {**self.names.arrays._asdict(), **self.columns, "form": form}
        return {name: torch.from_numpy(_writable(one)) for name, one in arrays.items()}


def read_index(folder: Path) -> TaskIndex:
    """The index in a folder of cores; its arrays are mapped, and read where they are needed.

    Raises:
        BankFileError: it is missing, truncated, or none; that it belongs to a bank is not looked at.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise BankFileError(
            f"{path} is missing: CoLoRA needs this index to find the cores of the bank; restore the "
            f"folder {CORES_FOLDER} from a copy"
        )
    try:
        with safe_open(path, "pt") as file:
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118  (no mapping)
        form = Form(**json.loads(arrays["form"].tobytes()))
        names = NameArrays(*(_of_type(arrays[name], kind) for name, kind in NAMES.items()))
        columns = {name: _of_type(arrays[name], kind) for name, kind in COLUMNS.items()}
        count = len(names.ends)
        lengths = {len(one) for one in (*names[1:], *columns.values())}
        if lengths != {count} or columns["digest"].shape != (count, DIGEST_BYTES) or not count:
            raise ValueError(f"expected arrays of one length, found {sorted(lengths)}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise BankFileError(
            f"{path}: truncated or no index of tasks ({error}); restore it from a copy or a checkpoint"
        ) from error
    return TaskIndex(TaskNames.of_arrays(names), columns, form)


def _of_type(array: np.ndarray, kind: type[np.generic]) -> np.ndarray:
    if array.dtype != kind:
        raise ValueError(f"expected {np.dtype(kind).name}, found {array.dtype.name}")
    return array


def _writable(array: np.ndarray) -> np.ndarray:
    """As torch wants it, without a warning; nothing writes to it."""
    found = np.ascontiguousarray(array)
    return found if found.flags.writeable else found.copy()
