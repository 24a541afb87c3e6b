"""Problems beyond their formula: every angle, newcomers, numbers of samples, and faults all named at once."""

import math

import pytest
import torch

from colora.errors import ConfigError
from colora.theory.factors import subspace_distance
from colora.theory.problems import Problem

NAMES = ["dense", "rank-one", "multivariate"]


@pytest.mark.parametrize("angle", [10.0, 60.0])
def test_every_principal_angle_is_the_one_asked_for_and_each_user_turns_their_own_way(angle):
    truth = Problem(3, 4, rank=3, angle=angle).truth()
    wanted = torch.full((3,), math.cos(math.radians(angle)), dtype=torch.float64)
    for A, B in zip(truth.A_own, truth.B_own, strict=True):
        assert torch.allclose(torch.linalg.svdvals(A @ truth.shared.A.T), wanted)
        assert torch.allclose(torch.linalg.svdvals(B.T @ truth.shared.B), wanted)
    for owned in (truth.A_own.mT, truth.B_own):
        assert subspace_distance(owned[0], owned[1]) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_turned_users_observe_their_own_matrices(name):
    problem = Problem(4, 5, d_out=6, d_in=7, design=name, angle=30.0, spread=0.4, seed=2)
    truth, (block,) = problem.truth(), problem.observed()
    W = torch.stack([B @ core @ A for A, B, core in zip(truth.A_own, truth.B_own, truth.shared.cores, strict=True)])
    assert torch.allclose(truth.matrices(), W)
    assert torch.allclose(block.y, block.design.measure(W))


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_gives_each_time_what_memory_holds(name):
    problem = Problem(300, 3, d_out=5, d_in=6, design=name, spread=0.5, noise=0.2, angle=20.0, seed=9)
    held, streamed = list(problem.observed()), problem.observed(stream=True)
    assert [block.indices.tolist() for block in held] == [list(range(256)), list(range(256, 300))]
    for _ in range(2):
        for ours, theirs in zip(streamed, held, strict=True):
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.y, theirs.y)
            assert all(map(torch.equal, ours.design.tensors, theirs.design.tensors))


def test_the_design_does_not_choose_the_truth_and_the_seed_does():
    first, other = (Problem(4, 5, design=name).truth().shared for name in ("dense", "multivariate"))
    assert torch.equal(first.cores, other.cores)
    assert torch.equal(first.A, other.A)
    new = Problem(4, 5, seed=1).truth().shared
    assert subspace_distance(new.A.T, first.A.T) > 0.1
    assert subspace_distance(new.B, first.B) > 0.1
    assert not torch.allclose(new.cores, first.cores)


def test_diversity_mixes_one_common_core_into_all():
    apart, alike, mixed = (Problem(5, 3, diversity=one).truth().shared.cores for one in (1.0, 0.0, 0.6))
    assert torch.allclose(mixed, 0.8 * alike + 0.6 * apart)


def test_conditioned_cores_fall_evenly_from_one():
    values = torch.linalg.svdvals(Problem(4, 3, rank=3, condition=100.0, diversity=0.5).truth().shared.cores)
    assert torch.allclose(values, torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64).expand(4, -1))


def test_numbers_of_samples_lie_in_the_spread_and_count_observations():
    counts = Problem(400, 20, spread=0.5, d_out=3, d_in=3).observed(stream=True).observations
    assert 10 <= int(counts.min()) < 12
    assert 28 < int(counts.max()) <= 30
    assert float(counts.double().mean()) == pytest.approx(20, rel=0.05)
    vectors = Problem(4, 3, d_out=7, design="multivariate", extra=1).observed().observations
    assert vectors.tolist() == [28, 21, 21, 21]
    assert int(Problem(50, 1, spread=1.0).observed(stream=True).observations.min()) == 1  # nobody is left without


@pytest.mark.parametrize("angle", [0.0, 40.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_newcomer_is_turned_as_far_as_everybody(name, angle):
    problem = Problem(4, 30, d_out=8, d_in=9, angle=angle, design=name, condition=7.0)
    shared = problem.truth().shared
    (users, truth), (_, other) = problem.new_user(9, 0), problem.new_user(9, 1)
    for ours, theirs, everybody in (
        (truth.shared.A.T, other.shared.A.T, shared.A.T),
        (truth.shared.B, other.shared.B, shared.B),
    ):
        assert subspace_distance(ours, everybody) == pytest.approx(math.sin(math.radians(angle)), abs=1e-9)
        assert (subspace_distance(ours, theirs) > 0.1) == bool(angle)
    assert float(torch.linalg.cond(truth.shared.cores[0])) == pytest.approx(7.0)
    assert users.observations.tolist() == [9 * (8 if name == "multivariate" else 1)]
    (block,) = users
    assert torch.allclose(block.y, block.design.measure(truth.matrices()))


def test_a_newcomer_observes_with_the_same_noise():
    noisy, quiet = (Problem(2, 5, noise=noise).new_user(3000)[0] for noise in (0.5, 0.0))
    (a,), (b,) = noisy, quiet
    assert float((a.y - b.y).std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"samples": 0}, "samples: expected at least 1, found 0"),
        ({"rank": 0}, "rank: expected at least 1, found 0"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"extra": -1}, "extra: expected 0 to 4, found -1"),
        ({"spread": -0.1}, "spread: expected 0 to 1, found -0.1"),
        ({"spread": float("nan")}, "spread: expected 0 to 1, found nan"),
        ({"diversity": -0.5}, "diversity: expected 0 to 1, found -0.5"),
        ({"angle": -1.0}, "angle: expected 0 to 90, found -1.0"),
    ],
)
def test_what_else_cannot_be_made(changes, fault):
    with pytest.raises(ConfigError) as refused:
        Problem(**{"users": 4, "samples": 5} | changes)
    assert refused.value.faults == [fault]


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError, match="a problem that cannot be made") as refused:
        Problem(users=0, samples=0, spread=2.0, condition=0.1, design="sparse")
    assert [fault.partition(":")[0] for fault in refused.value.faults] == [
        "users", "samples", "design", "spread", "condition",
    ]  # fmt: skip
