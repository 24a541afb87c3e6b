"""Designs, blocks of users, and problems: structure is used and never changes a number."""

import math

import numpy as np
import pytest
import torch

from colora.errors import ColoraError, ConfigError
from colora.theory.cores import fit_block
from colora.theory.design import Dense, Design, Multivariate, RankOne
from colora.theory.factors import subspace_distance
from colora.theory.problems import Problem
from colora.theory.users import Block, Users

K, M, OUT, IN, R = 3, 4, 5, 6, 2


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape))


DESIGNS = {
    "rank-one": RankOne(normal(K, M, OUT), normal(K, M, IN)),
    "multivariate": Multivariate(normal(K, M, IN), OUT),
}


def dense(design):
    """The explicit matrices of a design, read off by measuring unit matrices."""
    units = torch.eye(OUT * IN, dtype=torch.float64).view(-1, OUT, IN)
    return Dense(torch.stack([design.measure(unit) for unit in units], dim=-1).unflatten(-1, (OUT, IN)))


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("each", [False, True], ids=["shared factors", "own factors"])
def test_structure_is_the_explicit_matrices(name, each):
    design, explicit = DESIGNS[name], dense(DESIGNS[name])
    lead = (K,) if each else ()
    A, B, W = normal(*lead, R, IN), normal(*lead, OUT, R), normal(K, OUT, IN)
    assert design.shape == explicit.shape
    weights = normal(K, design.shape[1])
    pairs = [
        (design.measure(W), explicit.measure(W)),
        (design.adjoint(weights), explicit.adjoint(weights)),
        (design.gram(), explicit.gram()),
        (design.energy(), explicit.energy()),
    ]
    if not (each and name == "multivariate"):
        pairs += [
            (design.left(B), explicit.left(B)),
            (design.right(A), explicit.right(A)),
            (design.core(A, B), explicit.core(A, B)),
        ]
    for structured, plain in pairs:
        assert structured.shape == plain.shape
        assert torch.allclose(structured, plain, atol=1e-12)


def test_the_dense_design_is_the_formula():
    X, A, B, W = normal(K, M, OUT, IN), normal(R, IN), normal(OUT, R), normal(K, OUT, IN)
    design, weights = Dense(X), normal(K, M)
    for k in range(K):
        for i in range(M):
            assert torch.allclose(design.left(B)[k, i], B.T @ X[k, i])
            assert torch.allclose(design.right(A)[k, i], X[k, i] @ A.T)
            assert torch.allclose(design.core(A, B)[k, i], B.T @ X[k, i] @ A.T)
            assert torch.allclose(design.measure(W)[k, i], (X[k, i] * W[k]).sum())
        assert torch.allclose(design.adjoint(weights)[k], sum(weights[k, i] * X[k, i] for i in range(M)))
        assert torch.allclose(design.gram()[k], X[k].flatten(1) @ X[k].flatten(1).T)
        assert torch.allclose(design.energy()[k], design.gram()[k].diagonal())


@pytest.mark.parametrize("name", DESIGNS)
def test_parts_of_a_design(name):
    design, W = DESIGNS[name], normal(K, OUT, IN)
    per = design.per_sample
    assert per == (OUT if name == "multivariate" else 1)
    measured = design.measure(W).unflatten(1, (M, per))
    assert torch.equal(design.rows(slice(1, None, 2)).measure(W), measured[:, 1::2].flatten(1))
    assert torch.allclose(design.users(slice(1, 2)).measure(W[1:2]), measured[1:2].flatten(1))
    real = torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.float64)
    assert torch.equal(design.kept(real).measure(W), (measured * real.unsqueeze(-1)).flatten(1))
    together = Design.together([design, design])
    assert together.shape == (1, 2 * K * M * per, OUT, IN)
    assert torch.allclose(together.measure(W[:1])[0, : M * per], measured[0].flatten())


def test_users_are_each_in_one_block():
    def block(*places):
        return Block(Dense(normal(len(places), M, OUT, IN)), normal(len(places), M), torch.tensor(places))

    assert Users.of([block(2, 0), block(1)]).observations.tolist() == [M] * 3
    for blocks in ([block(0, 1), block(1)], [block(0, 2)], [block(0, 0)]):
        with pytest.raises(ColoraError, match="each user from 0 to K - 1 in exactly one block"):
            Users.of(blocks)
    with pytest.raises(ColoraError, match="at least one block of samples, found none"):
        Users.of([])
    with pytest.raises(ColoraError, match=r"expected y of shape \(1, 4\) and indices of shape \(1,\), found \(1, 3\)"):
        Block(Dense(normal(1, M, OUT, IN)), normal(1, 3), torch.tensor([0]))
    other = Block(Dense(normal(1, M, OUT, IN + 1)), normal(1, M), torch.tensor([1]))
    with pytest.raises(ColoraError, match="expected blocks of one d_out and d_in"):
        Users.of([block(0), other])


@pytest.mark.parametrize("name", ["dense", "rank-one", "multivariate"])
def test_sample_splitting_uses_every_sample_once(name):
    users = Problem(5, 7, d_out=OUT, d_in=IN, design=name).observed()
    whole = next(iter(users)).y.unflatten(1, (7, -1))
    parts = [next(iter(users.part(number, 3))) for number in range(3)]
    for number, part in enumerate(parts):
        assert torch.equal(part.y, whole[:, number::3].flatten(1))
        assert part.design.shape[1] == part.y.shape[1]


