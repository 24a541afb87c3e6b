"""The Cramér–Rao bound: how well any unbiased estimate can do with noise.

With Gaussian noise of standard deviation σ, and in the coordinates of `tangent` (δΛ_k and θ = (Z_A, Z_B)), the
covariance of an unbiased estimate is at least σ² times the inverse of the normal matrix. Eliminating the cores gives
it block by block:

    Cov θ ≥ σ² S⁻¹,    Cov Λ_k ≥ σ² (F_kᵀ F_k)⁻¹ + C_k Cov(θ) C_kᵀ,    C_k = (F_kᵀ F_k)⁻¹ F_kᵀ J_k

and, for the three parts of δW_k are orthogonal,

    E ‖Ŵ_k − W_k‖² ≥ tr Cov Λ_k + E ‖Λ_k Z_A‖² + E ‖Z_B Λ_k‖².

The parametrisation has no redundancy left, so this is the constrained bound of the manifold of such models (Stoica
and Ng, IEEE Signal Processing Letters 5, 1998). It is a statement of first order: at large noise an estimate may do
worse, and a biased one (a ridge) may do better.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from colora.errors import ColoraError
from colora.theory.cores import Cores
from colora.theory.factors import Factors
from colora.theory.tangent import Frame, eliminated, jacobian
from colora.theory.users import Block, Users

__all__ = ["Bound", "cramer_rao", "cramer_rao_alone"]

SINGULAR = 1e-12  # of the largest eigenvalue


@dataclass(frozen=True)
class Bound:
    """Least mean squared errors ‖Ŵ_k − W_k‖² of unbiased estimates, (K,); infinite where W_k is not determined."""

    per_user: Float[Tensor, " K"]

    @property
    def total(self) -> float:
        """Over all users: what Σ_k ‖Ŵ_k − W_k‖² cannot be below in the mean."""
        return float(self.per_user.sum())


def cramer_rao(users: Users, factors: Factors, noise: float) -> Bound:
    """The bound for all users together.

    Args:
        users: the samples; of them only the designs matter. Gone through twice.
        factors: the truth W_k = B Λ_k A.
        noise: σ, the standard deviation of an observation's noise.

    Raises:
        ColoraError: the samples do not determine the model, so that there is no bound; factors of other users; a noise
            that is none.
    """
    if not noise >= 0:
        raise ColoraError(f"noise: expected at least 0, found {noise}")
    true = factors.of(users).canonical()
    frame = Frame.at(true.A, true.B)
    schur = torch.zeros(frame.size, frame.size, dtype=true.A.dtype)
    for block in users:
        found = _at(block, true)
        schur += eliminated(found, jacobian(block, frame, found.cores))[0]
    values, vectors = torch.linalg.eigh((schur + schur.mT) / 2)
    if len(values) and float(values[0]) <= SINGULAR * float(values[-1]):
        raise ColoraError(
            f"expected samples that determine A and B, found {int((values <= SINGULAR * values[-1]).sum())} of "
            f"{frame.size} directions that no user's samples determine; take more samples, or cores that differ more"
        )
    covariance = vectors / values @ vectors.mT
    of_A, of_B = _reduced(covariance, frame)
    bound = torch.zeros(len(users), dtype=true.A.dtype)
    for block in users:
        found = _at(block, true)
        J = jacobian(block, frame, found.cores)
        carried = torch.cholesky_solve(found.F.mT @ J, found.cholesky)  # C_k
        own = torch.cholesky_inverse(found.cholesky).diagonal(dim1=1, dim2=2).sum(1)
        through_core = ((carried @ covariance) * carried).sum((1, 2))
        cores = found.cores
        shared = ((cores.mT @ cores) * of_A).sum((1, 2)) + ((cores @ cores.mT) * of_B).sum((1, 2))
        bound[block.indices] = own + through_core + shared
    return Bound(noise**2 * bound)


def cramer_rao_alone(users: Users, factors: Factors, noise: float) -> Bound:
    """The bound of each user on their own, who knows only that W_k has rank r; infinite where that does not suffice."""
    bound = torch.full((len(users),), float("inf"), dtype=factors.A.dtype)
    for block in users:
        for number, index in enumerate(block.indices.tolist()):
            only = slice(number, number + 1)
            alone = Block(block.design.users(only), block.y[only], torch.zeros(1, dtype=torch.long))
            own = Factors(factors.A, factors.B, factors.cores[index : index + 1])
            try:
                bound[index] = cramer_rao(Users.of([alone]), own, noise).per_user[0]
            except ColoraError:
                continue
    return Bound(bound)


def _at(block: Block, true: Factors) -> Cores:
    """What `eliminated` needs, at the true cores instead of fitted ones."""
    F = block.design.core(true.A, true.B).flatten(2)
    cholesky, failed = torch.linalg.cholesky_ex(F.mT @ F)
    diagonal = cholesky.diagonal(dim1=1, dim2=2).square()
    singular = (failed > 0) | (diagonal.amin(1) <= SINGULAR * diagonal.amax(1))
    if singular.any():
        raise ColoraError(
            f"expected samples that determine every user's core, found {int(singular.sum())} users with too few "
            f"samples; the first is user {int(block.indices[singular][0])}"
        )
    return Cores(F, cholesky, true.cores[block.indices], torch.zeros_like(block.y), 0.0)


def _reduced(covariance: Float[Tensor, "size size"], frame: Frame) -> tuple[Float[Tensor, "r r"], Float[Tensor, "r r"]]:
    """M_A, M_B (r, r) with E ‖Λ Z_A‖² = ⟨Λᵀ Λ, M_A⟩ and E ‖Z_B Λ‖² = ⟨Λ Λᵀ, M_B⟩."""
    rank, into, out = frame.B.shape[1], frame.A_rest.shape[0], frame.B_rest.shape[1]
    of_A = covariance[: rank * into, : rank * into].reshape(rank, into, rank, into)
    of_B = covariance[rank * into :, rank * into :].reshape(out, rank, out, rank)
    return torch.einsum("pjqj->pq", of_A), torch.einsum("ipiq->pq", of_B)
