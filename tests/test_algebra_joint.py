"""Joint diagonalisation against dense stacks: exact where it can be, never worse than chance, better with each turn."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.algebra import joint_diagonalisation

TASKS, OUT, IN = 4, 7, 6


def stack(rank, seed=0, tasks=TASKS):
    generator = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(tasks, *shape, generator=generator).double() for shape in [(OUT, rank), (rank, IN)])
    return B, A


def left_over(dense, U, cores, V):
    return float((dense - U @ cores @ V.T).square().sum())


def assert_orthonormal(*matrices):
    for matrix in matrices:
        assert torch.allclose(matrix.T @ matrix, torch.eye(matrix.shape[1]).double(), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_stack_of_that_rank_is_recovered_exactly(rank):
    generator = torch.Generator().manual_seed(rank)
    U0, S0, V0 = (
        torch.randn(*shape, generator=generator).double() for shape in [(OUT, rank), (TASKS, rank, rank), (rank, IN)]
    )
    B, A = U0 @ S0, V0.expand(TASKS, -1, -1)
    for kept in range(rank, 5):
        U, cores, V = joint_diagonalisation(B, A, kept)
        assert (U.shape, cores.shape, V.shape) == ((OUT, kept), (TASKS, kept, kept), (IN, kept))
        assert_orthonormal(U, V)
        assert left_over(B @ A, U, cores, V) < 1e-20


def test_full_rank_keeps_everything():
    B, A = stack(2, tasks=3)  # of multilinear rank 6 at most
    assert left_over(B @ A, *joint_diagonalisation(B, A, IN)) < 1e-20


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 5), own=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_beats_random_factors_and_the_plain_spectra(seed, rank, own):
    B, A = stack(own, seed)
    dense = B @ A
    U, cores, V = joint_diagonalisation(B, A, rank)
    assert_orthonormal(U, V)
    assert torch.allclose(cores, U.T @ dense @ V, atol=1e-10), "the best cores for these factors"
    ours = left_over(dense, U, cores, V)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(50):
        left, right = (torch.linalg.qr(torch.randn(width, rank, generator=generator).double()).Q for width in (OUT, IN))
        assert ours <= left_over(dense, left, left.T @ dense @ right, right) + 1e-12
    # The truncated singular spaces of both unfoldings: where higher-order orthogonal iteration begins.
    left = torch.linalg.svd(dense.transpose(0, 1).flatten(1)).U[:, :rank]
    right = torch.linalg.svd(dense.flatten(0, 1)).Vh[:rank].T
    assert ours <= left_over(dense, left, left.T @ dense @ right, right) + 1e-9


def test_kept_energy_grows_with_every_iteration_and_is_what_is_not_left_over():
    B, A = stack(2, seed=3)
    total = float((B @ A).square().sum())
    energies = []
    for iterations in range(1, 12):
        U, cores, V = joint_diagonalisation(B, A, 3, iterations=iterations, tolerance=0.0)
        energies.append(float(cores.square().sum()))
        assert energies[-1] + left_over(B @ A, U, cores, V) == pytest.approx(total)
    assert all(later >= energy - 1e-12 * total for energy, later in pairwise(energies))
    assert energies[-1] > energies[0] * (1 + 1e-6), "an example in which one iteration is not enough"


def test_one_task_gives_its_singular_values():
    B, A = stack(3, tasks=1)
    _, cores, _ = joint_diagonalisation(B, A, 2)
    assert torch.allclose(torch.linalg.svdvals(cores[0]), torch.linalg.svdvals(B[0] @ A[0])[:2])


def test_updates_of_zero_are_allowed():
    B, A = torch.zeros(TASKS, OUT, 2).double(), torch.randn(TASKS, 2, IN).double()
    U, cores, V = joint_diagonalisation(B, A, 3)
    assert_orthonormal(U, V)
    assert not cores.any()
