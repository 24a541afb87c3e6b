"""The folder of tasks that came and went while servers ran (`--state`). Several servers may share it.

STATE/cores/DIGEST.VERSION.safetensors     a core that was uploaded or onboarded; of one task's, the highest counts
STATE/removed.json                         tasks of the bank that were removed

A task's name may have any characters: DIGEST is that of the name, and the header of the file has the name. A newer core
is a new file. The older one stays for a while, for a server that has begun an answer with it reads it again when it has
lost it.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from safetensors import SafetensorError

from colora.bank.core_file import CoreHeader, read_core_header
from colora.common.files import write_bytes, write_json
from colora.common.locks import waiting_lock
from colora.errors import CheckpointError

__all__ = ["KEPT_SECONDS", "CoreFile", "StateFolder"]

logger = logging.getLogger(__name__)
KEPT_SECONDS = 3600
UNSETTLED = 2 * 10**9  # ns; two changes so close may leave the same time behind
DAMAGE = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class CoreFile:
    """A core in the folder: where, what its header says, and its length in bytes."""

    path: Path
    header: CoreHeader
    size: int


class StateFolder:
    """The folder as one server sees it; not for several threads at once.

    Args:
        folder: need not be there yet.
        shared: digest of the A and B that this server has.

    Attributes:
        cores: by task, those for these A and B.
        stale: tasks that have cores for other A and B alone; they are left where they are.
        removed: tasks of the bank that were removed.
    """

    def __init__(self, folder: Path, shared: str) -> None:
        self.folder, self.shared = folder, shared
        self.cores: dict[str, CoreFile] = {}
        self.stale: list[str] = []
        self.removed: set[str] = set()
        self._known: dict[str, CoreFile | None] = {}  # by file; None: damaged
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._read_at = 0

    def read(self) -> None:
        """See what is there. Raises CheckpointError if any of it is damaged."""
        self._read()
        if damaged := [name for name, file in self._known.items() if file is None]:
            raise CheckpointError(f"{self._cores / damaged[0]}: damaged; restore a copy, or choose another folder")

    def refresh(self) -> bool:
        """See what other servers have changed since; whether anything may have.

        A core that is damaged is logged and passed over; the task has the one before.
        """
        last = max((changed for changed, _ in self._stamp), default=0)
        if self._stamp == self._found() and self._read_at > last + UNSETTLED:
            return False
        self._read()
        return True

    def put(self, task: str, content: bytes, header: CoreHeader) -> CoreFile:
        """Add a task's core, or a newer one. Raises CheckpointError if it cannot be written; nothing is changed."""
        with self._changing():
            version = max((_version(name) for name in self._names() if name.startswith(_digest(task))), default=0) + 1
            path = self._cores / f"{_digest(task)}.{version}.safetensors"
            write_bytes(path, content)
        self._known[path.name] = self.cores[task] = CoreFile(path, header, len(content))
        return self.cores[task]

    def remove(self, task: str, in_bank: bool) -> None:
        """Remove a task's cores, and note that if the bank has the task. Raises CheckpointError."""
        with self._changing():
            if in_bank:
                removed = self._read_removed() | {task}
                write_json(self.folder / "removed.json", sorted(removed))
                self.removed = removed
            for name in [name for name in self._names() if name.startswith(_digest(task))]:
                (self._cores / name).unlink(missing_ok=True)
                self._known.pop(name, None)
        self.cores.pop(task, None)

    # ---- what is there ----------------------------------------------------------------------------------------------

    @property
    def _cores(self) -> Path:
        return self.folder / "cores"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            with waiting_lock(self.folder / ".lock"):
                yield
        except OSError as error:
            raise CheckpointError(f"could not write {self.folder}: {error}; what was there has not changed") from error

    def _found(self) -> tuple[tuple[int, int], ...]:
        """What changes when any of it does: a new file is renamed into its place."""
        return tuple(_stamp(path) for path in (self._cores, self.folder / "removed.json"))

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._cores.glob("[!.]*.safetensors"))

    def _read(self) -> None:
        self._stamp, self._read_at = self._found(), time.time_ns()
        try:
            self.removed = self._read_removed()
            names = self._names()
        except DAMAGE as error:
            raise CheckpointError(
                f"{self.folder}: damaged ({error}); restore a copy, or choose another folder"
            ) from error
        known = self._known = {name: self._known.get(name) or self._read_core(name) for name in names}
        newest: dict[str, list[CoreFile]] = {}
        for file in sorted((file for file in known.values() if file), key=lambda file: -_version(file.path.name)):
            newest.setdefault(file.header.task, []).append(file)
        fitting = {task: [one for one in files if one.header.shared == self.shared] for task, files in newest.items()}
        self.cores = {task: files[0] for task, files in fitting.items() if files}
        self.stale = [task for task, files in fitting.items() if not files]
        for files in newest.values():
            self._forget(files)

    def _read_core(self, name: str) -> CoreFile | None:
        path = self._cores / name
        try:
            return CoreFile(path, read_core_header(path), path.stat().st_size)
        except DAMAGE as error:
            logger.error("%s: damaged (%s), and not served", path, error)
            return None

    def _read_removed(self) -> set[str]:
        path = self.folder / "removed.json"
        return set(json.loads(path.read_text("utf-8"))) if path.is_file() else set()

    def _forget(self, files: list[CoreFile]) -> None:
        """Delete cores that a newer one took the place of long ago."""
        for newer, older in pairwise(files):
            if older.header.shared == newer.header.shared and _age(newer.path) > KEPT_SECONDS:
                older.path.unlink(missing_ok=True)


def _digest(task: str) -> str:
    return hashlib.sha256(task.encode()).hexdigest()


def _version(name: str) -> int:
    """Of DIGEST.VERSION.safetensors; those of earlier servers have none."""
    middle = name.split(".")[1:-1]
    return int(middle[0]) if middle and middle[0].isdecimal() else 0


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
