"""What the diagnostics and problems must not be deceived by: points with a direction to spare, and numbers amiss."""

import numpy as np
import pytest
import torch

from colora.errors import ColoraError, ConfigError
from colora.theory.conditioning import core_conditioning
from colora.theory.cramer_rao import cramer_rao
from colora.theory.factors import Factors
from colora.theory.isometry import isometry_bound
from colora.theory.problems import Problem
from colora.theory.recover import recover
from colora.theory.settings import SolverSettings

OUT, IN, R, K, SAMPLES = 5, 6, 2, 4, 400
UNITS = torch.eye(OUT * IN, dtype=torch.float64).view(-1, OUT, IN)
MADE = Problem(K, SAMPLES, d_out=OUT, d_in=IN)


def observed():
    return MADE.observed()


def extreme_over_all_matrices(users):
    """δ of stacks of any rank: no stack of low rank has more."""
    (block,) = users
    X = torch.stack([block.design.measure(unit) for unit in UNITS], dim=-1)
    values = torch.linalg.svdvals(X).square() * OUT * IN / X.square().sum((1, 2)).unsqueeze(1)
    return max(float(values.max()) - 1, 1 - float(values.min()))


def unused(side):
    """Cores of which nobody uses the second direction of B (rows) or of A (columns)."""
    cores = MADE.truth().shared.cores.clone()
    (cores if side == "B" else cores.mT)[:, 1] = 0.0
    return Factors(MADE.truth().shared.A, MADE.truth().shared.B, cores)


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_direction_that_nobody_uses_is_no_stack_that_is_not_seen(side):
    users = observed()
    assert isometry_bound(users, R, at=unused(side), points=0).delta <= extreme_over_all_matrices(users) + 1e-9


def test_an_estimate_of_too_high_a_rank_is_no_stack_that_is_not_seen():
    users = observed()
    fit = recover(users, R + 1, SolverSettings(restarts=0))
    assert isometry_bound(users, R + 1, at=fit.factors, points=0).delta <= extreme_over_all_matrices(users) + 1e-9


def test_without_an_iteration_nothing_is_certified():
    with pytest.raises(ColoraError, match="iterations: expected at least 1, found 0"):
        isometry_bound(observed(), R, iterations=0)


def test_a_point_of_another_rank_certifies_something_else():
    with pytest.raises(ColoraError, match="rank"):
        isometry_bound(observed(), 1, at=MADE.truth().shared, points=0)


@pytest.mark.parametrize("number", [K - 1, K + 1])
def test_cores_must_be_of_these_users(number):
    shared = Problem(number, SAMPLES, d_out=OUT, d_in=IN).truth().shared
    with pytest.raises(ColoraError, match=f"expected .*{K}.*found .*{number}"):
        isometry_bound(observed(), R, at=shared, points=0)
    with pytest.raises(ColoraError, match=f"expected .*{K}.*found .*{number}"):
        cramer_rao(observed(), shared, 0.1)


@pytest.mark.parametrize("noise", [-0.1, float("nan")])
def test_noise_of_a_bound_is_a_standard_deviation(noise):
    with pytest.raises(ColoraError, match="noise: expected at least 0, found"):
        cramer_rao(observed(), MADE.truth().shared, noise)


def test_a_direction_that_nobody_uses_has_no_condition():
    """The zero of a singular value is 1e-16 of the largest once a gauge was undone."""
    P = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    for side in ("A", "B"):
        point = unused(side)
        turned = Factors(P @ point.A, point.B @ P, torch.linalg.solve(P, point.cores) @ torch.linalg.inv(P))
        assert core_conditioning(point).condition == float("inf")
        assert core_conditioning(turned).condition == float("inf")


def test_cores_of_zero_have_no_condition():
    point = unused("A")
    assert core_conditioning(Factors(point.A, point.B, torch.zeros_like(point.cores))).condition == float("inf")


@pytest.mark.parametrize(("name", "value"), [("noise", float("nan")), ("noise", float("inf")),
                                             ("condition", float("nan")), ("condition", float("inf"))])  # fmt: skip
def test_problems_are_made_of_finite_numbers(name, value):
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        Problem(**{"users": 4, "samples": 5} | {name: value})


def test_no_more_users_than_there_are_have_a_sample_more():
    with pytest.raises(ConfigError, match="extra: expected 0 to 4"):
        Problem(4, 5, extra=99)


def test_annealing_may_be_an_array_and_has_no_nan():
    users = observed()
    assert recover(users, R, SolverSettings(annealing=np.array([1.0, 0.1]), restarts=0)).exact
    with pytest.raises(ConfigError, match="annealing: expected at least 0, found nan"):
        recover(users, R, SolverSettings(annealing=(1.0, float("nan"))))


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("design", ["dense", "multivariate"])
def test_parts_of_the_samples_know_how_many_they_have(design, spread):
    users = Problem(5, 7, d_out=OUT, d_in=IN, design=design, spread=spread, seed=3).observed()
    for number in range(3):
        part = users.part(number, 3)
        (block,) = part
        rows = (block.y != 0).sum(1)
        assert part.observations.tolist() == rows.tolist()
