"""Onboarding while the server answers: `colora onboard` in a process of its own, one at a time."""

import os
import queue
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import psutil
import torch

from colora.bank.core_file import CoreHeader, core_bytes
from colora.bank.tensors import BankContents, SavedBank, split_key, write_bank
from colora.errors import ColoraError, ConfigError
from colora.serving.store import CoreStore

__all__ = ["Job", "Jobs"]

COMPANIONS = 8  # tasks whose cores a newcomer may start from: the trainer need not read thousands
WAITING = 16
REMEMBERED = 1000


@dataclass
class Job:
    """One onboarding.

    Attributes:
        id: how to ask for it.
        tenant, task: whose, and what it is to be called.
        state: where it is.
        message: what it said last, or why it failed.
    """

    id: str
    tenant: str
    task: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    message: str = ""
    content: bytes = field(default=b"", repr=False)


class Jobs:
    """The onboardings of a server.

    Args:
        store: gives the tasks as they are when a job begins.
        put: takes the new task's core file.
        base: another place of the base model.
    """

    def __init__(self, store: Callable[[], CoreStore], put: Callable[[str, bytes], object], base: str | None) -> None:
        self.store, self.put, self.base = store, put, base
        self.known: dict[str, Job] = {}
        self._queue: queue.Queue[Job | None] = queue.Queue(WAITING)
        self._process: subprocess.Popen[str] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="onboarding", daemon=True)
        self._thread.start()

    def submit(self, tenant: str, task: str, examples: bytes) -> Job:
        """Put an onboarding into the queue. Raises ConfigError if too many wait."""
        job = Job(uuid.uuid4().hex, tenant, task, content=examples)
        try:
            self._queue.put_nowait(job)
        except queue.Full as error:
            raise ConfigError(f"{WAITING} onboardings are waiting; try again later") from error
        self.known[job.id] = job
        while len(self.known) > REMEMBERED:  # the oldest, which has ended long ago: no more than WAITING have not
            self.known.pop(next(iter(self.known)))
        return job

    def close(self) -> None:
        """End the one that runs, and start no other."""
        self._closing = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(20)

    def _run(self) -> None:
        while not self._closing and (job := self._queue.get()) is not None:
            if self._closing:
                return
            job.state = "running"
            try:
                with tempfile.TemporaryDirectory(prefix="colora-onboard-") as folder:
                    job.message = self._onboard(job, Path(folder))
                job.state = "done"
            except Exception as error:
                job.state, job.message = "failed", str(error)
            finally:
                job.content = b""

    def _onboard(self, job: Job, folder: Path) -> str:
        store = self.store()
        companions(store, job.task, folder / "bank")
        (folder / "examples.jsonl").write_bytes(job.content)
        command = [
            sys.executable, "-m", "colora", "onboard", str(folder / "bank"), str(folder / "examples.jsonl"),
            f"--name={job.task}", "--output", str(folder / "after"),
        ]  # fmt: skip
        command += ["--base", self.base] if self.base else []
        # One thread, and last in the queue for the processor: those who wait for answers come first.
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        )  # fmt: skip
        with suppress(psutil.Error):
            psutil.Process(self._process.pid).nice(10)
        said, _ = self._process.communicate()
        said = said.replace(str(folder), "").strip()
        if self._process.returncode:
            raise ColoraError(said or f"the onboarding ended with code {self._process.returncode}")
        after = SavedBank(folder / "after")
        core = after.core(after.tasks.index(job.task))
        self.put(job.task, core_bytes(core, CoreHeader(job.task, after.info.base, store.shared)))
        return said


def companions(store: CoreStore, newcomer: str, folder: Path) -> None:
    """Write a bank with the A and B of a large one and the cores of a few of its tasks, evenly spread."""
    names = [name for name in store if name != newcomer]
    step = max(1, len(names) // COMPANIONS)
    chosen = names[::step][:COMPANIONS]
    if not chosen:
        raise ConfigError("expected at least one task beside the newcomer, found none")
    bank = store.saved
    cores = [store.read(name)[1] for name in chosen]
    tensors = dict(bank)
    for key in bank:
        layer, part = split_key(key) or ("", "")
        if part == "core":
            tensors[key] = torch.stack([core[layer] for core in cores])
    info = replace(bank.info, examples={}, seen={}, sources={})
    write_bank(BankContents(bank.folder, bank.fields | {"tasks": chosen}, tensors, {"format": "pt"}, info), folder)
