"""Onboarding while the server answers: one process of `colora onboard` at a time for what waits, tenants in turn."""

import logging
import tempfile
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from colora.common.text import listed
from colora.errors import ColoraError, ConfigError
from colora.serving.access import Tenant
from colora.serving.examples import check_readable
from colora.serving.onboarding import Onboarded, OnboardingProcess
from colora.serving.quotas import WaitError
from colora.serving.store import CoreStore

__all__ = ["MOST_EXAMPLES", "MOST_TOGETHER", "Job", "Jobs", "UnknownJobError"]

logger = logging.getLogger(__name__)

MOST_WAITING = 16
MOST_TOGETHER = 8  # jobs of one process: those who come while it runs wait for all of them
MOST_REMEMBERED = 100  # of each tenant
MOST_EXAMPLES = 10_000
MOST_MESSAGE = 4000


class UnknownJobError(ColoraError):
    """No job of this name, or none of this key."""


@dataclass
class Job:
    """One onboarding.

    Attributes:
        id: random, for the job's path.
        tenant: who asked for it, with the limits that it had then.
        task: name of the new task.
        state: how far the job is.
        message: what came of it, or why the job failed.
        numbers: what its training came to, see `Onboarded`; empty until then.
        content: the examples, until the job has ended.
    """

    id: str
    tenant: Tenant
    task: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    message: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
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
        self.store, self.put, self.tenants = store, put, tenants
        self._jobs: dict[str, OrderedDict[str, Job]] = {}  # by tenant, the oldest first
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by tenant, whose turn it is first
        self._running: list[Job] = []
        self._change = threading.Condition()
        self._process = OnboardingProcess(base)
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
        unfinished = self._unfinished()
        if any(job.task == task for job in unfinished):
            raise ConfigError(f"{task!r} is being onboarded already")
        waiting = sum(job.state == "waiting" for job in unfinished)
        of_tenant = len(self._waiting.get(tenant.name, ()))
        mine = sum(job.tenant.name == tenant.name for job in unfinished)
        most = MOST_WAITING if self.tenants() < 2 else MOST_WAITING // 2
        if tenant.limits.jobs is not None and mine >= tenant.limits.jobs:
            raise WaitError(
                f"this key has reached its limit of {tenant.limits.jobs} unfinished onboardings: wait until "
                "one has ended"
            )
        if waiting >= MOST_WAITING or of_tenant >= most:
            raise WaitError(f"{waiting} onboardings are waiting, {of_tenant} of this key; try again later")
        self.store().check_room(tenant.name, task, tenant.limits, mine)

    def _unfinished(self) -> list[Job]:
        running = [job for job in self._running if job.state == "running"]
        return [*running, *(job for jobs in self._waiting.values() for job in jobs)]

    def get(self, job_id: str, tenant: str) -> Job | None:
        """A job of this tenant, or None: also if the job is another tenant's, or was forgotten."""
        with self._change:
            of_tenant = self._jobs.get(tenant)
            return None if of_tenant is None else of_tenant.get(job_id)

    def close(self) -> None:
        """End the jobs that run, and start no other. Says on standard error which tasks were not onboarded."""
        with self._change:
            unfinished = self._unfinished()
            self._closing = True
            self._change.notify()
        self._process.close()
        self._thread.join(20)
        if lost := [job.task for job in unfinished if job.state != "done"]:
            named = listed(lost, 12)
            logger.warning("not onboarded, because the server ends (send the examples again): %s", named)

    def _next(self) -> list[Job]:
        """The next jobs, of the tenants in turn; waits for one. None of them: the server is going down."""
        with self._change:
            last, self._running = self._running[-1:], []
            while not self._waiting and not self._closing:
                self._change.wait()
            while self._waiting and not self._closing and len(self._running) < MOST_TOGETHER:
                # Who had the last turn stands in front again if its queue was empty meanwhile.
                before = (self._running or last)[-1:]
                others = (name for name in self._waiting if not before or name != before[0].tenant.name)
                tenant = next(others, next(iter(self._waiting)))
                jobs = self._waiting[tenant]
                job = jobs.popleft()
                self._waiting.move_to_end(tenant)
                if not jobs:
                    del self._waiting[tenant]
                job.state = "running"
                self._running.append(job)
            return list(self._running)

    def _run(self) -> None:
        while jobs := self._next():
            try:
                with tempfile.TemporaryDirectory(prefix="colora-onboard-") as folder:
                    self._onboard(jobs, Path(folder))
            except Exception as error:
                for job in jobs:
                    if job.state == "running":
                        self._end(job, error)

    def _onboard(self, jobs: Sequence[Job], folder: Path) -> None:
        """Train the tasks of some jobs together. What several fail at is tried by each alone: none is to blame for
        another's."""
        ready = []
        for job in jobs:
            try:
                check_readable(job.task, job.content)
            except Exception as error:
                self._end(job, error)
            else:
                ready.append(job)
        if len(ready) > 1:
            self._train(ready, folder / "together")
        for number, job in enumerate(ready):
            if job.state == "running":
                self._train([job], folder / f"alone-{number}")

    def _train(self, jobs: Sequence[Job], folder: Path) -> None:
        """Train the tasks of some jobs in one process; of several, those that nothing is known of go on running."""
        folder.mkdir()
        try:
            if self._closing:
                raise ColoraError("the server is shutting down")
            found = self._process.train(self.store(), {job.task: job.content for job in jobs}, folder)
        except Exception as error:
            if len(jobs) == 1:
                self._end(jobs[0], error)
            return
        for job in jobs:
            if job.task in found:
                self._end(job, found[job.task])

    def _end(self, job: Job, outcome: Onboarded | Exception) -> None:
        """Keep a job's core, and say what became of it."""
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if outcome.core is None:
                raise ColoraError(outcome.told)
            self.put(job.task, outcome.core, job.tenant)
            job.numbers = _for_tenant(outcome.numbers, job.tenant)
            job.message, job.state = outcome.told[-MOST_MESSAGE:], "done"
        except Exception as error:
            job.message, job.state = str(error)[-MOST_MESSAGE:], "failed"
        finally:
            job.content = b""


def _for_tenant(numbers: Mapping[str, Any], tenant: Tenant) -> dict[str, Any]:
    """The new task may have started from the core of a task that its owner must not know of."""
    start = numbers.get("start") or ""
    other = start.removeprefix("core of ")
    return {**numbers, "start": "core of another task"} if other != start and not tenant.may(other) else dict(numbers)
