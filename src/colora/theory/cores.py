"""The cores for given factors: a small least-squares problem for each user, all of a block at once.

    Λ_k = argmin ‖y_k − F_k vec Λ‖² + ridge ‖Λ‖²,    rows of F_k: vec(Bᵀ X_i Aᵀ), n × r²

With A and B frozen this is what a new user costs. Everything is in the canonical gauge (A Aᵀ = Bᵀ B = I), where
‖Λ_k‖ = ‖W_k‖, so the penalty does not depend on how the factors are written.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.users import Block, Users

__all__ = ["Cores", "core_energy", "fit_block", "fit_cores"]

# Keeps a Cholesky factor where a user has fewer samples than a core has numbers. It biases nothing: `fit_block` goes on
# from its own solution with what is left of y.
JITTER = 1e-13


@dataclass(frozen=True)
class Cores:
    """The solution for a block.

    Attributes:
        F: features (k, n, r²).
        cholesky: factor of Fᵀ F + ridge I, (k, r², r²).
        cores: (k, r, r).
        residual: y − F vec Λ, (k, n).
        penalty: ridge · Σ ‖Λ_k‖² over the block.
    """

    F: Float[Tensor, "k n r2"]
    cholesky: Float[Tensor, "k r2 r2"]
    cores: Float[Tensor, "k r r"]
    residual: Float[Tensor, "k n"]
    penalty: float

    @property
    def objective(self) -> float:
        """Σ_k ‖y_k − X_k(W_k)‖² + ridge ‖W_k‖² over the block."""
        return float(self.residual.square().sum()) + self.penalty


def fit_block(block: Block, A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"], ridge: float = 0.0) -> Cores:
    """The cores of a block's users for orthonormal factors.

    Solved by the normal equations and once more for what they left over, which brings the accuracy near that of an
    orthogonal factorisation. A user with fewer than r² observations gets a solution of nearly the least norm.
    """
    F = block.design.core(A, B).flatten(2)
    gram = F.mT @ F
    size = gram.shape[-1]
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(F.dtype).tiny)
    extra = (ridge + JITTER * scale)[:, None, None] * torch.eye(size, dtype=F.dtype)
    cholesky = torch.linalg.cholesky(gram + extra)
    flat = torch.cholesky_solve(F.mT @ block.y.unsqueeze(-1), cholesky)
    rest = block.y.unsqueeze(-1) - F @ flat
    flat = flat + torch.cholesky_solve(F.mT @ rest - ridge * flat, cholesky)
    residual = block.y - (F @ flat).squeeze(-1)
    cores = flat.view(-1, B.shape[-1], A.shape[-2])
    return Cores(F, cholesky, cores, residual, ridge * float(flat.square().sum()) if ridge else 0.0)


def fit_cores(
    users: Users, A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"], ridge: float = 0.0
) -> tuple[Float[Tensor, "K r r"], float]:
    """The cores of all users for orthonormal factors, (K, r, r), and the objective they reach."""
    cores = torch.zeros(len(users), B.shape[-1], A.shape[-2], dtype=A.dtype)
    objective = 0.0
    for block in users:
        found = fit_block(block, A, B, ridge)
        cores[block.indices] = found.cores
        objective += found.objective
    return cores, objective


def core_energy(users: Users, A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"]) -> float:
    """Mean over users of ‖F_k‖² / r²: a ridge of this size counts as much as the samples do."""
    total = sum(float(block.design.core(A, B).square().sum()) for block in users)
    return total / (len(users) * B.shape[-1] * A.shape[-2])
