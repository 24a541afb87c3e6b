"""A request in the queue or in the batch, what it runs on, and why it may be turned away."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from colora.errors import ColoraError
from colora.models.decoding.batch import Batch, Piece, Row
from colora.serving.resident import Resident
from colora.serving.store import Core, CoreStore

__all__ = ["BusyError", "ClosedError", "Deliver", "Engine", "ModelFailedError", "Ticket"]

Deliver = Callable[[Piece | Exception], None]


class BusyError(ColoraError):
    """The queue is full."""


class ClosedError(ColoraError):
    """The server is shutting down."""


class ModelFailedError(ColoraError):
    """A step of the model failed. The reason is in the log alone: it may reveal internals, or requests of others."""


@dataclass(frozen=True)
class Engine:
    """What the thread works with; replaced as a whole when a newer bank is loaded."""

    batch: Batch
    store: CoreStore
    resident: Resident


@dataclass(eq=False)
class Ticket:
    """A request in the queue or in the batch.

    Attributes:
        tenant: who asks.
        most_rows: how many rows of the batch it may have at once.
        task: whose core is used.
        row: the prompt, and the output so far.
        deliver: called in the model's thread with each piece of text, and with the error if one ends the request.
        core: read ahead for a task that was not on the device: the store, the version, the core.
        version: of the core that the row uses.
        arrived: when the request was made, by `time.monotonic`.
        began: when its first token came; None before.
        cancelled: nobody waits for the output any more.
    """

    tenant: str
    task: str
    row: Row
    deliver: Deliver
    most_rows: int
    core: tuple[CoreStore, int, Core] | None = None
    version: int = 0
    arrived: float = field(default_factory=time.monotonic)
    began: float | None = None
    cancelled: bool = False
