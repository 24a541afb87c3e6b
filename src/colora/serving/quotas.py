"""How much of a server one tenant may take: tasks and their bytes, onboardings, uploads, rows of the batch."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field

from colora.errors import ColoraError

__all__ = ["UNLIMITED", "Holdings", "Limits", "QuotaError", "Uploads", "WaitError", "rows_of"]

GIBIBYTE = 2**30
UPLOADS, UPLOADS_OF_TENANT = 8, 2


class QuotaError(ColoraError):
    """A tenant has as much as it may have; it has to remove something first."""


class WaitError(ColoraError):
    """A tenant has as many of something under way as it may have; later there is room again."""


class Limits(BaseModel):
    """What one tenant may have; None is without a limit.

    Attributes:
        tasks: that it added or replaced, those that are being onboarded included.
        bytes: of their cores, in memory or in the folder of `--state`.
        jobs: onboardings that wait or run.
        rows: requests that run at once; None: as many as the batch has, or, where there are several tenants, three
            quarters of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    tasks: int | None = Field(default=1000, ge=0)
    bytes: int | None = Field(default=GIBIBYTE, ge=0)
    jobs: int | None = Field(default=4, ge=0)
    rows: int | None = Field(default=None, ge=1)


UNLIMITED = Limits(tasks=None, bytes=None, jobs=None)


def rows_of(limit: int | None, rows: int, tenants: int) -> int:
    """How many of a batch's rows a tenant with this limit may have at once."""
    return limit or (rows if tenants < 2 else max(1, rows - rows // 4))


class Holdings:
    """The tasks of each tenant and their bytes; not for several threads at once."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[str | None, int]] = {}  # by task: whose it is, and its bytes
        self._tasks: Counter[str | None] = Counter()
        self._bytes: Counter[str | None] = Counter()

    def check(self, tenant: str | None, task: str, size: int, limits: Limits, coming: int = 0) -> None:
        """Refuse a task that would be too much.

        Args:
            coming: further tasks of the tenant that are on their way.

        Raises:
            QuotaError: naming the quota.
        """
        owner, old = self._of.get(task, (None, 0))
        mine = task in self._of and owner == tenant
        tasks = self._tasks[tenant] + coming + (not mine)
        total = self._bytes[tenant] + size - (old if mine else 0)
        if limits.tasks is not None and tasks > limits.tasks:
            raise QuotaError(f"this key has reached its limit of {limits.tasks} tasks: remove a task first")
        if limits.bytes is not None and total > limits.bytes:
            raise QuotaError(
                f"this key may have {limits.bytes} bytes of cores, and would need {total}: remove a task first"
            )

    def put(self, tenant: str | None, task: str, size: int) -> None:
        """Count a task, instead of an older one of its name."""
        self.remove(task)
        self._of[task] = tenant, size
        self._tasks[tenant] += 1
        self._bytes[tenant] += size

    def remove(self, task: str) -> None:
        """Count a task no more."""
        if task not in self._of:
            return
        tenant, size = self._of.pop(task)
        self._tasks[tenant] -= 1
        self._bytes[tenant] -= size
        if not self._tasks[tenant]:
            del self._tasks[tenant], self._bytes[tenant]


class Uploads:
    """Large bodies that are being read: a few at once, of each tenant fewer, so that memory is bounded."""

    def __init__(self, most: int = UPLOADS, of_tenant: int = UPLOADS_OF_TENANT) -> None:
        self.most, self.of_tenant = most, of_tenant
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """An upload that lasts as long as the block. Raises WaitError if there are too many."""
        with self._lock:
            if self._now[tenant] >= self.of_tenant or self._now.total() >= self.most:
                raise WaitError(
                    f"{self._now[tenant]} uploads of this key and {self._now.total()} in all are under way, of at most "
                    f"{self.of_tenant} and {self.most}: try again later"
                )
            self._now[tenant] += 1
        try:
            yield
        finally:
            with self._lock:
                self._now[tenant] -= 1
                if not self._now[tenant]:
                    del self._now[tenant]
