"""From flat arrays, a row a sample and a label a row, to users in blocks.

Users with similar numbers of samples stand in one block, so that little of it is filling, and a block is bounded in
bytes. Where the arrays lie on disk (`numpy.memmap`) or are large, blocks are gathered anew at every pass, and one of
them is in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from colora.errors import ColoraError
from colora.theory.design import Dense, Multivariate
from colora.theory.users import Block, Users

__all__ = ["as_numbers", "labelled", "require_finite", "users_from_arrays"]

BLOCK_BYTES = 64 * 2**20  # of a block's rows in float64; one user alone may have more
LEAST_FILLED = 0.75  # a block's smallest user has at least this part of its largest user's samples

FORMS = (
    "X (N, d_out, d_in) with y (N,), or X (N, d_in) with y (N, d_out), or, for CoLoRARegressor(shape=(d_out, d_in)), "
    "X (N, d_out * d_in) with y (N,)"
)


def users_from_arrays(X: object, y: object, groups: object = None) -> tuple[Users, Shaped[np.ndarray, " K"]]:
    """Users in blocks, numbered in the order of their sorted labels.

    Args:
        X: (N, d_out, d_in), the matrices X_i, or (N, d_in), vectors x_i. Any real numbers; float64 is made of a block
            at a time.
        y: (N,), ⟨X_i, W_k⟩, where X holds matrices; (N, d_out), W_k x_i, where it holds vectors.
        groups: (N,) labels that can be sorted, such as integers or strings: whose sample a row is. None: all are of one
            user, whose label is 0.

    Returns:
        the users, each with their rows in the order of X, then rows of zeros where others of the block have more; and
        the labels (K,), that of user k at k.

    Raises:
        ColoraError: no samples, shapes that do not fit, NaN or infinity, or labels that cannot be used.

    Examples:
        >>> users, labels = users_from_arrays(np.ones((3, 2, 4)), np.ones(3), ["b", "a", "b"])
        >>> labels.tolist(), users.observations.tolist(), users.d_out, users.d_in
        (['a', 'b'], [1, 2], 2, 4)
    """
    X, y = as_numbers("X", X), as_numbers("y", y)
    if (X.ndim, y.ndim) not in ((3, 1), (2, 2)):
        raise ColoraError(f"expected {FORMS}; found X {X.shape} and y {y.shape}")
    if len(X) != len(y):
        raise ColoraError(f"y: expected as many rows as X has, {len(X)}, found {len(y)}")
    require_finite("X", X)
    require_finite("y", y)
    labels, indices = labelled(groups, len(X))
    counts = np.bincount(indices)
    d_out, d_in = X.shape[1:] if X.ndim == 3 else (y.shape[1], X.shape[1])
    # A vector is never written as d_out matrices, but solvers hold r (d_out + d_in) numbers of each of them.
    numbers = d_out * d_in if X.ndim == 3 else d_out * (d_out + d_in)
    gathered = _Gathered(X, y, np.argsort(indices, kind="stable"), counts, _grouped(counts, 8 * numbers))
    streamed = isinstance(X, np.memmap) or 8 * X.size > BLOCK_BYTES
    observations = torch.from_numpy(counts * (y.size // len(y)))
    return Users(gathered if streamed else list(gathered), observations, d_out, d_in), labels


def as_numbers(name: str, values: object) -> np.ndarray:
    """`values` as an array of real numbers; what is an array already is not copied, and stays on disk if it is there.

    Raises:
        ColoraError: other things than numbers, or none of them.
    """
    if values is None:  # the second sentence is scikit-learn's own
        raise ColoraError(
            f"{name}: expected an array, found None. Expected array-like (array or non-string sequence), got None"
        )
    if hasattr(values, "tocsr"):
        raise ColoraError(f"{name}: expected a dense array; sparse data is not supported, use .toarray()")
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
        if array.dtype == object:
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ColoraError(f"{name}: expected an array of numbers, found {type(values).__name__}: {error}") from error
    if array.dtype.kind == "c":
        raise ColoraError(
            f"{name}: expected an array of real numbers, found one of {array.dtype}. Complex data not supported"
        )
    if array.dtype.kind not in "biuf":
        raise ColoraError(f"{name}: expected an array of real numbers, found one of {array.dtype}")
    if array.ndim == 0:
        raise ColoraError(f"{name}: expected an array with a row a sample, found the single number {array}")
    if not array.size:
        what = "sample" if not len(array) else "feature"
        raise ColoraError(
            f"{name}: expected at least one sample and no empty side, found shape {array.shape}: "
            f"0 {what}(s) (shape={array.shape}) while a minimum of 1 is required."
        )
    return array


def require_finite(name: str, array: np.ndarray) -> None:
    """Goes through an array once, a block's bytes at a time.

    Raises:
        ColoraError: NaN or infinity, with the first row that has them.
    """
    if array.dtype.kind != "f":
        return
    step = max(1, BLOCK_BYTES * len(array) // array.nbytes)
    for first in range(0, len(array), step):
        some = array[first : first + step]
        finite = np.isfinite(some).reshape(len(some), -1).all(1)
        if not finite.all():
            raise ColoraError(
                f"{name}: expected finite numbers, found NaN or infinity in row {first + int(np.argmin(finite))}; "
                "leave such rows out or fill them in"
            )


def labelled(groups: object, samples: int) -> tuple[Shaped[np.ndarray, " K"], Int[np.ndarray, " N"]]:
    """The labels that occur, sorted, and for each row the index of its label, (N,) integers.

    Raises:
        ColoraError: not a label for each of the `samples` rows, or labels that cannot be sorted.
    """
    if groups is None:
        return np.zeros(1, dtype=np.int64), np.zeros(samples, dtype=np.int64)
    array = np.asarray(groups)
    if array.shape != (samples,):
        raise ColoraError(f"groups: expected a label for each row of X, shape ({samples},), found {array.shape}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ColoraError(f"groups: expected a label in every row, found NaN in row {int(np.isnan(array).argmax())}")
    if array.dtype == object and (missing := [row for row, label in enumerate(array) if _is_missing(label)]):
        found = array[missing[0]]
        raise ColoraError(f"groups: expected a label in every row, found {found} in row {missing[0]}")
    try:
        labels, indices = np.unique(array, return_inverse=True)
    except TypeError as error:
        raise ColoraError(
            f"groups: expected labels of one kind, such as all strings, found a mixture: {error}"
        ) from error
    return labels, indices


def _is_missing(label: object) -> bool:
    # pandas has a missing value of its own, which is equal to nothing and no bool either.
    return (
        label is None or type(label).__name__ in ("NAType", "NaTType") or (isinstance(label, float) and label != label)
    )


@dataclass(frozen=True)
class _Gathered:
    """Blocks that are made when they are asked for.

    Attributes:
        X, y: the arrays as given.
        order: rows, those of user 0 first; within a user in the order of X, so that a disk is read forwards.
        counts: samples of each user, (K,).
        grouped: the users of each block.
    """

    X: Shaped[np.ndarray, "N ..."]
    y: Shaped[np.ndarray, "N ..."]
    order: Int[np.ndarray, " N"]
    counts: Int[np.ndarray, " K"]
    grouped: list[Int[np.ndarray, " _"]]

    def __iter__(self) -> Iterator[Block]:
        starts = np.cumsum(self.counts) - self.counts
        for users in self.grouped:
            counts = self.counts[users]
            user = np.repeat(np.arange(len(users)), counts)
            number = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
            rows = self.order[starts[users][user] + number]
            shape = (len(users), int(counts.max()))
            X, y = (_filled(array, rows, (user, number), shape) for array in (self.X, self.y))
            design = Dense(X) if X.ndim == 4 else Multivariate(X, y.shape[2])
            yield Block(design, y.flatten(1), torch.from_numpy(users))


def _filled(
    array: Shaped[np.ndarray, "N ..."],
    rows: Int[np.ndarray, " rows"],
    to: tuple[Int[np.ndarray, " rows"], ...],
    shape: tuple[int, int],
) -> Float[Tensor, "k n ..."]:
    """The `rows` of an array at the indices `to` of a block in float64, zeros elsewhere."""
    filled = np.zeros((*shape, *array.shape[1:]))
    filled[to] = array[rows]
    return torch.from_numpy(filled)


def _grouped(counts: Int[np.ndarray, " K"], sample_bytes: int) -> list[Int[np.ndarray, " _"]]:
    """Users of each block: by falling numbers of samples, as many as the bounds on bytes and filling allow."""
    found: list[list[int]] = []
    most = 0
    for user in np.argsort(-counts, kind="stable").tolist():
        fits = found and (len(found[-1]) + 1) * most * sample_bytes <= BLOCK_BYTES
        if fits and counts[user] >= LEAST_FILLED * most:
            found[-1].append(user)
        else:
            found.append([user])
            most = int(counts[user])
    return [np.array(users) for users in found]
