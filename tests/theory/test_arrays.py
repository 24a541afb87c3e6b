"""From flat arrays to users: every row once, little filling, bounded blocks; and what numbers of samples determine."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.errors import ColoraError
from colora.theory import arrays
from colora.theory.arrays import users_from_arrays
from colora.theory.design import Dense, Multivariate
from colora.theory.freedom import degrees_of_freedom, freedom_per_user, identifiability
from colora.theory.recover import recover

OUT, IN = 3, 4


def samples(counts, seed=0, vectors=False):
    """X, y and the number of each row's user, in mixed order."""
    random = np.random.default_rng(seed)
    groups = random.permutation(np.repeat(np.arange(len(counts)), counts))
    if vectors:
        return random.normal(size=(len(groups), IN)), random.normal(size=(len(groups), OUT)), groups
    return random.normal(size=(len(groups), OUT, IN)), random.normal(size=len(groups)), groups


def by_user(users):
    """X and y of each user as they stand in the blocks, filling included."""
    found = {}
    for block in users:
        for place, X, y in zip(block.indices.tolist(), block.design.X, block.y, strict=True):
            assert place not in found
            found[place] = X.numpy(), y.numpy()
    return [found[place] for place in range(len(users))]


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    vectors=st.booleans(),
    most=st.integers(1, 4000),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_every_row_stands_once_with_its_user_in_its_order_and_the_rest_is_zero(counts, vectors, most, seed):
    X, y, groups = samples(counts, seed, vectors)
    with mock.patch.object(arrays, "BLOCK_BYTES", most):
        users, labels = users_from_arrays(X, y, groups)
        blocks = list(users)
    assert labels.tolist() == list(range(len(counts)))
    assert users.observations.tolist() == [count * (OUT if vectors else 1) for count in counts]
    assert (users.d_out, users.d_in) == (OUT, IN)
    for place, (X_of, y_of) in enumerate(by_user(users)):
        mine = groups == place
        n = mine.sum()
        assert np.array_equal(X_of[:n], X[mine])
        assert np.array_equal(y_of[: y[mine].size], y[mine].ravel())
        assert not X_of[n:].any()
        assert not y_of[y[mine].size :].any()
    for block in blocks:
        rows, mine = block.design.X.shape[1], np.array(counts)[block.indices.numpy()]
        assert isinstance(block.design, Multivariate if vectors else Dense)
        assert rows == mine.max()
        assert mine.min() >= arrays.LEAST_FILLED * rows, "no more than a quarter of a user's rows is filling"
        sample_bytes = 8 * (OUT * (OUT + IN) if vectors else OUT * IN)
        assert len(mine) == 1 or len(mine) * rows * sample_bytes <= most


def test_users_of_one_size_share_a_block():
    users, _ = users_from_arrays(*samples([5] * 40))
    assert [len(block.indices) for block in users] == [40]


def test_labels_are_sorted_and_strings_may_be_any():
    X, y, groups = samples([4, 2, 3])
    users, labels = users_from_arrays(X, y, np.array(["cat", "ann", "ben"])[groups])
    assert labels.tolist() == ["ann", "ben", "cat"]
    assert users.observations.tolist() == [2, 3, 4]
    assert np.array_equal(by_user(users)[2][0][:4], X[groups == 0])


def test_without_groups_all_rows_are_of_one_user():
    X, y, _ = samples([6])
    users, labels = users_from_arrays(X, y)
    assert (labels.tolist(), users.observations.tolist()) == ([0], [6])


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, bool, ">f4"])
def test_other_numbers_become_float64(dtype):
    X, y, groups = samples([4, 6])
    X = (10 * np.abs(X)).astype(dtype)
    users, _ = users_from_arrays(X, y.astype(np.float32), groups)
    for place, (X_of, _) in enumerate(by_user(users)):
        assert X_of.dtype == np.float64
        assert np.array_equal(X_of[: (groups == place).sum()], X[groups == place].astype(np.float64))


