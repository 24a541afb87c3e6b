"""How many numbers a model has, and what a number of samples cannot determine.

B Λ_k A has r d_out + r d_in + K r² numbers, of which 2 r² are the gauge (B P, P⁻¹ Λ_k Q⁻¹, Q A) and change nothing
(arXiv:2602.07218). What is left are the degrees of freedom

    r (d_out + d_in) − 2 r² + K r²,

so r (d_out + d_in) − r² for one user alone, and near r² a user for many. Fewer observations than that cannot determine
the model; as many may, where the design is generic and a solver finds it.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from colora.common.text import listed
from colora.errors import ColoraError

__all__ = ["degrees_of_freedom", "freedom_per_user", "identifiability"]

NAMED = 3  # users in a statement; of the others only the number is said


def degrees_of_freedom(users: int, d_out: int, d_in: int, rank: int) -> int:
    """r (d_out + d_in) − 2 r² + K r²: numbers that describe K users' W_k = B Λ_k A.

    Raises:
        ColoraError: no user, or a rank that is not from 1 to the smaller side of W_k.

    Examples:
        >>> degrees_of_freedom(users=50, d_out=20, d_in=30, rank=2)
        292
        >>> degrees_of_freedom(users=1, d_out=20, d_in=30, rank=2) == 2 * (20 + 30) - 2**2
        True
    """
    if users < 1:
        raise ColoraError(f"users: expected at least 1, found {users}")
    if not 1 <= rank <= min(d_out, d_in):
        raise ColoraError(f"rank: expected 1 to {min(d_out, d_in)}, the smaller side of W_k, found {rank}")
    return rank * (d_out + d_in) - 2 * rank**2 + users * rank**2


def freedom_per_user(users: int, d_out: int, d_in: int, rank: int) -> float:
    """Degrees of freedom over K: observations that each user needs at least, where all have as many.

    Examples:
        >>> [freedom_per_user(users, d_out=20, d_in=20, rank=2) for users in (1, 8, 72)]
        [76.0, 13.0, 5.0]
    """
    return degrees_of_freedom(users, d_out, d_in, rank) / users


def identifiability(
    observations: Tensor | np.ndarray | Sequence[int],
    d_out: int,
    d_in: int,
    rank: int,
    *,
    labels: Sequence[object] | np.ndarray | None = None,
    per_sample: int = 1,
    frozen: bool = False,
) -> list[str]:
    """What these numbers of observations leave undetermined, whatever the solver; nothing said is no guarantee.

    Args:
        observations: scalar observations of each user, (K,).
        d_out, d_in, rank: of W_k = B Λ_k A.
        labels: names of the users, (K,); their numbers by default.
        per_sample: scalar observations of one sample: d_out where a sample is a vector W_k x. Such a sample says what
            the core does to one vector A x, which is r numbers and not d_out.
        frozen: A and B are known, and only the cores are asked for.

    Returns:
        statements, none, one or two.

    Raises:
        ColoraError: as `degrees_of_freedom`.

    Examples:
        >>> for statement in identifiability([9, 2, 3], d_out=5, d_in=5, rank=2, labels=["ann", "ben", "cat"]):
        ...     print(statement)
        a core has 4 numbers, and fewer are observed of users 'ben' (2), 'cat' (3): their own samples do not \
determine their cores, and the directions that are missing (2 for 'ben') are filled with the least norm
        all users together have 14 observations, fewer than the 24 degrees of freedom: A, B and the cores are not \
determined together
        >>> identifiability([9, 9, 9], d_out=5, d_in=5, rank=2)
        []
    """
    counts = np.asarray(observations)
    freedom = degrees_of_freedom(len(counts), d_out, d_in, rank)
    names = [repr(name) for name in (np.arange(len(counts)) if labels is None else np.asarray(labels)).tolist()]
    said = counts // per_sample * min(per_sample, rank)
    few = np.flatnonzero(said < rank**2)
    statements = []
    if len(few):
        users = listed([f"{names[user]} ({said[user]})" for user in few], NAMED)
        one = len(few) == 1
        statements.append(
            f"a core has {rank**2} numbers, and fewer are observed of user{'' if one else 's'} {users}: "
            f"{'its' if one else 'their'} own samples do not determine {'its core' if one else 'their cores'}, and the "
            f"directions that are missing ({rank**2 - said[few[0]]} for {names[few[0]]}) are filled with the least norm"
        )
    if not frozen and (total := int(counts.sum())) < freedom:
        statements.append(
            f"all users together have {total} observations, fewer than the {freedom} degrees of freedom: "
            "A, B and the cores are not determined together"
        )
    return statements
