"""The parts of the solvers against dense float64 computations of the same thing."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from colora.errors import ConfigError
from colora.theory.alternating import _half_step
from colora.theory.baselines import local_least_squares, local_low_rank, local_second_order, oracle, pooled
from colora.theory.cores import core_energy, fit_block, fit_cores
from colora.theory.descent import _evaluated
from colora.theory.factors import Factors, relative_error, subspace_distance
from colora.theory.problems import Problem
from colora.theory.recover import recover
from colora.theory.settings import SOLVERS, SolverSettings
from colora.theory.starts import random_start, spectral_start
from colora.theory.stopping import Stopping
from colora.theory.tangent import Frame, eliminated, jacobian

OUT, IN, R = 5, 6, 2
NAMES = ["dense", "rank-one", "multivariate"]


def problem(design="dense", users=4, samples=9, **changes):
    return Problem(users, samples, d_out=OUT, d_in=IN, rank=R, design=design, **{"noise": 0.2, "seed": 1} | changes)


def orthonormal(seed=0):
    return random_start(problem().observed(), R, seed)


def explicit(users):
    """All rows of all users as (user, matrix, y), one after another."""
    units = torch.eye(OUT * IN, dtype=torch.float64).view(-1, OUT, IN)
    for block in users:
        X = torch.stack([block.design.measure(unit) for unit in units], dim=-1).unflatten(-1, (OUT, IN))
        for k, place in enumerate(block.indices.tolist()):
            for i in range(X.shape[1]):
                yield place, X[k, i], block.y[k, i]


def objective(users, A, B, cores, ridge=0.0):
    fits = sum((y - (X * (B @ cores[k] @ A)).sum()) ** 2 for k, X, y in explicit(users))
    return fits + ridge * (B @ cores @ A).square().sum()


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_cores_are_the_least_squares_solution(name, ridge):
    users = problem(name).observed()
    A, B = orthonormal()
    (block,) = users
    found = fit_block(block, A, B, ridge)
    for k in range(4):
        rows = [((B.T @ X @ A.T).flatten(), y) for user, X, y in explicit(users) if user == k]
        F = torch.cat([torch.stack([row for row, _ in rows]), ridge**0.5 * torch.eye(R * R, dtype=torch.float64)])
        y = torch.cat([torch.stack([y for _, y in rows]), torch.zeros(R * R, dtype=torch.float64)])
        wanted = torch.linalg.lstsq(F, y.unsqueeze(1)).solution.view(R, R)
        assert torch.allclose(found.cores[k], wanted, atol=1e-9)
    assert found.objective == pytest.approx(float(objective(users, A, B, found.cores, ridge)))


def test_a_user_with_too_few_samples_gets_nearly_the_least_core_that_fits():
    users = problem(samples=2).observed()
    A, B = orthonormal()
    (block,) = users
    found = fit_block(block, A, B)
    F = block.design.core(A, B).flatten(2)
    least = (torch.linalg.pinv(F) @ block.y.unsqueeze(-1)).view(-1, R, R)
    assert torch.allclose(found.cores, least, atol=1e-2)  # the jitter leaves three digits of what no sample tells
    assert float(found.residual.abs().max()) < 1e-6


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("up", [True, False], ids=["B", "A"])
def test_a_half_step_is_least_squares_for_one_factor(up, ridge):
    users = problem(samples=20).observed()
    A, B = orthonormal()
    cores, _ = fit_cores(users, A, B, ridge)
    new, _, before = _half_step(users, A, B, ridge, up)
    assert before == pytest.approx(float(objective(users, A, B, cores, ridge)))
    rows, right = [], []
    for k, X, y in explicit(users):
        rows.append((X @ A.T @ cores[k].T if up else cores[k].T @ B.T @ X).flatten())
        right.append(y)
    size = rows[0].numel()
    if ridge:  # ‖B Λ_k A‖² is a square of each entry of B Λ_k, or of Λ_k A, for the other factor is orthonormal
        for k in range(4):
            unit = torch.eye(OUT if up else IN, dtype=torch.float64)
            block = torch.kron(unit, cores[k].T.contiguous()) if up else torch.kron(cores[k], unit)
            rows += list(ridge**0.5 * block)
            right += [torch.zeros((), dtype=torch.float64)] * len(block)
    best = torch.linalg.lstsq(torch.stack(rows), torch.stack(right).unsqueeze(1)).solution.view((B if up else A).shape)
    assert size == best.numel()
    assert subspace_distance(*((new, best) if up else (new.T, best.T))) < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_the_jacobian_is_the_derivative_along_the_tangent_space(name):
    users = problem(name).observed()
    (block,) = users
    frame, cores = Frame.at(*orthonormal()), torch.randn(4, R, R, dtype=torch.float64)

    def observed(theta):
        Z_A, Z_B = frame.unpack(theta)
        return block.design.measure((frame.B + frame.B_rest @ Z_B) @ cores @ (frame.A + Z_A @ frame.A_rest))

    zero = torch.zeros(frame.size, dtype=torch.float64)
    assert torch.allclose(jacobian(block, frame, cores), torch.autograd.functional.jacobian(observed, zero), atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_eliminating_the_cores_is_a_schur_complement(ridge):
    users = problem().observed()
    (block,) = users
    frame = Frame.at(*orthonormal())
    found = fit_block(block, frame.A, frame.B, ridge)
    J = jacobian(block, frame, found.cores)
    schur, right = eliminated(found, J)
    F = torch.block_diag(*found.F)
    rows = J.flatten(0, 1)
    inner = torch.linalg.inv(F.T @ F + ridge * torch.eye(F.shape[1], dtype=torch.float64))
    assert torch.allclose(schur, rows.T @ rows - rows.T @ F @ inner @ F.T @ rows, atol=1e-9)
    assert torch.allclose(right, rows.T @ found.residual.flatten(), atol=1e-12)


def test_a_move_goes_along_the_tangent_and_stays_orthonormal():
    frame = Frame.at(*orthonormal())
    theta = torch.randn(frame.size, dtype=torch.float64)
    moved = frame.moved(theta)
    assert torch.allclose(moved.A @ moved.A.T, torch.eye(R, dtype=torch.float64))
    Z_A, Z_B = frame.unpack(theta)
    assert subspace_distance(moved.A.T, (frame.A + Z_A @ frame.A_rest).T) < 1e-12
    assert subspace_distance(moved.B, frame.B + frame.B_rest @ Z_B) < 1e-12


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_descent_follows_half_the_gradient(ridge):
    users = problem().observed()
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((R, IN), (OUT, R), (4, R, R))]
    value = objective(users, *parts, ridge)
    here = _evaluated(users, Factors(*(part.detach() for part in parts)), ridge)
    assert here.objective == pytest.approx(float(value.detach()))
    gradient = torch.autograd.grad(value / 2, parts)
    for ours, theirs in zip((here.gradient.A, here.gradient.B, here.gradient.cores), gradient, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_objective_never_rises_and_ends_where_the_gradient_is_zero(solver, ridge):
    users = problem(users=6, samples=40, noise=0.3).observed()
    fit = recover(
        users, R, SolverSettings(solver=solver, ridge=ridge, annealing=(), restarts=0, tol=1e-13, max_iter=3000)
    )
    steps = [entry.objective for entry in fit.history]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(steps))
    assert fit.converged
    assert fit.objective == pytest.approx(float(objective(users, *vars(fit.factors).values(), ridge)))
    gradient = _evaluated(users, fit.factors, ridge).gradient
    scale = core_energy(users, fit.factors.A, fit.factors.B)
    assert max(float(one.abs().max()) for one in vars(gradient).values()) < 1e-4 * scale


def test_all_solvers_find_the_same_minimum():
    users = problem(users=6, samples=40, noise=0.3).observed()
    found = [
        recover(users, R, SolverSettings(solver=one, ridge=0.5, tol=1e-13, max_iter=3000)).factors.matrices()
        for one in SOLVERS
    ]
    for other in found[1:]:
        assert torch.allclose(other, found[0], atol=1e-4)


def test_the_spectral_start_is_near_where_samples_are_many_and_its_formula():
    many = problem(samples=4000, users=6).observed()
    shared = problem(samples=4000, users=6).truth().shared
    A, B = spectral_start(many, R)
    assert subspace_distance(A.T, shared.A.T) < 0.15
    assert subspace_distance(B, shared.B) < 0.15
    few = problem().observed()
    G = torch.zeros(4, OUT, IN, dtype=torch.float64)
    for k, X, y in explicit(few):
        G[k] += y * X / 9
    A, B = spectral_start(few, R)
    assert subspace_distance(B, torch.linalg.svd(G.transpose(0, 1).flatten(1)).U[:, :R]) < 1e-9
    assert subspace_distance(A.T, torch.linalg.svd(G.flatten(0, 1)).Vh[:R].T) < 1e-9


def test_random_starts_differ_by_seed_and_number():
    users = problem().observed()
    starts = [random_start(users, R, seed, number)[0] for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(starts[0], starts[3])
    assert min(subspace_distance(starts[i].T, starts[j].T) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_stopping():
    by_patience, by_count, by_zero = Stopping(100, 1e-3, 1.0), Stopping(3, 0.0, 1.0), Stopping(100, 0.0, 1.0)
    assert [by_patience.reached(x) for x in (1.0, 0.5, 0.4999, 0.49985, 0.4998)] == [False] * 4 + [True]
    assert by_patience.converged
    assert [by_count.reached(x) for x in (1.0, 0.5, 0.2)] == [False, False, True]
    assert not by_count.converged
    assert [by_zero.reached(x) for x in (1.0, 1e-30)] == [False, True]
    assert by_zero.converged


def test_baselines_are_what_they_say():
    users = problem(samples=7).observed()
    (block,) = users
    alone = local_least_squares(users)
    for k in range(4):
        rows = [(X.flatten(), y) for user, X, y in explicit(users) if user == k]
        least = torch.linalg.pinv(torch.stack([x for x, _ in rows])) @ torch.stack([y for _, y in rows])
        assert torch.allclose(alone[k].flatten(), least, atol=1e-9)
    ridged = local_least_squares(users, ridge=2.0)
    gradient = block.design.adjoint(block.design.measure(ridged) - block.y) + 2.0 * ridged
    assert float(gradient.abs().max()) < 1e-10
    plenty = problem(samples=80, noise=0.0)
    assert relative_error(local_low_rank(plenty.observed(), R), plenty.truth()) < 1e-9
    assert relative_error(local_second_order(plenty.observed(), R), plenty.truth()) < 1e-9
    assert torch.linalg.matrix_rank(local_low_rank(users, R)).tolist() == [R] * 4
    same = problem(samples=30, noise=0.0, diversity=0.0)
    assert relative_error(pooled(same.observed(), R), same.truth()) < 1e-9
    assert torch.equal(pooled(users, R)[0], pooled(users, R)[3])
    exact = problem(samples=4, noise=0.0)
    assert relative_error(oracle(exact.observed(), exact.truth()), exact.truth()) < 1e-8


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"solver": "newton"}, "solver: expected one of alternating, second-order"),
        ({"init": "zero"}, "init: expected 'spectral', 'random' or factors"),
        ({"init": orthonormal()[::-1]}, r"init: expected A and B of shapes \[\(2, 6\), \(5, 2\)\], found"),
        ({"splits": 2}, "splits: expected 1, or more with solver 'alternating'; found 2 with 'second-order'"),
        ({"ridge": -1.0}, "ridge: expected at least 0, found -1.0"),
        ({"restarts": -1}, "restarts: expected at least 0, found -1"),
        ({"annealing": (1.0, -1.0)}, "annealing: expected at least 0, found -1.0"),
        ({"tol": float("nan")}, "tol: expected at least 0, found nan"),
        ({"max_iter": 0}, "max_iter: expected at least 1, found 0"),
    ],
)
def test_what_cannot_be_asked_for(options, fault):
    with pytest.raises(ConfigError, match=fault):
        recover(problem().observed(), R, SolverSettings(**options))
    with pytest.raises(ConfigError, match="rank: expected 1 to 5, the smaller side of W_k, found 6"):
        recover(problem().observed(), 6)


def test_given_factors_may_be_in_any_gauge():
    users = problem(samples=40).observed()
    A, B = orthonormal()
    P = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    ours, theirs = (
        recover(users, R, SolverSettings(solver="alternating", init=one)) for one in ((A, B), (P @ A, B @ P))
    )
    assert torch.allclose(ours.factors.matrices(), theirs.factors.matrices(), atol=1e-9)
    assert np.isclose(ours.history[0].objective, theirs.history[0].objective)
