"""Checkpoints of a store of cores that cost what changed: each writes the rows of the tasks that were trained since.

CHECKPOINTS/cores/STEP-PART.safetensors    rows of tasks, and their ids
CHECKPOINTS/checkpoint-STEP/cores.json     the files that make up the state at this step, the oldest first

A file is whole or not there, and no file is written twice. Once the files hold twice the rows that there are, one
checkpoint writes all of these anew; files that no checkpoint names are deleted.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Int
from safetensors import SafetensorError

from colora.adapter.stored.cores import StoredCores
from colora.common.files import write_bytes, write_json
from colora.errors import CheckpointError

__all__ = ["CoreFiles"]

NOTE = "cores.json"
PART_BYTES = 2**26
SPARE_ROWS = 4096


class CoreFiles:
    """The files of one run.

    Args:
        folder: for them; need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: list[str] = []
        self._rows = 0  # in these files

    def save(self, stored: StoredCores, step: int, *, write: bool = True) -> None:
        """Write what has changed since the last time.

        Args:
            stored: the cores.
            step: of the optimiser.
            write: whether this process does, of several that have the same cores.

        Raises:
            CheckpointError: a file cannot be written; those before stay.
        """
        stored.put_back()
        changed = np.flatnonzero(stored.changed)
        if write and len(changed):
            everything = np.flatnonzero(stored.ever_changed)
            anew = self._rows + len(changed) > 2 * len(everything) + SPARE_ROWS
            names = self._written(stored, everything if anew else changed, step)
            self._names = names if anew else [*self._names, *names]
            self._rows = len(everything) if anew else self._rows + len(changed)
        stored.changed[:] = False

    def note(self, checkpoint: Path, stored: StoredCores) -> None:
        """Say in a checkpoint which files belong to it, and how many tasks there are."""
        write_json(checkpoint / NOTE, {"files": self._names, "tasks": len(stored)})

    def load(self, stored: StoredCores, checkpoint: Path) -> None:
        """Bring a store to the state of a checkpoint.

        Raises:
            CheckpointError: a file is missing or damaged, or it is of another number of tasks.
        """
        note = _note(checkpoint)
        if note["tasks"] != len(stored):
            raise CheckpointError(f"{checkpoint} holds {note['tasks']} tasks; expected {len(stored)}")
        self._names, self._rows = note["files"], 0
        for name in self._names:
            try:
                found = safetensors.numpy.load_file(self.folder / name)
                stored.set_rows(found["tasks"], found["rows"])
            except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
                raise CheckpointError(
                    f"{self.folder / name}: cannot be read ({error}); {checkpoint} needs it"
                ) from error
            self._rows += len(found["tasks"])
        stored.changed[:] = False

    def collect(self, checkpoints: Iterable[Path]) -> None:
        """Delete the files that none of these checkpoints names."""
        kept = {name for checkpoint in checkpoints for name in _note(checkpoint)["files"]} | set(self._names)
        for path in self.folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _written(self, stored: StoredCores, tasks: Int[np.ndarray, " n"], step: int) -> list[str]:
        size = max(1, PART_BYTES // (stored.table.width * stored.table.dtype.itemsize))
        names = []
        for part, begin in enumerate(range(0, len(tasks), size)):
            some = tasks[begin : begin + size]
            content = safetensors.numpy.save({"tasks": some, "rows": stored.rows(some)})
            names.append(f"{step:09d}-{part:04d}.safetensors")
            write_bytes(self.folder / names[-1], content)
        return names


def _note(checkpoint: Path) -> dict[str, Any]:
    try:
        note = json.loads((checkpoint / NOTE).read_text("utf-8"))
        return {"files": list(note["files"]), "tasks": int(note["tasks"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / NOTE}: cannot be read ({error})") from error
