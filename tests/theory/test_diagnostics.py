"""The Cramér–Rao bound, the isometry bound and the conditioning of cores, against dense computations."""

import pytest
import torch
from torch.func import jacfwd

from colora.errors import ColoraError
from colora.theory.conditioning import core_conditioning
from colora.theory.cramer_rao import cramer_rao, cramer_rao_alone
from colora.theory.design import Multivariate
from colora.theory.factors import Factors
from colora.theory.isometry import _Tangent, _weights, isometry_bound
from colora.theory.problems import Problem
from colora.theory.recover import recover
from colora.theory.settings import SolverSettings
from colora.theory.users import Block, Users

OUT, IN, R, K = 5, 6, 2, 4
UNITS = torch.eye(OUT * IN, dtype=torch.float64).view(-1, OUT, IN)


def problem(design="dense", samples=14, **changes):
    return Problem(K, samples, d_out=OUT, d_in=IN, rank=R, design=design, **{"noise": 0.3} | changes)


def explicit(users):
    """The matrices of all rows, flattened, (K, n, d_out d_in)."""
    (block,) = users
    return torch.stack([block.design.measure(unit) for unit in UNITS], dim=-1)


def derivatives(factors):
    """Of vec W_k by all numbers of A, B and the cores, gauge and all: (K, d_out d_in, numbers)."""

    def matrices(numbers):
        A, B, cores = numbers.split([R * IN, OUT * R, K * R * R])
        return (B.view(OUT, R) @ cores.view(K, R, R) @ A.view(R, IN)).flatten(1)

    return jacfwd(matrices)(torch.cat([factors.A.flatten(), factors.B.flatten(), factors.cores.flatten()]))


@pytest.mark.parametrize("design", ["dense", "rank-one", "multivariate"])
def test_the_bound_is_that_of_the_redundant_parametrisation(design):
    users, shared = problem(design).observed(), problem(design).truth().shared
    D = derivatives(shared)
    J = (explicit(users) @ D).flatten(0, 1)
    covariance = 0.3**2 * torch.linalg.pinv(J.T @ J, rtol=1e-10, hermitian=True)
    wanted = torch.stack([(one @ covariance @ one.T).trace() for one in D])
    found = cramer_rao(users, shared, 0.3)
    assert torch.allclose(found.per_user, wanted, rtol=1e-8)
    assert found.total == pytest.approx(float(wanted.sum()))
    P = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    turned = Factors(P @ shared.A, shared.B @ P, torch.linalg.solve(P, shared.cores) @ torch.linalg.inv(P))
    assert torch.allclose(cramer_rao(users, turned, 0.3).per_user, wanted, rtol=1e-8)


def test_an_efficient_estimate_meets_the_bound():
    squares = bounds = 0.0
    for seed in range(30):
        one = problem(samples=30, noise=0.05, seed=seed)
        users, truth = one.observed(), one.truth()
        fit = recover(users, R, SolverSettings(restarts=0))
        squares += float((fit.factors.matrices() - truth.matrices()).square().sum())
        bounds += cramer_rao(users, truth.shared, 0.05).total
    assert squares / bounds == pytest.approx(1.0, abs=0.12)


def test_alone_the_bound_is_higher_and_infinite_where_samples_do_not_suffice():
    plenty, few = problem(samples=40).observed(), problem(samples=10).observed()
    shared = problem().truth().shared
    assert (cramer_rao_alone(plenty, shared, 0.3).per_user > cramer_rao(plenty, shared, 0.3).per_user).all()
    assert torch.isinf(cramer_rao_alone(few, shared, 0.3).per_user).all()  # 10 samples, 18 degrees of freedom


def test_where_there_is_no_bound_it_says_so():
    shared = problem().truth().shared
    with pytest.raises(ColoraError, match="determine every user's core, found 4 users with too few samples"):
        cramer_rao(problem(samples=3).observed(), shared, 0.3)
    used = shared.cores.clone()
    used[:, 1] = 0.0  # the second direction of B is used by nobody
    with pytest.raises(
        ColoraError, match=r"determine A and B, found \d+ of 14 directions that no user's samples determine"
    ):
        cramer_rao(problem(samples=40).observed(), Factors(shared.A, shared.B, used), 0.3)


