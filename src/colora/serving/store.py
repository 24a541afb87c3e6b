"""The tasks of a server: those of the bank's file, memory-mapped, and those that were added while it ran."""

import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from colora.adapter.tasklist import check_task_name
from colora.bank.core_file import CoreHeader, core_bytes, read_core
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError, TaskIdError
from colora.serving.quotas import UNLIMITED, Holdings, Limits
from colora.serving.state import CoreFile, StateFolder

__all__ = ["Core", "CoreStore"]

Core = dict[str, Tensor]
LEAST_FILE, HEADER_OF_LAYER = 2**16, 512


class CoreStore:
    """All tasks of a bank and its state folder, by name; safe to use from several threads.

    Each change gives a task a version of its own, so that a core that was read before can be recognised as old.

    Args:
        bank: folder of a bank or of a run.
        state: folder for tasks that are added while the server runs, see `colora.serving.state`; None: they are kept
            in memory alone.

    Attributes:
        saved: the bank as it is on disk.
        shared: digest of its A and B.
        shape: of the core in each adapted layer; of the largest, where they are of several sizes.
        least: the smallest rank of a core, that of tasks that are added.
        reserved: names that no task may have, for the server answers to them with the base alone.

    Raises:
        BankFileError: the folder has no bank, or a damaged one.
        CheckpointError: the state folder is damaged.
    """

    def __init__(self, bank: str | Path, state: Path | None = None) -> None:
        self.saved = SavedBank(bank)
        self.saved.check()
        self.shared = self.saved.shared_sha256
        self.shape = {name: tuple(one.cores.shape[1:]) for name, one in self.saved.layers.items()}
        self.least = self.saved.config.rank_of_new
        self._state = None if state is None else StateFolder(state, self.shared)
        self._lock = threading.RLock()
        self._in_bank = self.saved.index
        self._removed: set[str] = set()
        self._added: dict[str, CoreFile | Core] = {}
        self._prompts: dict[str, str | None] = {}  # of added tasks
        self._versions: dict[str, int] = {}  # of tasks that are there and have changed
        self._changes = itertools.count(1)
        self.holdings = Holdings()
        self.reserved: frozenset[str] = frozenset()
        if self._state is not None:
            self._state.read()
            self._adopt(self._state)

    @property
    def stale(self) -> list[str]:
        """Tasks in the state folder whose cores belong to other A and B; they are left where they are."""
        with self._seen():
            return [] if self._state is None else list(self._state.stale)

    def __contains__(self, task: object) -> bool:
        with self._seen():
            return task in self._added or (task in self._in_bank and task not in self._removed)

    def __len__(self) -> int:
        with self._seen():
            # Counted one by one: a set of all names would be megabytes in every thread that asks.
            return len(self._in_bank) - len(self._removed) + sum(1 for _ in self._added_names())

    def __iter__(self) -> Iterator[str]:
        return self.after(None)

    def after(self, task: str | None) -> Iterator[str]:
        """The tasks that follow one of them, as they are now: those of the bank, then those that were added.

        Args:
            task: None: all tasks. One that is not there: none.
        """
        with self._seen():
            # The names of the bank, of which there may be a million, are made as they are asked for.
            in_bank, removed, added = self._in_bank, frozenset(self._removed), list(self._added_names())
        begin = 0 if task is None else len(in_bank)
        if task is not None and task in in_bank and task not in removed:
            begin = in_bank[task] + 1
        elif task is not None:
            added = added[added.index(task) + 1 :] if task in added else []
        names = self.saved.tasks
        kept = (name for name in (names[place] for place in range(begin, len(names))) if name not in removed)
        return chain(kept, added)

    def _added_names(self) -> Iterator[str]:
        """Tasks that were added while the server ran, without those that replace one of the bank."""
        return (name for name in self._added if name not in self._in_bank or name in self._removed)

    @property
    def base_name(self) -> str | None:
        """The name by which the base alone is asked, as if it were a task; None where none is, or a task has it."""
        return next((name for name in sorted(self.reserved) if name not in self), None)

    def answers_to(self, name: str) -> bool:
        """Whether a request may ask for this name: a task's, or the base's."""
        return name in self or name in self.reserved

    def version(self, task: str) -> int:
        """A number that no other state of the task has. Raises TaskIdError if there is no such task."""
        with self._seen():
            if not self.answers_to(task):
                raise TaskIdError(f"unknown task {task!r}")
            return self._versions.get(task, 0)

    def place(self, task: str) -> tuple[int, Path | None]:
        """A task's version, and the core file that it is in; None where it is in the bank, or in memory alone.

        Raises:
            TaskIdError: there is no such task.
        """
        with self._lock:
            version, added = self.version(task), self._added.get(task)
            if task in self.reserved and task not in self:
                raise TaskIdError(f"{task!r} is the base, which has no core")
            return version, added.path if isinstance(added, CoreFile) else None

    def read(self, task: str) -> tuple[int, Core]:
        """A task's version and core. Raises TaskIdError if there is no such task, BankFileError if it is damaged."""
        with self._lock:
            version, added = self.version(task), self._added.get(task)
            if task in self.reserved and task not in self:  # the base: a core of zeros adds nothing to any weight
                return version, {name: torch.zeros(shape) for name, shape in self.shape.items()}
            if added is None:
                return version, self.saved.core(self._in_bank[task])
            if isinstance(added, dict):
                return version, added
            try:
                content = added.path.read_bytes()
            except FileNotFoundError:  # another server has just removed it
                raise TaskIdError(f"unknown task {task!r}") from None
        return version, read_core(content, self.shape, self.shared, self.least)[0]

    def core_file(self, task: str) -> bytes:
        """A task's core as a file. Raises TaskIdError if there is no such task, BankFileError if it is damaged."""
        _, core = self.read(task)
        return core_bytes(core, CoreHeader(task, self.saved.info.base, self.shared, prompt=self.prompt_of(task)))

    def prompt_of(self, task: str) -> str | None:
        """The template of a task's prompts, see `BankInfo.prompt`; of the base the one of the tasks that have none of
        their own. Raises TaskIdError if there is no such task.
        """
        with self._lock:
            self.version(task)
            return self._prompts[task] if task in self._added else self.saved.info.prompt_of(task)

    def put(self, task: str, content: bytes, tenant: str | None = None, limits: Limits = UNLIMITED) -> None:
        """Add a task by its core file, or replace its core; the file is on disk before the core is used.

        Args:
            tenant: whose task it is from now on.
            limits: of that tenant.

        Raises:
            QuotaError: the tenant has as much as it may have; nothing is changed.
            ConfigError: a task cannot have this name.
            BankFileError: the core does not fit this bank; nothing is changed.
            CheckpointError: the file cannot be written; nothing is changed.
        """
        self._check_name(task)
        core, header = read_core(content, self.shape, self.shared, self.least)
        named = CoreHeader(task, header.base, header.shared, tenant=tenant, prompt=header.prompt)
        written = core_bytes(core, named)
        with self._seen():
            self.holdings.check(tenant, task, len(written), limits)
            if self._state is None:
                self._added[task] = core
            else:
                self._added[task] = self._state.put(task, written, named)
            self._prompts[task] = header.prompt
            self.holdings.put(tenant, task, len(written))
            self._versions[task] = next(self._changes)

    @property
    def longest_file(self) -> int:
        """Most bytes of a core file that fits: its numbers in float64, and a header."""
        return LEAST_FILE + sum(8 * math.prod(shape) + HEADER_OF_LAYER for shape in self.shape.values())

    def check_room(self, tenant: str | None, task: str, limits: Limits, coming: int) -> None:
        """Refuse a task whose core is still to be trained, if it could not be put.

        Args:
            coming: further tasks of the tenant that are being trained.

        Raises:
            QuotaError: the tenant could not put it.
            ConfigError: a task cannot have this name.
        """
        self._check_name(task)
        size = 4 * len(self.shape) * self.least**2
        with self._lock:
            self.holdings.check(tenant, task, size * (1 + coming), limits, coming)

    def _check_name(self, task: str) -> None:
        if fault := check_task_name(task):
            raise ConfigError(fault)
        if task in self.reserved:
            raise ConfigError(f"a task cannot be named {task!r} here: that is the base's name")

    def remove(self, task: str) -> None:
        """Remove a task. Raises TaskIdError if there is no such task, CheckpointError if that cannot be written."""
        with self._lock:
            if task not in self:
                raise TaskIdError(f"unknown task {task!r}")
            in_bank = task in self._in_bank
            if self._state is not None:
                self._state.remove(task, in_bank)
            if in_bank:
                self._removed.add(task)
            self._added.pop(task, None)
            self.holdings.remove(task)
            self._versions.pop(task, None)
            self._prompts.pop(task, None)

    # ---- what other servers change ----------------------------------------------------------------------------------

    @contextmanager
    def _seen(self) -> Iterator[None]:
        """The lock, and what other servers with the same state folder have changed."""
        with self._lock:
            if self._state is not None and self._state.refresh():
                self._adopt(self._state)
            yield

    def _adopt(self, state: StateFolder) -> None:
        """Take the tasks as the state folder has them; those that have changed get a new version."""
        self._removed = state.removed & self._in_bank.keys()
        before, self._added = self._added, dict(state.cores)
        for task in before.keys() - state.cores.keys():
            self.holdings.remove(task)
            self._versions.pop(task, None)
            self._prompts.pop(task, None)
        for task, file in state.cores.items():
            if before.get(task) == file:
                continue
            self._prompts[task] = file.header.prompt
            self.holdings.put(file.header.tenant, task, file.size)
            self._versions[task] = next(self._changes)
