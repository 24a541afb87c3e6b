"""Checkpoints of a store of cores that cost what changed: each writes the rows of the tasks that were trained since.

CHECKPOINTS/cores/STEP-TOKEN-PART.safetensors    rows of tasks of one rank, and their ids
CHECKPOINTS/checkpoint-STEP/cores.json           the files that make up the state at this step, the oldest first

A file is whole or not there, and no file is written twice. Once the files hold twice the rows that there are, one
checkpoint writes all of these anew; files that no checkpoint names are deleted.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import safetensors.numpy
from jaxtyping import Int
from safetensors import SafetensorError

from colora.adapter.stored.cores import StoredCores
from colora.common.files import write_bytes, write_json
from colora.errors import CheckpointError, TrainingDivergedError

__all__ = ["CoreFiles", "names_digest"]

_LAST: WeakKeyDictionary[StoredCores, "CoreFiles"] = WeakKeyDictionary()
"""For each store who saved or loaded it last: what its `changed` says is since then, and of use to nobody else."""

NOTE = "cores.json"
PART_BYTES = 2**26
SPARE_ROWS = 4096
STARTS = 8  # tasks that were never trained, whose starts a checkpoint remembers


class CoreFiles:
    """The files of one run.

    Args:
        folder: for them; need not be there yet.
        names: of the tasks, in the order of their ids.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self.names_sha256 = names_digest(names)
        self._files: list[str] = []
        self._starts: dict[str, Any] | None = None
        self._rows = 0  # in these files

    def save(self, stored: StoredCores, step: int, *, write: bool = True) -> None:
        """Write what has changed since the last time; the first time, all rows that there are.

        Args:
            stored: the cores.
            step: of the optimiser.
            write: whether this process does, of several that have the same cores.

        Raises:
            CheckpointError: a file cannot be written; those before stay.
            TrainingDivergedError: a core holds NaN or infinity.
        """
        stored.put_back()
        if _LAST.get(stored, self) is not self:
            self._files, self._rows = [], 0
            stored.kept.changed[:] = stored.table.written(np.arange(len(stored)))
        _LAST[stored] = self
        changed = np.flatnonzero(stored.kept.changed)
        if write and len(changed):
            everything = np.flatnonzero(stored.table.written(np.arange(len(stored))))
            anew = self._rows + len(changed) > 2 * len(everything) + SPARE_ROWS
            files = self._written(stored, everything if anew else changed, step)
            self._files = files if anew else [*self._files, *files]
            self._rows = len(everything) if anew else self._rows + len(changed)
        stored.kept.changed[:] = False
        untrained = np.flatnonzero(~stored.table.written(np.arange(len(stored))))
        some = untrained[np.linspace(0, len(untrained) - 1, min(len(untrained), STARTS)).astype(int)]
        self._starts = {"tasks": some.tolist(), "sha256": _rows_digest(stored, some)}

    def note(self, checkpoint: Path) -> None:
        """Say in a checkpoint which files belong to it, and whose rows they are."""
        write_json(checkpoint / NOTE, {"files": self._files, "names_sha256": self.names_sha256, "starts": self._starts})

    def load(self, stored: StoredCores, checkpoint: Path) -> None:
        """Bring a store to the state of a checkpoint, whose files are in the folder `cores` beside it.

        Raises:
            CheckpointError: a file is missing or damaged, or it is of other tasks, or tasks that no file has start
                elsewhere than they did in that run.
        """
        note, folder = _note(checkpoint), checkpoint.parent / self.folder.name
        if note["names_sha256"] != self.names_sha256:
            raise CheckpointError(
                f"{checkpoint} is of other tasks, or of the same tasks in another order: use the tasks of the "
                "checkpoint, in its order"
            )
        self._files, self._rows, _LAST[stored] = note["files"], 0, self
        known = np.zeros(len(stored), dtype=bool)
        for name in self._files:
            try:
                found = safetensors.numpy.load_file(folder / name)
                stored.set_rows(found["tasks"], found["rows"])
            except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
                raise CheckpointError(f"{folder / name}: cannot be read ({error}); {checkpoint} needs it") from error
            self._rows += len(found["tasks"])
            known[found["tasks"]] = True
        stored.forget_here()
        stored.table.forget(np.flatnonzero(stored.table.written(np.arange(len(stored))) & ~known))
        starts = note["starts"]
        if starts and starts["sha256"] != _rows_digest(stored, np.array(starts["tasks"], dtype=np.int64)):
            raise CheckpointError(
                f"{checkpoint}: tasks that were untrained then start elsewhere in this model: build the model "
                "as for that run, with the same seed and the same add_tasks"
            )
        if folder.resolve() != self.folder.resolve():  # of another run, whose files may go
            self._files, self._rows = [], 0
        else:
            stored.kept.changed[:] = False

    def collect(self, checkpoints: Path) -> None:
        """Delete the files that no checkpoint in this folder names."""
        noted = [path.parent for path in checkpoints.glob(f"checkpoint-*/{NOTE}")]
        kept = {name for checkpoint in noted for name in _note(checkpoint)["files"]} | set(self._files)
        for path in self.folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _written(self, stored: StoredCores, tasks: Int[np.ndarray, " n"], step: int) -> list[str]:
        files, token = list[str](), secrets.token_hex(4)  # another run in this folder has other files
        for own in stored.kept.by_form(tasks):
            of_rank = tasks[own.places]
            size = max(1, PART_BYTES // (own.form.width * stored.table.dtype.itemsize))
            for begin in range(0, len(of_rank), size):
                some = of_rank[begin : begin + size]
                rows = stored.kept.read(some)
                if len(bad := some[~np.isfinite(rows).all(1)]):
                    raise TrainingDivergedError(f"the core of task {int(bad[0])} became NaN or infinite by step {step}")
                files.append(f"{step:09d}-{token}-{len(files):04d}.safetensors")
                write_bytes(self.folder / files[-1], safetensors.numpy.save({"tasks": some, "rows": rows}))
        return files


def _rows_digest(stored: StoredCores, tasks: Int[np.ndarray, " n"]) -> str:
    digest = hashlib.sha256()
    for task in tasks:  # one by one, for their ranks may differ
        digest.update(stored.kept.read(np.array([task])).tobytes())
    return digest.hexdigest()


def names_digest(names: Iterable[str]) -> str:
    """A digest of names in their order."""
    digest = hashlib.sha256()
    for number, name in enumerate(names):  # not all in one text: there may be a million
        digest.update(f"\n{name}".encode() if number else name.encode())
    return digest.hexdigest()


def _note(checkpoint: Path) -> dict[str, Any]:
    try:
        note = json.loads((checkpoint / NOTE).read_text("utf-8"))
        known = {"files": list(note["files"]), "names_sha256": str(note["names_sha256"])}
        return known | {"starts": note.get("starts")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / NOTE}: cannot be read ({error})") from error