@pytest.mark.parametrize("name", ["dense", "rank-one", "multivariate"])
def test_filling_up_with_zeros_changes_nothing(name):
    users = Problem(6, 8, d_out=OUT, d_in=IN, design=name, spread=0.5, noise=0.1, seed=3).observed()
    (block,) = users
    per = block.design.per_sample
    assert len(set(users.observations.tolist())) > 1
    A, B = torch.linalg.qr(normal(IN, R)).Q.T, torch.linalg.qr(normal(OUT, R)).Q
    all_at_once = fit_block(block, A, B, ridge=0.3)
    for k in range(6):
        real = int(users.observations[k])
        own = block.design.users(slice(k, k + 1)).rows(slice(0, real // per))
        alone = fit_block(Block(own, block.y[k : k + 1, :real], torch.tensor([0])), A, B, ridge=0.3)
        assert torch.allclose(alone.cores[0], all_at_once.cores[k], atol=1e-12)
        assert not block.y[k, real:].any()


@pytest.mark.parametrize("name", ["dense", "rank-one", "multivariate"])
def test_a_problem_is_its_formula_and_its_seed(name):
    problem = Problem(300, 3, d_out=OUT, d_in=IN, design=name, seed=5)  # more than one block
    truth, blocks = problem.truth(), list(problem.observed())
    assert len(blocks) == 2
    for block in blocks:
        assert torch.allclose(block.y, block.design.measure(truth.matrices(block.indices)))
    again, streamed = list(Problem(300, 3, d_out=OUT, d_in=IN, design=name, seed=5).observed()), problem.observed(True)
    for _ in range(2):  # each pass draws the same
        assert all(torch.equal(a.y, b.y) for a, b in zip(streamed, again, strict=True))
    other = Problem(300, 3, d_out=OUT, d_in=IN, design=name, seed=6)
    assert not torch.equal(next(iter(other.observed())).y, blocks[0].y)
    assert torch.allclose(truth.shared.A @ truth.shared.A.T, torch.eye(R, dtype=torch.float64))


def test_noise_has_its_standard_deviation_on_real_rows_alone():
    quiet, noisy = (Problem(200, 30, spread=0.5, noise=noise).observed() for noise in (0.0, 0.5))
    (a,), (b,) = quiet, noisy
    apart = b.y - a.y
    real = torch.arange(apart.shape[1]) < quiet.observations.unsqueeze(1)
    assert not apart[~real].any()
    assert float(apart[real].std()) == pytest.approx(0.5, rel=0.05)


def test_extra_samples_go_to_the_first_users():
    assert Problem(4, 3, extra=2).observed().observations.tolist() == [4, 4, 3, 3]


def test_conditioning_and_diversity_are_those_asked_for():
    cores = Problem(5, 3, rank=3, condition=100.0).truth().shared.cores
    values = torch.linalg.svdvals(cores)
    assert torch.allclose(values[:, 0] / values[:, -1], torch.full((5,), 100.0, dtype=torch.float64))
    same = Problem(5, 3, diversity=0.0).truth().shared.cores
    assert torch.allclose(same, same[:1].expand(5, -1, -1))
    near = Problem(5, 3, diversity=0.1).truth().shared.cores
    assert 0 < float((near - near.mean(0)).norm() / near.norm()) < 0.3


@pytest.mark.parametrize("angle", [10.0, 45.0, 90.0])
def test_the_angle_is_that_between_own_and_shared_subspaces(angle):
    truth = Problem(4, 3, angle=angle).truth()
    for A, B in zip(truth.A_own, truth.B_own, strict=True):
        assert subspace_distance(A.T, truth.shared.A.T) == pytest.approx(math.sin(math.radians(angle)))
        assert subspace_distance(B, truth.shared.B) == pytest.approx(math.sin(math.radians(angle)))
        assert torch.allclose(A @ A.T, torch.eye(2, dtype=torch.float64), atol=1e-12)


def test_a_newcomer_shares_the_subspaces_and_nothing_else():
    problem = Problem(4, 30)
    truth = problem.truth()
    (first, own), (second, other) = problem.new_user(9, 0), problem.new_user(9, 1)
    assert torch.equal(own.shared.A, truth.shared.A)
    assert not any(torch.allclose(own.shared.cores[0], core) for core in [*truth.shared.cores, other.shared.cores[0]])
    (a,), (b,) = first, second
    assert a.y.shape == (1, 9)
    assert not torch.equal(a.design.X, b.design.X)
    assert torch.allclose(a.y, a.design.measure(own.matrices()))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"users": 0}, "users: expected at least 1, found 0"),
        ({"noise": -1.0}, "noise: expected at least 0, found -1.0"),
        ({"rank": 21}, "rank: expected at most 20"),
        ({"rank": 11, "angle": 5.0}, "rank: expected at most 10 with d_out 20, d_in 20 and angle 5, found 11"),
        ({"angle": 91.0}, "angle: expected 0 to 90, found 91.0"),
        ({"diversity": 1.5}, "diversity: expected 0 to 1, found 1.5"),
        ({"condition": 0.5}, "condition: expected at least 1, found 0.5"),
        ({"design": "sparse"}, "design: expected dense, rank-one or multivariate, found 'sparse'"),
    ],
)
def test_a_problem_that_cannot_be_made(changes, fault):
    with pytest.raises(ConfigError) as refused:
        Problem(**{"users": 4, "samples": 5} | changes)
    assert fault in str(refused.value)
