"""A bank's tasks as the routes of `colora.serving` take them, for vLLM to answer."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

from colora.errors import BaseMismatchError, ConfigError
from colora.serving.access import LOCAL, Tenant
from colora.serving.store import CoreStore
from colora.vllm.adapter_path import CorePath

__all__ = ["BankTasks"]


class BankTasks:
    """The tasks that a server of vLLM has, and the path by which its workers find each one's core.

    Args:
        bank: folder of the bank or of the run around it.
        state: folder of cores that come while the server runs; what is there already is served.

    Raises:
        BankFileError, CheckpointError: as `CoreStore`.
    """

    def __init__(self, bank: Path, state: Path) -> None:
        self.bank, self.state = bank, state
        self.store = CoreStore(bank, state)
        self._generations = itertools.count(1)
        self._generation = next(self._generations)
        self._changing = threading.Lock()

    def path(self, task: str) -> str:
        """The path of a task's core as it is now, which no other state of the task has had. Raises TaskIdError."""
        version, file = self.store.place(task)
        return str(CorePath(task, f"{self._generation}.{version}", None if file is None else str(file)))

    def put(self, task: str, content: bytes, tenant: Tenant = LOCAL) -> bool:
        """Add a task or replace its core, see `CoreStore.put`; whether it is new."""
        new = task not in self.store
        self.store.put(task, content, tenant.name, tenant.limits)
        return new

    def core_file(self, task: str) -> bytes:
        """A task's core as a file. Raises TaskIdError if there is no such task."""
        return self.store.core_file(task)

    def remove(self, task: str) -> None:
        """Remove a task. Raises TaskIdError if it is absent."""
        self.store.remove(task)

    def replace(self, swap: Callable[[CoreStore], None]) -> None:
        """Read the bank's folder anew.

        Args:
            swap: makes the workers have the new bank, or raises; the old one stays then.

        Raises:
            BankFileError, BaseMismatchError, CheckpointError: the new bank cannot be used.
            ConfigError: it has prompts of another form, or another rank.
        """
        with self._changing:
            store, old = CoreStore(self.bank, self.state), self.store
            if store.saved.info.base != old.saved.info.base:
                raise BaseMismatchError(
                    f"expected a bank on the base model {old.saved.info.base}, found a bank on {store.saved.info.base}"
                )
            if store.saved.info.chat_template != old.saved.info.chat_template:
                raise ConfigError(
                    "expected a bank with the same setting of chat_template: restart the server to serve this bank"
                )
            if store.shape != old.shape:
                raise ConfigError(
                    "expected a bank of the same rank on the same layers: restart the server to serve this bank"
                )
            swap(store)
            store.reserved = old.reserved
            self.store, self._generation = store, next(self._generations)
