"""Onboarding while the server answers: one process of `colora onboard` at a time, tenants in turn."""

import os
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import psutil
import torch

from colora.adapter.core_size import resized_core
from colora.bank.core_file import CoreHeader, core_bytes
from colora.bank.part import write_part
from colora.bank.tensors import SavedBank
from colora.errors import ColoraError, ConfigError
from colora.serving.access import Tenant
from colora.serving.quotas import WaitError
from colora.serving.store import CoreStore

__all__ = ["MOST_EXAMPLES", "Job", "Jobs"]

START_TASKS = 8  # tasks whose cores a new one may start from: the trainer need not read thousands
MOST_WAITING = 16
MOST_REMEMBERED = 100  # of each tenant
MOST_EXAMPLES = 10_000
MOST_SECONDS = 3600  # of one onboarding, for which all others wait
MOST_MESSAGE = 4000


@dataclass
class Job:
    """One onboarding.

    Attributes:
        id: random, for the job's path.
        tenant: who asked for it, with the limits that it had then.
        task: name of the new task.
        state: how far the job is.
        message: the output of `colora onboard`, or why the job failed.
        content: the examples, until the job has ended.
    """

    id: str
    tenant: Tenant
    task: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    message: str = ""
    content: bytes = field(default=b"", repr=False)


class Jobs:
    """The onboarding jobs of a server, and the thread that runs them.

    Args:
        store: returns the tasks as they are when a job begins.
        put: takes the new task's name, its core file and its tenant.
        base: another path or name of the same base model.
        tenants: returns the number of tenants; one of several may have half of the queue.
    """

    def __init__(
        self,
        store: Callable[[], CoreStore],
        put: Callable[[str, bytes, Tenant], object],
        base: str | None,
        tenants: Callable[[], int] = lambda: 1,
    ) -> None:
        self.store, self.put, self.base, self.tenants = store, put, base, tenants
        self._jobs: dict[str, OrderedDict[str, Job]] = {}  # by tenant, the oldest first
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by tenant, whose turn it is first
        self._running: Job | None = None
        self._change = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="onboarding", daemon=True)
        self._thread.start()

    def submit(self, tenant: Tenant, task: str, examples: bytes) -> Job:
        """Queue an onboarding; `examples` is the content of a JSONL file.

        Raises:
            WaitError: too many wait, of this tenant or of all.
            QuotaError: the tenant could not keep the task.
            ConfigError: the task is being onboarded already.
        """
        job = Job(uuid.uuid4().hex, tenant, task, content=examples)
        with self._change:
            self._check_room(tenant, task)
            self._waiting.setdefault(tenant.name, deque()).append(job)
            remembered = self._jobs.setdefault(tenant.name, OrderedDict())
            remembered[job.id] = job
            while len(remembered) > MOST_REMEMBERED:  # the oldest has ended long ago: at most MOST_WAITING have not
                remembered.popitem(last=False)
            self._change.notify()
        return job

    def _check_room(self, tenant: Tenant, task: str) -> None:
        running = [] if self._running is None else [self._running]
        unfinished = [*running, *(job for jobs in self._waiting.values() for job in jobs)]
        if any(job.task == task for job in unfinished):
            raise ConfigError(f"{task!r} is being onboarded already")
        waiting, of_tenant = len(unfinished) - len(running), len(self._waiting.get(tenant.name, ()))
        mine = sum(job.tenant.name == tenant.name for job in unfinished)
        most = MOST_WAITING if self.tenants() < 2 else MOST_WAITING // 2
        if tenant.limits.jobs is not None and mine >= tenant.limits.jobs:
            raise WaitError(
                f"this key may have {tenant.limits.jobs} onboardings unfinished, and has them: wait for one"
            )
        if waiting >= MOST_WAITING or of_tenant >= most:
            raise WaitError(f"{waiting} onboardings are waiting, {of_tenant} of this key; try again later")
        self.store().check_room(tenant.name, task, tenant.limits, mine)

    def get(self, job_id: str, tenant: str) -> Job | None:
        """A job of this tenant, or None: also if the job is another tenant's, or was forgotten."""
        with self._change:
            of_tenant = self._jobs.get(tenant)
            return None if of_tenant is None else of_tenant.get(job_id)

    def close(self) -> None:
        """End the job that runs, and start no other."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        self._thread.join(20)

    def _next(self) -> Job | None:
        """The next job, of the tenants in turn; waits for one. None: the server is going down."""
        with self._change:
            last, self._running = self._running, None
            while not self._waiting and not self._closing:
                self._change.wait()
            if self._closing:
                return None
            # Who had the last turn stands in front again if its queue was empty meanwhile.
            others = (name for name in self._waiting if last is None or name != last.tenant.name)
            tenant = next(others, next(iter(self._waiting)))
            jobs = self._waiting[tenant]
            job = self._running = jobs.popleft()
            self._waiting.move_to_end(tenant)
            if not jobs:
                del self._waiting[tenant]
            job.state = "running"
            return job

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                with tempfile.TemporaryDirectory(prefix="colora-onboard-") as folder:
                    message = self._onboard(job, Path(folder))
                job.message, job.state = message[-MOST_MESSAGE:], "done"
            except Exception as error:
                job.message, job.state = str(error)[-MOST_MESSAGE:], "failed"
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
        try:
            output, _ = self._process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise ColoraError(f"not done after {MOST_SECONDS} seconds: give fewer or shorter examples") from None
        output = output.replace(str(folder), "").strip()
        if self._process.returncode:
            raise ColoraError(output or f"the onboarding ended with code {self._process.returncode}")
        after = SavedBank(folder / "after")
        core = after.core(after.index[job.task])
        header = CoreHeader(job.task, after.info.base, store.shared, prompt=after.info.prompt_of(job.task))
        self.put(job.task, core_bytes(core, header), job.tenant)
        return output


def write_start_bank(store: CoreStore, new_task: str, folder: Path) -> None:
    """Write a bank with the A and B of a large bank and the cores of a few of its tasks, evenly spread.

    Raises:
        ConfigError: there is no task besides `new_task`.
    """
    step = max(1, len(store) // START_TASKS)
    chosen = list(islice((name for name in islice(store, None, None, step) if name != new_task), START_TASKS))
    chosen = chosen or [name for name in store if name != new_task]
    if not chosen:
        raise ConfigError("expected at least one task besides the new one, found none")
    cores = [store.read(name)[1] for name in chosen]
    r = store.saved.config.r
    stacks = {layer: torch.stack([resized_core(core[layer], r) for core in cores]) for layer in cores[0]}
    info = replace(store.saved.info, examples={}, seen={}, sources={}, prompts={}, source=None)
    write_part(store.saved, chosen, stacks, info, folder)
