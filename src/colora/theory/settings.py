"""What a solver is asked for: its name, where it begins, its penalty, and when it ends.

Two things beside the solver decide whether the minimum that is found is the right one, and any solver may use them.
*Annealing*: the problem is first solved with a ridge as large as the samples, then with smaller ones, each from where
the last ended; a large ridge keeps users with few samples from fitting them with wrong subspaces. *Restarts*: from
random factors, for as long as the residual has not vanished and the lowest objective was not found three times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from colora.errors import ConfigError
from colora.theory.alternating import alternate
from colora.theory.descent import descend
from colora.theory.factors import Factors
from colora.theory.second_order import levenberg_marquardt

__all__ = ["ANNEALING", "SOLVERS", "Init", "Solve", "SolverSettings"]

Init = Literal["spectral", "random"]
Solve = Callable[..., tuple[Factors, float]]

ANNEALING = (1.0, 0.3, 0.1, 0.03, 0.01)  # ridges, as parts of what the samples weigh


@dataclass(frozen=True)
class _Solver:
    """A solver, and the annealing and restarts it has by default."""

    solve: Solve
    annealing: tuple[float, ...] = ()
    restarts: int = 0


SOLVERS: dict[str, _Solver] = {
    "alternating": _Solver(alternate),
    "second-order": _Solver(levenberg_marquardt, ANNEALING, restarts=20),
    "gradient": _Solver(partial(descend, scaled=False)),
    "scaled-gradient": _Solver(partial(descend, scaled=True)),
}


@dataclass(frozen=True)
class SolverSettings:
    """The solver of `colora.theory.recover.recover` and its options.

    Attributes:
        solver: a name of `SOLVERS`: "alternating" (the paper's), "second-order", "gradient" or "scaled-gradient".
        init: "spectral", "random", or A (r, d_in) and B (d_out, r).
        ridge: weight of ‖W_k‖² in the objective.
        annealing: ridges to go through first, as multiples of what the samples weigh; () for none. By default
            `ANNEALING` for "second-order" and none for the others.
        restarts: random starts after the first, at most. By default 20 for "second-order" and none for the others.
        max_iter: iterations of a start, those of annealing not counted.
        tol: a start ends when the objective falls by less than this part of itself in three iterations running.
        splits: parts for sample splitting; "alternating" only.
        random_state: seed of random starts.

    Raises:
        ConfigError: a solver, init or number that cannot be used.
    """

    solver: str = "second-order"
    init: Init | tuple[Tensor, Tensor] = "spectral"
    ridge: float = 0.0
    annealing: Sequence[float] | None = None
    restarts: int | None = None
    max_iter: int = 1000
    tol: float = 1e-7
    splits: int = 1
    random_state: int = 0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver: expected one of {', '.join(SOLVERS)}, found {self.solver!r}")
        if isinstance(self.init, str) and self.init not in ("spectral", "random"):
            raise ConfigError(f"init: expected 'spectral', 'random' or factors (A, B), found {self.init!r}")
        if self.splits < 1 or (self.splits > 1 and self.solver != "alternating"):
            raise ConfigError(
                f"splits: expected 1, or more with solver 'alternating'; found {self.splits} with {self.solver!r}"
            )
        numbers = [("ridge", self.ridge, 0), ("restarts", self.restarts or 0, 0), ("tol", self.tol, 0)]
        numbers += [("max_iter", self.max_iter, 1), *(("annealing", part, 0) for part in self.stages)]
        for name, value, least in numbers:
            if not value >= least:
                raise ConfigError(f"{name}: expected at least {least}, found {value}")

    @property
    def stages(self) -> tuple[float, ...]:
        """The ridges of annealing, those of the solver if none are given."""
        if self.annealing is None:
            return SOLVERS[self.solver].annealing
        return tuple(float(part) for part in self.annealing)

    @property
    def starts(self) -> int:
        """How many are tried at most."""
        return 1 + (SOLVERS[self.solver].restarts if self.restarts is None else self.restarts)

    @property
    def solve(self) -> Solve:
        """The solver with its splits, called with users, A, B, ridge, `Stopping` and `History`."""
        solve = SOLVERS[self.solver].solve
        return partial(solve, splits=self.splits) if self.splits > 1 else solve
