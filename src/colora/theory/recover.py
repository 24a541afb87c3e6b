"""One interface for all solvers: from users' samples to shared factors and cores.

    minimise Σ_k ‖y_k − X_k(B Λ_k A)‖² + ridge ‖B Λ_k A‖²

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
from colora.theory.cores import core_energy
from colora.theory.descent import descend
from colora.theory.factors import Factors, Truth
from colora.theory.history import Entry, History
from colora.theory.second_order import levenberg_marquardt
from colora.theory.starts import random_start, spectral_start
from colora.theory.stopping import Stopping
from colora.theory.users import Users

__all__ = ["ANNEALING", "SOLVERS", "Fit", "Init", "recover"]

Init = Literal["spectral", "random"]
Solve = Callable[..., tuple[Factors, float]]

ANNEALING = (1.0, 0.3, 0.1, 0.03, 0.01)  # ridges, as parts of what the samples weigh
STAGE_ITERATIONS, STAGE_TOLERANCE = 60, 1e-3
SAME = 1e-6  # objectives that differ by less, relatively, are one minimum
OFTEN = 3  # times that the lowest objective is found before it is believed
EXACT_FIT = 1e-20  # of ‖y‖²


@dataclass(frozen=True)
class _Solver:
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
class Fit:
    """What was found.

    Attributes:
        factors: in the canonical gauge.
        objective: the function minimised, at the factors.
        exact: whether the residual is zero up to rounding.
        converged: whether the best start ended by itself, not at `max_iter`.
        starts: how many were tried; the best is kept.
        history: an entry an iteration, of all starts one after another.
    """

    factors: Factors
    objective: float
    exact: bool
    converged: bool
    starts: int
    history: tuple[Entry, ...]

    @property
    def iterations(self) -> int:
        """Over all starts and ridges."""
        return len(self.history)


def recover(
    users: Users,
    rank: int,
    *,
    solver: str = "second-order",
    init: Init | tuple[Tensor, Tensor] = "spectral",
    ridge: float = 0.0,
    annealing: Sequence[float] | None = None,
    restarts: int | None = None,
    max_iter: int = 1000,
    tol: float = 1e-7,
    splits: int = 1,
    random_state: int = 0,
    truth: Truth | None = None,
) -> Fit:
    """Shared factors of rank r and a core for each user (arXiv:2602.07218, heterogeneous linear regression).

    Args:
        users: the samples.
        rank: r, at most d_out and d_in.
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
        truth: compared with at every iteration, for the history alone.

    Raises:
        ConfigError: a solver, init, rank or number that cannot be used.
    """
    chosen = _checked(users, rank, solver, init, splits)
    stages = chosen.annealing if annealing is None else tuple(float(part) for part in annealing)
    numbers = [("ridge", ridge, 0), ("restarts", restarts or 0, 0), ("tol", tol, 0), ("max_iter", max_iter, 1)]
    for name, value, least in [*numbers, *(("annealing", part, 0) for part in stages)]:
        if not value >= least:
            raise ConfigError(f"{name}: expected at least {least}, found {value}")
    solve = partial(chosen.solve, splits=splits) if splits > 1 else chosen.solve
    tries = 1 + (chosen.restarts if restarts is None else restarts)
    total = sum(float(block.y.square().sum()) for block in users)
    history = History(users, truth)
    best: tuple[Factors, float, bool] | None = None
    times = 0
    for start in range(tries):
        history.start = start
        if start or init == "random":
            A, B = random_start(users, rank, random_state, start)
        elif init == "spectral":
            A, B = spectral_start(users, rank)
        else:
            given = Factors(*init, cores=init[0].new_zeros(1, rank, rank)).canonical()
            A, B = given.A, given.B
        weight = core_energy(users, A, B) if stages else 0.0
        for part in stages:
            quick = Stopping(STAGE_ITERATIONS, STAGE_TOLERANCE, total, patience=1)
            factors, _ = solve(users, A, B, ridge + part * weight, quick, history)
            canonical = factors.canonical()
            A, B = canonical.A, canonical.B
        stopping = Stopping(max_iter, tol, total)
        factors, objective = solve(users, A, B, ridge, stopping, history)
        found = (factors, objective, stopping.converged)
        if best is not None and abs(found[1] - best[1]) <= SAME * best[1]:
            times += 1
        elif best is None or found[1] < best[1]:
            best, times = found, 1
        if times == OFTEN or best[1] <= EXACT_FIT * total:
            break
    assert best is not None
    factors, objective, converged = best
    exact = objective <= EXACT_FIT * total
    return Fit(factors.canonical(), objective, exact, converged, start + 1, tuple(history.entries))


def _checked(users: Users, rank: int, solver: str, init: Init | tuple[Tensor, Tensor], splits: int) -> _Solver:
    most = min(users.d_out, users.d_in)
    if not 1 <= rank <= most:
        raise ConfigError(f"rank: expected 1 to {most}, the smaller side of W_k, found {rank}")
    if solver not in SOLVERS:
        raise ConfigError(f"solver: expected one of {', '.join(SOLVERS)}, found {solver!r}")
    if isinstance(init, str):
        if init not in ("spectral", "random"):
            raise ConfigError(f"init: expected 'spectral', 'random' or factors (A, B), found {init!r}")
    else:
        wanted = [(rank, users.d_in), (users.d_out, rank)]
        shapes = [tuple(one.shape) for one in init]
        if shapes != wanted:
            raise ConfigError(f"init: expected A and B of shapes {wanted}, found {shapes}")
    if splits < 1 or (splits > 1 and solver != "alternating"):
        raise ConfigError(f"splits: expected 1, or more with solver 'alternating'; found {splits} with {solver!r}")
    return SOLVERS[solver]
