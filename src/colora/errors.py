"""Every error that CoLoRA raises on purpose. Each is also a `ValueError`, so callers may catch either."""

__all__ = [
    "BankFileError",
    "BaseMismatchError",
    "BaseModelError",
    "CheckpointError",
    "ColoraError",
    "ConfigError",
    "FederationError",
    "InterruptedRunError",
    "TaskFileError",
    "TaskIdError",
    "TrainingDivergedError",
]


class ColoraError(ValueError):
    """The root of all errors that CoLoRA raises about what it was given."""


class ConfigError(ColoraError):
    """A configuration that cannot be used; `faults` lists every fault found, each with its place."""

    def __init__(self, message: str, faults: list[str] | None = None) -> None:
        self.faults = faults or []
        super().__init__("\n".join([message, *(f"  - {fault}" for fault in self.faults)]))


class TaskFileError(ColoraError):
    """Task files with faults; `faults` lists every one as "file:line: what was expected and found"."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        head = f"{len(faults)} fault{'s' if len(faults) != 1 else ''} in the task files; nothing was trained:"
        super().__init__("\n".join([head, *(f"  - {fault}" for fault in faults)]))


class TaskIdError(ColoraError):
    """Task ids that are missing, unknown, out of range, or do not fit the batch."""


class BankFileError(ColoraError):
    """A saved bank that is truncated, edited, incomplete, or written by a newer version."""


class BaseModelError(ColoraError):
    """A base model that cannot be found, fetched, read or unpacked."""


class BaseMismatchError(ColoraError):
    """A bank that was trained on another base model."""


class CheckpointError(ColoraError):
    """A checkpoint that could not be written or read."""


class TrainingDivergedError(ColoraError):
    """The loss became NaN or infinite."""


class InterruptedRunError(ColoraError):
    """A run that Ctrl-C stopped, after saving a checkpoint."""


class FederationError(ColoraError):
    """A federation that cannot go on, or a message of one that is not what it should be."""
