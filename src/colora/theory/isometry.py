"""A lower bound on the generalised restricted isometry constant of the designs that were drawn.

The theory (arXiv:2602.07218) asks that the users' measurements keep the length of stacks of low Tucker-2 rank: δ_r is
the least δ with

    (1 − δ) Σ_k ‖W_k‖² ≤ Σ_k ‖X_k(W_k)‖² / c_k ≤ (1 + δ) Σ_k ‖W_k‖²    for all W_k = B Λ_k A of rank r,

where c_k is what an isometric design would give: Σ_i ‖X_i‖² / (d_out d_in) over the user's rows. The supremum over
all such stacks is not to be computed. But every stack gives a lower bound, and the worst ones in a linear space are
an eigenvalue problem. The space taken here is the tangent space of the model at a point, whose elements B δΛ_k A + B
Λ_k Z_A A⊥ + B⊥ Z_B Λ_k A have Tucker-2 rank 2 r at most: so what is found bounds δ_2r from below.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from colora.errors import ColoraError
from colora.theory.factors import Factors
from colora.theory.starts import random_start
from colora.theory.tangent import Frame, jacobian
from colora.theory.users import Users

__all__ = ["Isometry", "isometry_bound"]

UNUSED = 1e-12  # of the largest eigenvalue of Σ Λ_k Λ_kᵀ, below which a direction belongs to nobody


@dataclass(frozen=True)
class Isometry:
    """What was found.

    Attributes:
        largest, smallest: the extreme ratios Σ_k ‖X_k(W_k)‖² / c_k over Σ_k ‖W_k‖² that some stack attains.
        points: tangent spaces that were searched.
    """

    largest: float
    smallest: float
    points: int

    @property
    def delta(self) -> float:
        """δ_2r is at least this. At 1 some stack of rank 2 r is not seen by the measurements at all."""
        return max(self.largest - 1.0, 1.0 - self.smallest)


def isometry_bound(
    users: Users, rank: int, at: Factors | None = None, points: int = 3, iterations: int = 200, seed: int = 0
) -> Isometry:
    """Power iteration for the extreme ratios over tangent spaces of the model.

    It certifies one thing: δ_2r ≥ `delta`, for a stack of rank 2 r attains it. So a theorem that needs δ_2r below a
    threshold does not apply where `delta` is above. A small `delta` certifies nothing, for other stacks may be worse;
    nor does a large one say that recovery fails, for the condition is sufficient and not necessary.

    Args:
        users: the samples; of them only the designs matter. Gone through four times an iteration and point.
        rank: r.
        at: a point to search at, the truth or an estimate, before those at random.
        points: random points: orthonormal factors, standard normal cores.
        iterations: of the power method, for the largest and then for the smallest ratio; fewer lose sharpness and
            nothing else.
        seed: of the random points.

    Raises:
        ColoraError: no point to search at, or one of another rank or of other users; no iterations.
    """
    if iterations < 1:
        raise ColoraError(f"iterations: expected at least 1, found {iterations}")
    if at is not None and at.of(users).rank != rank:
        raise ColoraError(f"at: expected a point of rank {rank}, found one of rank {at.rank}")
    if at is None and points < 1:
        raise ColoraError(f"points: expected at least 1 where no point is given, found {points}")
    searched = [] if at is None else [at.canonical()]
    for number in range(points):
        A, B = random_start(users, rank, seed, number)
        cores = np.random.default_rng([seed, number, 11]).standard_normal((len(users), rank, rank))
        searched.append(Factors(A, B, torch.from_numpy(cores)))
    weights = _weights(users)
    found = [_extremes(_Tangent(users, point, weights), iterations, seed) for point in searched]
    return Isometry(max(one[0] for one in found), min(one[1] for one in found), len(searched))


class _Tangent:
    """The measurements on a tangent space, in orthonormal coordinates: δΛ (K r² numbers), then θ made orthonormal.

    ‖δW‖² = ‖δΛ‖² + ⟨Σ Λ_kᵀ Λ_k, Z_A Z_Aᵀ⟩ + ⟨Σ Λ_k Λ_kᵀ, Z_Bᵀ Z_B⟩, so Z_A and Z_B are divided by roots of the two
    sums.
    """

    def __init__(self, users: Users, point: Factors, weights: Float[Tensor, " K"]) -> None:
        self.users, self.point, self.weights = users, point, weights
        self.frame = Frame.at(point.A, point.B)
        self.root_A, self.used_A = _inverse_root((point.cores.mT @ point.cores).sum(0))
        self.root_B, self.used_B = _inverse_root((point.cores @ point.cores.mT).sum(0))
        self.size = point.cores.numel() + self.frame.size

    def normal(self, vector: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """P 𝒜* 𝒜 P: the coordinates of what measuring forth and back makes of a tangent vector."""
        changes = vector[: self.point.cores.numel()].view_as(self.point.cores)
        theta = self._whitened(vector[self.point.cores.numel() :])
        back_cores, back_theta = torch.zeros_like(changes), torch.zeros_like(theta)
        for block in self.users:
            F = block.design.core(self.point.A, self.point.B).flatten(2)
            J = jacobian(block, self.frame, self.point.cores[block.indices])
            measured = (F @ changes[block.indices].flatten(1).unsqueeze(-1)).squeeze(-1) + J @ theta
            measured = measured / self.weights[block.indices].unsqueeze(-1)
            back_cores[block.indices] = (F.mT @ measured.unsqueeze(-1)).view(-1, *changes.shape[1:])
            back_theta += J.flatten(0, 1).mT @ measured.flatten()
        return torch.cat([back_cores.flatten(), self._whitened(back_theta)])

    def used(self, vector: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """Without the coordinates that move no W_k: `normal` is zero there, though no stack is."""
        Z_A, Z_B = self.frame.unpack(vector[self.point.cores.numel() :])
        theta = torch.cat([(self.used_A @ Z_A).flatten(), (Z_B @ self.used_B).flatten()])
        return torch.cat([vector[: self.point.cores.numel()], theta])

    def _whitened(self, theta: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        Z_A, Z_B = self.frame.unpack(theta)
        return torch.cat([(self.root_A @ Z_A).flatten(), (Z_B @ self.root_B).flatten()])


def _extremes(tangent: _Tangent, iterations: int, seed: int) -> tuple[float, float]:
    """The largest ratio by power iteration, the smallest by power iteration on what is left of the largest."""
    random = np.random.default_rng([seed, 13])
    start = tangent.used(torch.from_numpy(random.standard_normal(tangent.size)))
    largest = _power(tangent.normal, start, iterations)
    # A little more than the largest, which is approached from below: otherwise its own direction could win again.
    shift = 1.01 * largest
    smallest = shift - _power(lambda vector: tangent.used(shift * vector - tangent.normal(vector)), start, iterations)
    return largest, max(smallest, 0.0)


def _power(apply: Callable[[Tensor], Tensor], start: Float[Tensor, " size"], iterations: int) -> float:
    """A Rayleigh quotient, at most the largest eigenvalue and near it."""
    vector, value = start / start.norm(), 0.0
    for _ in range(iterations):
        moved = apply(vector)
        value = float(vector @ moved)
        length = float(moved.norm())
        if not length:
            break
        vector = moved / length
    return value


def _weights(users: Users) -> Float[Tensor, " K"]:
    """c_k: Σ_i ‖X_i‖² / (d_out d_in)."""
    weights = torch.ones(len(users), dtype=torch.float64)
    for block in users:
        energy = block.design.energy().sum(1)
        weights[block.indices] = (energy / (users.d_out * users.d_in)).clamp_min(torch.finfo(energy.dtype).tiny)
    return weights


def _inverse_root(matrix: Float[Tensor, "r r"]) -> tuple[Float[Tensor, "r r"], Float[Tensor, "r r"]]:
    """Pseudo-inverse of the root, zero along directions that no core uses and that move no W_k, and what it spans."""
    values, vectors = torch.linalg.eigh(matrix)
    used = values > UNUSED * values[-1]
    span = vectors[:, used]
    return span / values[used].sqrt() @ span.mT, span @ span.mT
