"""When a solver ends."""

from dataclasses import dataclass, field

__all__ = ["Stopping"]

EXACT = 1e-26  # of ‖y‖²: a residual of 1e-13 is rounding


@dataclass
class Stopping:
    """Ends after `most` iterations, at a residual of zero, or when the objective hardly falls any more.

    Attributes:
        most: iterations.
        tolerance: ends when the objective fell by less than this part of itself, `patience` times in a row.
        total: ‖y‖², to tell a residual of zero.
    """

    most: int
    tolerance: float
    total: float
    patience: int = 3
    seen: list[float] = field(default_factory=list)
    _slow: int = 0
    _done: bool = False

    @property
    def converged(self) -> bool:
        """Whether the end was not that of the iterations."""
        return len(self.seen) < self.most or self._done

    def reached(self, objective: float) -> bool:
        """Whether to end; called once an iteration with its objective."""
        before = self.seen[-1] if self.seen else None
        self.seen.append(objective)
        if before is not None:
            self._slow = self._slow + 1 if before - objective <= self.tolerance * before else 0
        self._done = objective <= EXACT * self.total or self._slow >= self.patience
        return self._done or len(self.seen) >= self.most