def test_the_extreme_ratios_are_those_of_the_explicit_tangent_space():
    users, shared = problem(samples=20).observed(), problem().truth().shared.canonical()
    X, D = explicit(users), derivatives(shared)
    n = X.shape[1]
    weights = X.square().sum((1, 2)) / (OUT * IN)
    assert torch.allclose(_weights(users), weights)
    basis = torch.linalg.svd(D.flatten(0, 1), full_matrices=False)
    tangent = basis.U[:, : int((basis.S / basis.S[0] > 1e-9).sum())].unflatten(0, (K, OUT * IN))
    assert tangent.shape[2] == R * (OUT + IN) - 2 * R * R + K * R * R
    measured = ((X / weights.sqrt().view(K, 1, 1)) @ tangent).flatten(0, 1)
    values = torch.linalg.svdvals(measured).square()
    assert measured.shape[0] == K * n
    found = isometry_bound(users, R, at=shared, points=0, iterations=3000)
    assert found.largest == pytest.approx(float(values[0]), rel=1e-4)
    assert found.smallest == pytest.approx(float(values[-1]), rel=1e-2)
    # However few the iterations, what is found is attained by some stack, and so never too large.
    for iterations in (1, 5, 20):
        early = isometry_bound(users, R, at=shared, points=0, iterations=iterations)
        assert early.largest <= float(values[0]) + 1e-9
        assert early.smallest >= float(values[-1]) - 1e-9


def test_the_tangent_map_is_symmetric():
    users = problem("rank-one").observed()
    tangent = _Tangent(users, problem().truth().shared.canonical(), _weights(users))
    matrix = torch.stack([tangent.normal(one) for one in torch.eye(tangent.size, dtype=torch.float64)])
    assert torch.allclose(matrix, matrix.T, atol=1e-10)


def test_an_isometric_design_has_none_and_more_samples_have_less():
    rotation = torch.linalg.qr(torch.randn(IN, IN, dtype=torch.float64)).Q
    design = Multivariate(rotation.expand(K, -1, -1), OUT)  # every user sees W_k in an orthonormal basis
    users = Users.of([Block(design, torch.zeros(K, IN * OUT, dtype=torch.float64), torch.arange(K))])
    assert isometry_bound(users, R).delta < 1e-9
    deltas = [isometry_bound(problem(samples=n).observed(), R, points=2).delta for n in (10, 60, 400)]
    assert deltas == sorted(deltas, reverse=True)
    assert deltas[0] > 1
    with pytest.raises(ColoraError, match="points: expected at least 1 where no point is given, found 0"):
        isometry_bound(users, R, points=0)


def test_conditioning_is_of_the_stack_and_not_of_the_gauge():
    shared = Problem(30, 3, rank=3, condition=100.0).truth().shared
    found = core_conditioning(shared)
    assert found.condition < 3  # each core is badly conditioned; thirty different ones together are not
    assert torch.linalg.cond(shared.cores).min() > 99
    W = shared.matrices()
    assert torch.allclose(found.out, torch.linalg.svdvals(W.transpose(0, 1).flatten(1))[:3])
    assert torch.allclose(found.into, torch.linalg.svdvals(W.flatten(0, 1))[:3])
    assert torch.allclose(found.stack, torch.linalg.svdvals(W.flatten(1))[:9])
    P = torch.randn(3, 3, dtype=torch.float64) + 3 * torch.eye(3, dtype=torch.float64)
    turned = Factors(shared.A, shared.B @ P, torch.linalg.solve(P, shared.cores))
    assert torch.allclose(core_conditioning(turned).out, found.out)
    alike = core_conditioning(Problem(30, 3, rank=3, diversity=0.0).truth().shared)
    assert float(alike.stack[1] / alike.stack[0]) < 1e-12
