"""Users in one filled-up block, each in a block of their own, or streamed: diagnostics and solvers say the same."""

from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacfwd

from colora.theory import alternating
from colora.theory.baselines import local_least_squares, local_low_rank
from colora.theory.cores import fit_cores
from colora.theory.cramer_rao import cramer_rao, cramer_rao_alone
from colora.theory.descent import _evaluated, _scaled
from colora.theory.design import Dense, Multivariate
from colora.theory.factors import Factors, relative_error, subspace_distance
from colora.theory.isometry import isometry_bound
from colora.theory.problems import Problem
from colora.theory.recover import recover
from colora.theory.settings import SOLVERS, SolverSettings
from colora.theory.starts import spectral_start
from colora.theory.users import Block, Users

OUT, IN, R, K = 5, 6, 2, 4
UNITS = torch.eye(OUT * IN, dtype=torch.float64).view(-1, OUT, IN)
NAMES = ["dense", "rank-one", "multivariate"]


def problem(design="dense", samples=24, **changes):
    return Problem(K, samples, d_out=OUT, d_in=IN, rank=R, design=design, **{"noise": 0.3, "seed": 4} | changes)


def apart(users):
    """The same users, each in a block with no rows of zeros, the last of them first."""
    (block,) = users
    blocks = []
    for k in reversed(range(len(users))):
        real = int(users.observations[k])
        own = block.design.users(slice(k, k + 1)).rows(slice(0, real // block.design.per_sample))
        blocks.append(Block(own, block.y[k : k + 1, :real], torch.tensor([k])))
    return Users.of(blocks)


def rows_of(users):
    """Every user's matrices, flattened, without filling: K tensors (n_k, d_out d_in)."""
    found = {}
    for block in apart(users):
        found[int(block.indices[0])] = torch.stack([block.design.measure(unit)[0] for unit in UNITS], dim=-1)
    return [found[k] for k in range(len(users))]


@pytest.mark.parametrize("name", NAMES)
def test_how_users_stand_in_blocks_changes_no_diagnostic(name):
    one = problem(name, spread=0.3)
    together, shared = one.observed(), one.truth().shared
    assert len(set(together.observations.tolist())) > 1
    for other in (apart(together), one.observed(stream=True)):
        assert torch.equal(other.observations, together.observations)
        assert torch.allclose(cramer_rao(other, shared, 0.3).per_user, cramer_rao(together, shared, 0.3).per_user)
        alone = cramer_rao_alone(together, shared, 0.3).per_user
        assert torch.allclose(cramer_rao_alone(other, shared, 0.3).per_user, alone)
        ours, theirs = (isometry_bound(users, R, at=shared, points=1, iterations=30) for users in (together, other))
        assert (ours.largest, ours.smallest) == pytest.approx((theirs.largest, theirs.smallest), rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_how_users_stand_in_blocks_changes_no_estimate(name, ridge):
    one = problem(name, samples=40, spread=0.3)
    together, truth = one.observed(), one.truth()
    other = apart(together)
    for start, same in zip(spectral_start(together, R), spectral_start(other, R), strict=True):
        columns = (start.T, same.T) if start.shape[0] == R else (start, same)
        assert subspace_distance(*columns) < 1e-9
    for solver in SOLVERS:
        ours, theirs = (
            recover(users, R, SolverSettings(solver=solver, ridge=ridge, restarts=0, tol=1e-13, max_iter=3000))
            for users in (together, other)
        )
        assert torch.allclose(ours.factors.matrices(), theirs.factors.matrices(), atol=1e-5)
        assert relative_error(ours.factors, truth, other) == pytest.approx(relative_error(ours.factors, truth))
    assert torch.allclose(local_least_squares(together, 0.1), local_least_squares(other, 0.1), atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_low_rank_alone_ends_where_no_matrix_of_that_rank_is_better_to_first_order(name, ridge):
    """The gradient of ‖y − X(W)‖² / 2 + ridge ‖W‖² / 2 has no part along the tangent space at W."""
    users = problem(name, samples=40).observed()
    W = local_low_rank(users, R, ridge=ridge, tol=1e-14)
    (block,) = users
    gradient = block.design.adjoint(block.design.measure(W) - block.y) + ridge * W
    left, _, right = torch.linalg.svd(W)
    assert float((left[:, :, :R].mT @ gradient).abs().max()) < 1e-3
    assert float((gradient @ right[:, :R].mT).abs().max()) < 1e-3
    assert float(gradient.abs().max()) > 0.1  # the part across is not zero: there is noise


def test_own_factors_of_each_user_in_a_multivariate_design():
    generator = torch.Generator().manual_seed(3)
    shapes = [(K, 7, IN), (K, R, IN), (K, OUT, R)]
    X, A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    design = Multivariate(X, OUT)
    plain = Dense(torch.stack([design.measure(unit) for unit in UNITS], dim=-1).unflatten(-1, (OUT, IN)))
    assert torch.allclose(design.left(B), plain.left(B), atol=1e-12)
    assert torch.allclose(design.right(A), plain.right(A), atol=1e-12)
    assert torch.allclose(design.core(A, B), plain.core(A, B), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_alone_the_bound_is_that_of_one_matrix_of_low_rank(name):
    """Against W = U V with all its redundancy: nothing in it is known from other users."""
    one = problem(name, spread=0.2)
    users, shared = one.observed(), one.truth().shared
    found = cramer_rao_alone(users, shared, 0.3).per_user
    for k, X in enumerate(rows_of(users)):
        W = shared.B @ shared.cores[k] @ shared.A
        left, values, right = torch.linalg.svd(W, full_matrices=False)
        U, V = left[:, :R] * values[:R].sqrt(), values[:R].sqrt().unsqueeze(1) * right[:R]
        numbers = torch.cat([U.flatten(), V.flatten()])
        D = jacfwd(lambda both: (both[: OUT * R].view(OUT, R) @ both[OUT * R :].view(R, IN)).flatten())(numbers)
        J = X @ D
        covariance = 0.3**2 * torch.linalg.pinv(J.T @ J, rtol=1e-10, hermitian=True)
        assert float(found[k]) == pytest.approx(float((D @ covariance @ D.T).trace()), rel=1e-8)


def test_the_bound_goes_with_the_square_of_the_noise_and_one_user_alone_is_one_user():
    one = problem()
    users, shared = one.observed(), one.truth().shared
    assert torch.allclose(cramer_rao(users, shared, 0.6).per_user, 4 * cramer_rao(users, shared, 0.3).per_user)
    solo = Problem(1, 30, d_out=OUT, d_in=IN, seed=2)
    bounds = [bound(solo.observed(), solo.truth().shared, 1.0).total for bound in (cramer_rao, cramer_rao_alone)]
    assert bounds[0] == pytest.approx(bounds[1])


def test_alone_a_user_whose_core_is_singular_has_no_bound_of_that_rank():
    """For invertible cores it depends on A and B alone; where W_k has a lower rank, the model has an edge."""
    shared = problem().truth().shared
    cores = shared.cores.clone()
    cores[1, :, 1] = 0.0
    users, singular = problem(samples=40).observed(), Factors(shared.A, shared.B, cores)
    assert torch.isinf(cramer_rao_alone(users, singular, 0.3).per_user).tolist() == [False, True, False, False]
    assert torch.isfinite(cramer_rao(users, singular, 0.3).per_user).all()  # the others' cores tell A and B


def test_of_full_rank_the_bound_is_that_of_least_squares():
    full = Problem(3, 30, d_out=3, d_in=3, rank=3)
    (block,) = full.observed()
    wanted = torch.stack([torch.linalg.inv(X.T @ X).trace() for X in block.design.X.flatten(2)])
    assert torch.allclose(cramer_rao(full.observed(), full.truth().shared, 1.0).per_user, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_no_ratio_is_beyond_those_of_all_matrices(name):
    """Over stacks of any rank the extreme ratios are singular values; over some of them they lie between."""
    one = problem(name, samples=60, spread=0.2)
    users = one.observed()
    spectra = [torch.linalg.svdvals(X).square() * OUT * IN / X.square().sum() for X in rows_of(users)]
    found = isometry_bound(users, R, at=one.truth().shared, points=2)
    assert found.points == 3
    assert found.largest <= max(float(values[0]) for values in spectra) + 1e-9
    assert found.smallest >= min(float(values[-1]) for values in spectra) - 1e-9
    assert found.largest > 1 > found.smallest


def test_a_users_own_scale_is_no_lack_of_isometry_and_more_samples_bring_it_nearer():
    rotation = torch.linalg.qr(torch.randn(IN, IN, generator=torch.Generator().manual_seed(1)).double()).Q
    scales = torch.tensor([1.0, 5.0, 0.1, 30.0], dtype=torch.float64).view(K, 1, 1)
    block = Block(Multivariate(scales * rotation, OUT), torch.zeros(K, IN * OUT, dtype=torch.float64), torch.arange(K))
    assert isometry_bound(Users.of([block]), R).delta < 1e-9
    middle = []
    for samples in (20, 80, 320):
        drawn = [problem(samples=samples, seed=seed).observed() for seed in range(5)]
        middle.append(median(isometry_bound(users, R, points=1, iterations=100).delta for users in drawn))
    assert middle == sorted(middle, reverse=True)


def test_a_point_in_another_gauge_is_the_same_point():
    one = problem()
    users, shared = one.observed(), one.truth().shared
    P = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    turned = Factors(P @ shared.A, shared.B @ P, torch.linalg.solve(P, shared.cores) @ torch.linalg.inv(P))
    ours, theirs = (isometry_bound(users, R, at=point, points=0, iterations=600) for point in (shared, turned))
    assert ours.largest == pytest.approx(theirs.largest, rel=1e-3)
    assert ours.smallest == pytest.approx(theirs.smallest, rel=2e-2)  # the slower of the two


@pytest.mark.parametrize("splits", [2, 3])
def test_sample_splitting_takes_the_parts_in_turn_and_ends_with_all_samples(splits, monkeypatch):
    users, taken, half_step = problem(samples=60).observed(), [], alternating._half_step

    def noted(part, A, B, ridge, up):
        taken.append((part.blocks.number, up))
        return half_step(part, A, B, ridge, up)

    monkeypatch.setattr(alternating, "_half_step", noted)
    fit = recover(users, R, SolverSettings(solver="alternating", splits=splits, max_iter=3, tol=0.0, ridge=0.1))
    assert taken == [(half % splits, half % 2 == 0) for half in range(6)]
    cores, objective = fit_cores(users, fit.factors.A, fit.factors.B, 0.1)
    assert torch.allclose(fit.factors.cores, cores)
    assert fit.objective == pytest.approx(objective)


def test_scaled_descent_divides_by_the_curvature_of_each_part():
    users = problem().observed()
    generator = torch.Generator().manual_seed(8)
    A, B, cores = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((R, IN), (OUT, R), (K, R, R)))
    here = _evaluated(users, Factors(A, B, cores), 0.0)
    ours = _scaled(here)
    of_A = sum(core.T @ B.T @ B @ core for core in cores)
    of_B = sum(core @ A @ A.T @ core.T for core in cores)
    assert torch.allclose(of_A @ ours.A, here.gradient.A)
    assert torch.allclose(ours.B @ of_B, here.gradient.B)
    assert torch.allclose(B.T @ B @ ours.cores @ A @ A.T, here.gradient.cores)


def test_too_few_samples_bring_the_least_core_in_a_structured_design_too():
    users = problem("rank-one", samples=2, noise=0.0).observed()
    A, B = spectral_start(users, R)
    cores, objective = fit_cores(users, A, B)
    for k, X in enumerate(rows_of(users)):
        F = (X.view(-1, OUT, IN).transpose(1, 2) @ B).transpose(1, 2) @ A.T
        (block,) = users
        least = torch.linalg.lstsq(F.flatten(1), block.y[k].unsqueeze(1), driver="gelsd").solution
        assert torch.allclose(cores[k].flatten(), least.flatten(), atol=1e-2)
    assert objective < 1e-12


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)), solver=st.sampled_from(list(SOLVERS)[:2]))
def test_permuting_users_leaves_the_subspaces(seed, order, solver):
    (block,) = Problem(6, 40, d_out=OUT, d_in=IN, noise=0.1, seed=seed).observed()
    chosen = torch.tensor(order)
    design = block.design.like(*(one[chosen] for one in block.design.tensors))
    ours, theirs = (
        recover(
            Users.of([one]), R, SolverSettings(solver=solver, annealing=(), restarts=0, max_iter=60, tol=0.0)
        ).factors
        for one in (block, Block(design, block.y[chosen], torch.arange(6)))
    )
    assert subspace_distance(ours.A.T, theirs.A.T) < 1e-6
    assert subspace_distance(ours.B, theirs.B) < 1e-6
    assert torch.allclose(theirs.cores.norm(dim=(1, 2)), ours.cores[chosen].norm(dim=(1, 2)), atol=1e-6)