def test_lists_are_arrays_too():
    X, y, groups = samples([4, 6])
    ours, _ = users_from_arrays(X.tolist(), y.tolist(), groups.tolist())
    theirs, _ = users_from_arrays(X, y, groups)
    for mine, other in zip(by_user(ours), by_user(theirs), strict=True):
        assert np.array_equal(mine[0], other[0])


def on_disk(array, path):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("vectors", [False, True])
def test_from_disk_the_same_is_found_as_from_memory(tmp_path, vectors):
    random = np.random.default_rng(1)
    W = random.normal(size=(OUT, 1)) * random.normal(size=(12, 1, 1)) * random.normal(size=(1, IN))
    X, y, groups = samples(random.integers(8, 20, size=12), 1, vectors)
    y = np.einsum("noi,ni->no", W[groups], X) if vectors else np.einsum("noi,noi->n", W[groups], X)
    y += 0.1 * random.normal(size=y.shape)
    kept, _ = users_from_arrays(X, y, groups)
    with mock.patch.object(arrays, "BLOCK_BYTES", 5000):
        streamed, _ = users_from_arrays(on_disk(X, tmp_path / "X.npy"), on_disk(y, tmp_path / "y.npy"), groups)
        assert isinstance(kept.blocks, list)
        assert not isinstance(streamed.blocks, list)
        assert len(list(streamed)) > len(list(kept))
        ours, theirs = recover(streamed, 1), recover(kept, 1)
    assert torch.allclose(ours.factors.matrices(), theirs.factors.matrices(), atol=1e-6)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-9)


def test_of_a_file_or_a_large_array_few_blocks_are_in_memory(tmp_path):
    X = np.zeros((4000, 20, 20), dtype=np.float32)  # 12.8 MB as float64
    y, groups = np.zeros(len(X)), np.repeat(np.arange(400), 10)
    bound = 400_000
    for given_X in (X, on_disk(X, tmp_path / "X.npy")):
        with mock.patch.object(arrays, "BLOCK_BYTES", bound):
            tracemalloc.start()
            users, _ = users_from_arrays(given_X, y, groups)
            number = sum(1 for _ in users) + sum(1 for _ in users)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert number == 2 * 34  # twelve users, 384 kB, a block; anew at each pass
        assert peak < 4 * bound, "a block, the next one, and the rows it is made from"


@pytest.mark.parametrize(
    ("X", "y", "groups", "message"),
    [
        (
            np.ones((5, 12)),
            np.ones(5),
            None,
            r"expected X \(N, d_out, d_in\) with y \(N,\), or X .*, or, for CoLoRARegressor\(shape=",
        ),
        (np.ones((5, 3, 4)), np.ones((5, 1)), None, r"found X \(5, 3, 4\) and y \(5, 1\)"),
        (np.ones((5, 3, 4)), np.ones(4), None, "y: expected as many rows as X has, 5, found 4"),
        (np.ones((0, 3, 4)), np.ones(0), None, r"X: expected at least one sample and no empty side, found .*\(0, 3, 4"),
        (np.ones((5, 3)), np.ones((5, 0)), None, r"y: expected at least one sample and no empty side"),
        (np.float64(3), np.ones(5), None, "X: expected an array with a row a sample, found the single number 3.0"),
        ([[1.0, 2.0], [3.0]], np.ones(2), None, "X: expected an array of numbers, found list"),
        (np.array([["a", "b"]]), np.ones((1, 2)), None, "X: expected an array of real numbers, found one of <U1"),
        (np.ones((2, 2)), np.ones((2, 2)) * 1j, None, "y: expected an array of real numbers, found one of complex128"),
        (np.array([["a", None]], dtype=object), np.ones((1, 2)), None, "X: expected an array of numbers"),
        (np.ones((5, 3, 4)), np.ones(5), [0, 1], r"groups: expected a label for each row of X, shape \(5,\), found"),
        (np.ones((2, 3)), np.ones((2, 3)), [1.0, np.nan], "groups: expected a label in every row, found NaN in row 1"),
        (np.ones((2, 3)), np.ones((2, 3)), np.array([1, "a"], dtype=object), "groups: expected labels of one kind"),
    ],
)
def test_errors_say_what_was_expected(X, y, groups, message):
    with pytest.raises(ColoraError, match=message):
        users_from_arrays(X, y, groups)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("most", [10, 2**20])
