"""What the theory promises: exact recovery, near the degrees of freedom, whatever the gauge and the order of users."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.theory.baselines import local_low_rank, oracle
from colora.theory.cores import fit_cores
from colora.theory.experiments.measure import make_problem
from colora.theory.experiments.records import ProblemSettings
from colora.theory.factors import Factors, relative_error, subspace_distance
from colora.theory.problems import Problem
from colora.theory.recover import recover
from colora.theory.settings import ANNEALING, SOLVERS, SolverSettings
from colora.theory.users import Block, Users

QUICK = settings(max_examples=15, deadline=None)


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [20, 24])
@pytest.mark.parametrize("seed", range(3))
def test_alternating_minimisation_recovers_exactly_where_nobody_could_alone(seed, samples):
    problem = Problem(20, samples, seed=seed)  # d = 20, r = 2: alone a user has 76 degrees of freedom
    truth, users = problem.truth(), problem.observed()
    fit = recover(users, 2, SolverSettings(solver="alternating"), truth=truth)
    assert relative_error(fit.factors, truth) < 1e-10
    assert fit.exact
    assert fit.starts == 1
    assert relative_error(local_low_rank(users, 2), truth) > 0.5
    last = fit.history[-1]
    assert max(last.distance_A, last.distance_B, last.error) < 1e-10


def test_alone_not_everybody_is_recovered_with_110_samples():
    """The same algorithm for one user, on many: some need more than 110 samples."""
    recovered = []
    for seed in range(3):
        problem = Problem(20, 110, seed=seed)
        W = problem.truth().matrices()
        apart = (local_low_rank(problem.observed(), 2) - W).flatten(1).norm(dim=1) / W.flatten(1).norm(dim=1)
        recovered += (apart < 1e-6).tolist()
    assert not all(recovered)


@pytest.mark.slow
@pytest.mark.parametrize("users", [5, 20])
def test_second_order_recovers_at_one_and_a_half_times_the_degrees_of_freedom(users):
    exact = 0
    for seed in range(10):
        problem = make_problem(ProblemSettings(users=users, times_freedom=1.5), seed)
        fit = recover(problem.observed(), 2, SolverSettings(max_iter=100, random_state=seed))
        exact += relative_error(fit.factors, problem.truth()) < 1e-6
    assert exact >= 9


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("design", ["dense", "rank-one", "multivariate"])
def test_every_solver_recovers_in_every_design_from_memory_and_streamed(design, solver):
    samples = 30 if design == "multivariate" else 60
    problem = Problem(12, samples, d_out=7, d_in=9, rank=2, design=design, spread=0.2, seed=2)
    truth = problem.truth()
    fit = recover(problem.observed(), 2, SolverSettings(solver=solver, restarts=0, max_iter=3000))
    assert relative_error(fit.factors, truth) < 1e-9
    streamed = recover(problem.observed(stream=True), 2, SolverSettings(solver=solver, restarts=0, max_iter=3000))
    assert torch.equal(streamed.factors.cores, fit.factors.cores)


def test_with_fresh_samples_at_every_half_step():
    problem = Problem(20, 180, seed=1)
    fit = recover(problem.observed(), 2, SolverSettings(solver="alternating", splits=4, tol=0.0, max_iter=40))
    assert relative_error(fit.factors, problem.truth()) < 1e-10


def test_annealing_recovers_what_a_plain_start_does_not():
    """Over ten problems at 1.5 times the degrees of freedom: one start each."""
    found = {}
    for name, annealing in (("plain", ()), ("annealed", ANNEALING)):
        found[name] = 0
        for seed in range(10):
            problem = make_problem(ProblemSettings(users=20, times_freedom=1.5), seed)
            fit = recover(problem.observed(), 2, SolverSettings(annealing=annealing, restarts=0, max_iter=100))
            found[name] += fit.exact
    assert found["annealed"] > found["plain"]


def test_restarts_end_when_the_lowest_objective_came_three_times():
    problem = Problem(6, 60, noise=0.5, d_out=6, d_in=6)
    fit = recover(problem.observed(), 2)
    assert not fit.exact
    assert fit.starts == 3
    assert {entry.start for entry in fit.history} == {0, 1, 2}


def test_one_user_and_a_full_rank():
    alone = Problem(1, 60, d_out=5, d_in=5)
    assert relative_error(recover(alone.observed(), 2).factors, alone.truth()) < 1e-9
    full = Problem(3, 30, d_out=3, d_in=3, rank=3)
    for solver in SOLVERS:
        assert (
            relative_error(recover(full.observed(), 3, SolverSettings(solver=solver, restarts=0)).factors, full.truth())
            < 1e-8
        )


@QUICK
@given(seed=st.integers(0, 10**6))
def test_a_change_of_gauge_changes_no_matrix_and_no_prediction(seed):
    factors = Factors(normal(2, 6, seed=seed), normal(5, 2, seed=seed + 1), normal(3, 2, 2, seed=seed + 2))
    P, Q = (normal(2, 2, seed=seed + n) + 2 * torch.eye(2, dtype=torch.float64) for n in (3, 4))
    turned = Factors(Q @ factors.A, factors.B @ P, torch.linalg.solve(P, factors.cores) @ torch.linalg.inv(Q))
    scale = float(factors.matrices().abs().max()) * max(float(torch.linalg.cond(one)) for one in (P, Q))
    users = Problem(3, 4, d_out=5, d_in=6, seed=seed).observed()
    (block,) = users
    for one in (turned, turned.canonical(), factors.canonical()):
        assert torch.allclose(one.matrices(), factors.matrices(), atol=1e-10 * max(scale, 1.0))
        apart = block.design.measure(one.matrices()) - block.design.measure(factors.matrices())
        assert float(apart.abs().max()) < 1e-9 * max(scale, 1.0)


@QUICK
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)))
def test_permuting_users_permutes_the_results(seed, order):
    (block,) = Problem(6, 25, d_out=5, d_in=6, noise=0.1, seed=seed).observed()
    chosen = torch.tensor(order)
    design = block.design.like(*(one[chosen] for one in block.design.tensors))
    ours, theirs = (
        recover(Users.of([one]), 2, SolverSettings(solver="alternating", max_iter=50, tol=0.0))
        for one in (block, Block(design, block.y[chosen], torch.arange(6)))
    )
    assert torch.allclose(theirs.factors.matrices(), ours.factors.matrices(chosen), atol=1e-6)


@QUICK
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(1, 3),
    users=st.integers(1, 8),
    solver=st.sampled_from(list(SOLVERS)[:2]),
)
def test_recovery_is_exact_at_ample_samples(seed, rank, users, solver):
    problem = Problem(users, 90, d_out=6, d_in=5, rank=rank, seed=seed, condition=3.0)
    fit = recover(problem.observed(), rank, SolverSettings(solver=solver))
    truth = problem.truth()
    assert relative_error(fit.factors, truth) < 1e-9
    assert subspace_distance(fit.factors.B, truth.shared.B) < 1e-8


@QUICK
@given(seed=st.integers(0, 10**6))
def test_a_new_user_needs_as_many_samples_as_a_core_has_numbers(seed):
    problem = Problem(5, 3, d_out=8, d_in=8, seed=seed)
    users, truth = problem.new_user(6)
    assert relative_error(oracle(users, truth), truth) < 1e-6
    cores, objective = fit_cores(users, truth.shared.A, truth.shared.B)
    assert cores.shape == (1, 2, 2)
    assert objective < 1e-12
