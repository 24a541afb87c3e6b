"""Where solvers begin and when they end: weights of users, given and random factors, patience."""

import pytest
import torch

from colora.theory.factors import subspace_distance
from colora.theory.problems import Problem
from colora.theory.recover import recover
from colora.theory.settings import SOLVERS, SolverSettings
from colora.theory.starts import random_start, spectral_start
from colora.theory.stopping import Stopping

OUT, IN, R = 5, 6, 2
UNITS = torch.eye(OUT * IN, dtype=torch.float64).view(-1, OUT, IN)


@pytest.mark.parametrize("design", ["dense", "rank-one", "multivariate"])
def test_the_spectral_start_weighs_a_user_by_the_observations_they_have(design):
    users = Problem(4, 10, d_out=OUT, d_in=IN, design=design, spread=0.8, noise=0.2, seed=2).observed()
    assert len(set(users.observations.tolist())) > 1
    (block,) = users
    X = torch.stack([block.design.measure(unit) for unit in UNITS], dim=-1).unflatten(-1, (OUT, IN))
    G = (block.y[:, :, None, None] * X).sum(1) / users.observations.view(-1, 1, 1)
    A, B = spectral_start(users, R)
    assert subspace_distance(B, torch.linalg.svd(G.transpose(0, 1).flatten(1)).U[:, :R]) < 1e-9
    assert subspace_distance(A.T, torch.linalg.svd(G.flatten(0, 1)).Vh[:R].T) < 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_given_factors_are_taken_in_the_canonical_gauge_with_a_ridge_too(solver):
    users = Problem(4, 40, d_out=OUT, d_in=IN, noise=0.2).observed()
    A, B = random_start(users, R, seed=0)
    P = torch.tensor([[9.0, 1.0], [0.0, 0.2]], dtype=torch.float64)
    once = {"solver": solver, "ridge": 3.0, "annealing": (), "restarts": 0, "max_iter": 1}
    ours, theirs = (recover(users, R, SolverSettings(init=one, **once)) for one in ((A, B), (P @ A, B @ P)))
    assert ours.objective == pytest.approx(theirs.objective)
    assert torch.allclose(ours.factors.matrices(), theirs.factors.matrices(), atol=1e-9)


def test_random_state_chooses_the_random_start():
    users = Problem(4, 40, d_out=OUT, d_in=IN, noise=0.2).observed()

    def first(random_state):
        return recover(
            users, R, SolverSettings(init="random", solver="alternating", max_iter=1, random_state=random_state)
        ).objective

    assert first(0) == first(0)
    assert first(0) != pytest.approx(first(1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_restarts_are_random_and_the_lowest_is_kept(solver):
    users = Problem(4, 12, d_out=OUT, d_in=IN, noise=0.5, seed=3).observed()
    fit = recover(users, R, SolverSettings(solver=solver, annealing=(), restarts=4, max_iter=60))
    last = {entry.start: entry.objective for entry in fit.history}
    assert fit.starts == len(last) > 1
    assert fit.objective == pytest.approx(min(last.values()), rel=1e-6)


def test_patience_begins_anew_when_the_objective_falls_again():
    stopping = Stopping(100, 1e-3, 1.0)
    slowly = [1.0, 0.99999, 0.99998]
    assert not any(map(stopping.reached, [*slowly, 0.5, 0.499999, 0.499998]))
    assert stopping.reached(0.499997)
