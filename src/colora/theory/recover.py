"""One interface for all solvers: from users' samples to shared factors and cores.

    minimise Σ_k ‖y_k − X_k(B Λ_k A)‖² + ridge ‖B Λ_k A‖²

The solver, its annealing and its restarts are those of `colora.theory.settings`.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from colora.errors import ConfigError
from colora.theory.cores import core_energy
from colora.theory.factors import Factors, Truth
from colora.theory.history import Entry, History
from colora.theory.settings import SolverSettings
from colora.theory.starts import random_start, spectral_start
from colora.theory.stopping import Stopping
from colora.theory.users import Users

__all__ = ["Fit", "recover"]

STAGE_ITERATIONS, STAGE_TOLERANCE = 60, 1e-3  # of each ridge of annealing
SAME = 1e-6  # objectives that differ by less, relatively, are one minimum
OFTEN = 3  # times that the lowest objective is found before it is believed
EXACT_FIT = 1e-20  # of ‖y‖²
DEFAULTS = SolverSettings()


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


@dataclass(frozen=True)
class _Minimum:
    """Where a start ended."""

    factors: Factors
    objective: float
    converged: bool


def recover(users: Users, rank: int, settings: SolverSettings = DEFAULTS, *, truth: Truth | None = None) -> Fit:
    """Shared factors of rank r and a core for each user (arXiv:2602.07218, heterogeneous linear regression).

    Args:
        users: the samples.
        rank: r, at most d_out and d_in.
        settings: the solver, where it begins and when it ends.
        truth: compared with at every iteration, for the history alone.

    Raises:
        ConfigError: a rank that cannot be used, or factors to begin with that are of another size.
    """
    _check(users, rank, settings)
    total = sum(float(block.y.square().sum()) for block in users)
    history = History(users, truth)
    best: _Minimum | None = None
    times = 0
    for start in range(settings.starts):
        history.start = start
        A, B = _start(users, rank, settings, start)
        found = _minimum(users, A, B, settings, total, history)
        if best is not None and abs(found.objective - best.objective) <= SAME * best.objective:
            times += 1
        elif best is None or found.objective < best.objective:
            best, times = found, 1
        if times == OFTEN or best.objective <= EXACT_FIT * total:
            break
    assert best is not None
    exact = best.objective <= EXACT_FIT * total
    return Fit(best.factors.canonical(), best.objective, exact, best.converged, start + 1, tuple(history.entries))


def _start(
    users: Users, rank: int, settings: SolverSettings, number: int
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """The orthonormal factors that the `number`-th start begins with: as the settings say, then random ones."""
    init = settings.init
    if number or init == "random":
        return random_start(users, rank, settings.random_state, number)
    if isinstance(init, str):
        return spectral_start(users, rank)
    A, B = init
    given = Factors(A, B, cores=A.new_zeros(1, rank, rank)).canonical()
    return given.A, given.B


def _minimum(
    users: Users,
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    settings: SolverSettings,
    total: float,
    history: History,
) -> _Minimum:
    """Where the solver ends from A and B, after annealing; `total` is ‖y‖²."""
    solve, stages = settings.solve, settings.stages
    weight = core_energy(users, A, B) if stages else 0.0
    for part in stages:
        quick = Stopping(STAGE_ITERATIONS, STAGE_TOLERANCE, total, patience=1)
        factors, _ = solve(users, A, B, settings.ridge + part * weight, quick, history)
        canonical = factors.canonical()
        A, B = canonical.A, canonical.B
    stopping = Stopping(settings.max_iter, settings.tol, total)
    factors, objective = solve(users, A, B, settings.ridge, stopping, history)
    return _Minimum(factors, objective, stopping.converged)


def _check(users: Users, rank: int, settings: SolverSettings) -> None:
    most = min(users.d_out, users.d_in)
    if not 1 <= rank <= most:
        raise ConfigError(f"rank: expected 1 to {most}, the smaller side of W_k, found {rank}")
    if not isinstance(settings.init, str):
        wanted = [(rank, users.d_in), (users.d_out, rank)]
        shapes = [tuple(one.shape) for one in settings.init]
        if shapes != wanted:
            raise ConfigError(f"init: expected A and B of shapes {wanted}, found {shapes}")