def test_the_first_row_that_is_not_finite_is_named(bad, most):
    X, y, groups = samples([8, 8])
    with mock.patch.object(arrays, "BLOCK_BYTES", most):
        wrong = X.copy()
        wrong[[7, 11], 1, 2] = bad
        with pytest.raises(ColoraError, match="X: expected finite numbers, found NaN or infinity in row 7; leave such"):
            users_from_arrays(wrong, y, groups)
        y[3] = bad
        with pytest.raises(ColoraError, match="y: expected finite numbers, found NaN or infinity in row 3"):
            users_from_arrays(X, y, groups)


@pytest.mark.parametrize(
    ("users", "d_out", "d_in", "rank"), [(1, 4, 5, 2), (2, 4, 5, 2), (3, 3, 3, 3), (4, 6, 4, 1), (5, 5, 6, 3)]
)
def test_degrees_of_freedom_are_the_rank_of_the_models_derivative(users, d_out, d_in, rank):
    generator = torch.Generator().manual_seed(0)
    sides = [(rank, d_in), (d_out, rank), (users, rank, rank)]
    at = tuple(torch.randn(*side, generator=generator, dtype=torch.float64) for side in sides)
    derivative = torch.autograd.functional.jacobian(lambda A, B, cores: (B @ cores @ A).flatten(), at)
    counted = torch.linalg.matrix_rank(torch.cat([one.flatten(1) for one in derivative], 1))
    assert degrees_of_freedom(users, d_out, d_in, rank) == counted
    assert freedom_per_user(users, d_out, d_in, rank) == pytest.approx(int(counted) / users)


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_core_is_called_undetermined_where_its_equations_are_too_few(count, vectors):
    X, _, _ = samples([count], vectors=vectors)
    design = Multivariate(torch.from_numpy(X)[None], OUT) if vectors else Dense(torch.from_numpy(X)[None])
    A, B = torch.randn(2, IN, dtype=torch.float64), torch.randn(OUT, 2, dtype=torch.float64)
    equations = int(torch.linalg.matrix_rank(design.core(A, B).flatten(2)[0]))
    per_sample = OUT if vectors else 1
    found = identifiability([count * per_sample], OUT, IN, 2, per_sample=per_sample, frozen=True)
    assert len(found) == (equations < 4)
    if found:
        assert f"user 0 ({equations}): its own samples do not determine its core" in found[0]
        assert f"({4 - equations} for 0)" in found[0]


def test_statements_name_three_users_and_count_the_others():
    (few,) = identifiability(torch.tensor([900, 1, 2, 3, 0, 2]), 5, 5, 2, labels=list("abcdef"))
    assert "users 'b' (1), 'c' (2), 'd' (3), ... and 2 more: their own" in few
    (few, total) = identifiability([1, 2, 3], 5, 5, 2, labels=list("abc"))
    assert "users 'a' (1), 'b' (2), 'c' (3): their own" in few
    assert total.startswith("all users together have 6 observations, fewer than the 24 degrees of freedom")
    assert len(identifiability([8, 8, 7], 5, 5, 2)) == 1
    assert identifiability([8, 8, 8], 5, 5, 2) == []


@pytest.mark.parametrize(
    ("users", "rank", "message"),
    [
        (0, 1, "users: expected at least 1, found 0"),
        (3, 0, "rank: expected 1 to 4"),
        (3, 5, "smaller side of W_k, found 5"),
    ],
)
def test_freedom_of_what_is_no_model(users, rank, message):
    with pytest.raises(ColoraError, match=message):
        degrees_of_freedom(users, 6, 4, rank)
