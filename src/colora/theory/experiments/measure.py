"""Run one trial of a recovery experiment: make the problem of each seed, run the method, compare with the truth."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from math import ceil
from typing import Any

from jaxtyping import Float
from torch import Tensor

from colora.errors import ColoraError
from colora.theory.baselines import local_least_squares, local_low_rank, local_second_order, oracle, pooled
from colora.theory.cores import fit_cores
from colora.theory.cramer_rao import cramer_rao, cramer_rao_alone
from colora.theory.digits import draw_digits
from colora.theory.experiments.records import MethodSettings, ProblemSettings, RecoveryRecord, RecoveryTrial, Study
from colora.theory.factors import Factors, Truth, relative_error
from colora.theory.freedom import degrees_of_freedom
from colora.theory.problems import Problem
from colora.theory.recover import Fit, recover
from colora.theory.settings import SolverSettings
from colora.theory.users import Users

__all__ = ["make_problem", "measure"]

NEW_USERS = 20


@dataclass
class _Result:
    """What a method found: full matrices, or factors; and the fit they are of, if it was a solver."""

    found: Float[Tensor, "K d_out d_in"] | Factors
    seconds: float
    fit: Fit | None = None


@dataclass
class _Gathered:
    """What the seeds gave, field by field of the record."""

    lists: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, **values: object) -> None:
        for name, value in values.items():
            self.lists.setdefault(name, []).append(value)


def measure(trial: RecoveryTrial) -> RecoveryRecord:
    """All seeds of a trial. `code` and `environment` of the record are left empty.

    Raises:
        ColoraError: a problem that cannot be made, or a method that does not fit it.
    """
    study = _STUDIES[trial.study]
    gathered = _Gathered()
    for seed in trial.seeds:
        study(trial, seed, gathered)
    return RecoveryRecord(trial=trial, **gathered.lists)


def make_problem(settings: ProblemSettings, seed: int) -> Problem:
    """The problem of a seed; `times_freedom` is met exactly, by a sample more for some users."""
    fields = settings.model_dump(exclude={"times_freedom", "newcomer"})
    if settings.times_freedom is not None:
        free = degrees_of_freedom(settings.users, settings.d_out, settings.d_in, settings.rank)
        per_sample = settings.d_out if settings.design == "multivariate" else 1
        # Rounded first, so that 1.1 × 10 is 11 and not 11.000000000000002.
        wanted = ceil(round(settings.times_freedom * free / per_sample, 6))
        fields["samples"], fields["extra"] = divmod(wanted, settings.users)
        if not fields["samples"]:
            raise ColoraError(f"times_freedom: expected a sample for each of {settings.users} users, found {wanted}")
    return Problem(**fields, seed=seed)


def _recovery(trial: RecoveryTrial, seed: int, gathered: _Gathered) -> None:
    problem = make_problem(trial.problem, seed)
    truth, users = problem.truth(), problem.observed()
    result = _run(trial.settings, users, problem.rank, seed, truth, truth if trial.history else None)
    gathered.add(errors=relative_error(result.found, truth, users), seconds=result.seconds)
    if result.fit is not None:
        fit = result.fit
        gathered.add(exact=fit.exact, starts=fit.starts, iterations=fit.iterations)
        if trial.history:
            gathered.add(history=[tuple(float(f"{x:.6g}") for x in astuple(one)) for one in fit.history])
    if problem.noise and not problem.angle:
        size = sum(float(truth.matrices(block.indices).square().sum()) for block in users) ** 0.5
        gathered.add(bounds=cramer_rao(users, truth.shared, problem.noise).total ** 0.5 / size)
        alone = cramer_rao_alone(users, truth.shared, problem.noise).total
        if alone < float("inf"):
            gathered.add(bounds_alone=alone**0.5 / size)


def _new_users(trial: RecoveryTrial, seed: int, gathered: _Gathered) -> None:
    problem, settings, samples = make_problem(trial.problem, seed), trial.settings, trial.problem.newcomer
    assert samples is not None
    learned = _fitted(settings, problem.observed(), problem.rank, seed).factors if settings.solver else None
    wrong, seconds = [], 0.0
    for number in range(NEW_USERS):
        user, truth = problem.new_user(samples, number)
        if learned is not None:
            began = time.perf_counter()
            cores, _ = fit_cores(user, learned.A, learned.B, settings.ridge)
            result = _Result(Factors(learned.A, learned.B, cores), time.perf_counter() - began)
        else:
            result = _run(settings, user, problem.rank, seed, truth)
        wrong.append(relative_error(result.found, truth))
        seconds += result.seconds / NEW_USERS
    gathered.add(errors=(sum(one**2 for one in wrong) / NEW_USERS) ** 0.5, users=wrong, seconds=seconds)


def _digits(trial: RecoveryTrial, seed: int, gathered: _Gathered) -> None:
    assert trial.problem.samples is not None
    digits = draw_digits(trial.problem.samples, seed)
    result = _run(trial.settings, digits.users, trial.problem.rank, seed, None)
    W = result.found if isinstance(result.found, Tensor) else result.found.matrices()
    rates = digits.error_rates(W)
    gathered.add(errors=float(rates.mean()), users=[round(rate, 5) for rate in rates.tolist()], seconds=result.seconds)


_STUDIES: dict[Study, Callable[[RecoveryTrial, int, _Gathered], None]] = {
    "recovery": _recovery,
    "newcomer": _new_users,
    "digits": _digits,
}


def _fitted(settings: MethodSettings, users: Users, rank: int, seed: int, watch: Truth | None = None) -> Fit:
    of_solver = SolverSettings(**settings.model_dump(exclude={"baseline"}), random_state=seed)
    return recover(users, rank, of_solver, truth=watch)


def _run(
    settings: MethodSettings, users: Users, rank: int, seed: int, truth: Truth | None, watch: Truth | None = None
) -> _Result:
    """Run the method; `truth` is for the oracle alone, `watch` for the history."""
    began = time.perf_counter()
    fit: Fit | None = None
    found: Tensor | Factors
    if settings.solver is not None:
        fit = _fitted(settings, users, rank, seed, watch)
        found = fit.factors
    elif settings.baseline == "local-least-squares":
        found = local_least_squares(users, settings.ridge)
    elif settings.baseline == "local-low-rank":
        found = local_low_rank(users, rank, settings.ridge, settings.max_iter, settings.tol)
    elif settings.baseline == "local-second-order":
        found = local_second_order(users, rank, settings.ridge)
    elif settings.baseline == "pooled":
        found = pooled(users, rank, settings.ridge)
    else:
        if truth is None:
            raise ColoraError("oracle: expected a problem whose truth is known, found real data")
        found = oracle(users, truth, settings.ridge)
    return _Result(found, time.perf_counter() - began, fit)
