"""Onboarding while the server answers: one process of `colora onboard` at a time."""

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

START_TASKS = 8  # tasks whose cores a new one may start from: the trainer need not read thousands
MOST_WAITING = 16
MOST_REMEMBERED = 1000


@dataclass
class Job:
    """One onboarding.

    Attributes:
        id: random, for the job's path.
        tenant: who asked for it.
        task: name of the new task.
        state: how far the job is.
        message: the output of `colora onboard`, or why the job failed.
        content: the examples, until the job has ended.
    """

    id: str
    tenant: str
    task: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    message: str = ""
    content: bytes = field(default=b"", repr=False)


class Jobs:
    """The onboarding jobs of a server, and the thread that runs them.

    Args:
        store: returns the tasks as they are when a job begins.
        put: takes the new task's name and core file.
        base: another path or name of the same base model.
    """

    def __init__(self, store: Callable[[], CoreStore], put: Callable[[str, bytes], object], base: str | None) -> None:
        self.store, self.put, self.base = store, put, base
        self._jobs: dict[str, Job] = {}
        self._queue: queue.Queue[Job | None] = queue.Queue(MOST_WAITING)
        self._process: subprocess.Popen[str] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="onboarding", daemon=True)
        self._thread.start()

    def submit(self, tenant: str, task: str, examples: bytes) -> Job:
        """Queue an onboarding; `examples` is the content of a JSONL file. Raises ConfigError if too many wait."""
        job = Job(uuid.uuid4().hex, tenant, task, content=examples)
        try:
            self._queue.put_nowait(job)
        except queue.Full as error:
            raise ConfigError(f"{MOST_WAITING} onboardings are waiting; try again later") from error
        self._jobs[job.id] = job
        while len(self._jobs) > MOST_REMEMBERED:  # the oldest has ended long ago: at most MOST_WAITING have not
            self._jobs.pop(next(iter(self._jobs)))
        return job

    def get(self, job_id: str, tenant: str) -> Job | None:
        """A job of this tenant, or None: also if the job is another tenant's, or was forgotten."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.tenant == tenant else None

    def close(self) -> None:
        """End the job that runs, and start no other."""
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
        write_start_bank(store, job.task, folder / "bank")
        (folder / "examples.jsonl").write_bytes(job.content)
        command = [sys.executable, "-m", "colora", "onboard", str(folder / "bank"), str(folder / "examples.jsonl")]
        command += [f"--name={job.task}", "--output", str(folder / "after")]
        command += ["--base", self.base] if self.base else []
        # One thread, and a low priority: requests that wait for answers come first.
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        )
        with suppress(psutil.Error):
            psutil.Process(self._process.pid).nice(10)
        output, _ = self._process.communicate()
        output = output.replace(str(folder), "").strip()
        if self._process.returncode:
            raise ColoraError(output or f"the onboarding ended with code {self._process.returncode}")
        after = SavedBank(folder / "after")
        core = after.core(after.tasks.index(job.task))
        self.put(job.task, core_bytes(core, CoreHeader(job.task, after.info.base, store.shared)))
        return output


def write_start_bank(store: CoreStore, new_task: str, folder: Path) -> None:
    """Write a bank with the A and B of a large bank and the cores of a few of its tasks, evenly spread.

    Raises:
        ConfigError: there is no task besides `new_task`.
    """
    names = [name for name in store if name != new_task]
    step = max(1, len(names) // START_TASKS)
    chosen = names[::step][:START_TASKS]
    if not chosen:
        raise ConfigError("expected at least one task besides the new one, found none")
    bank = store.saved
    cores = [store.read(name)[1] for name in chosen]
    tensors = dict(bank)
    for key in bank:
        layer, part = split_key(key) or ("", "")
        if part == "core":
            tensors[key] = torch.stack([core[layer] for core in cores])
    info = replace(bank.info, examples={}, seen={}, sources={})
    write_bank(BankContents(bank.folder, bank.fields | {"tasks": chosen}, tensors, {"format": "pt"}, info), folder)
