"""The tangent space of the model and its Jacobian, with the cores eliminated.

At orthonormal A and B every first-order change of the W_k is

    δW_k = B δΛ_k A + B Λ_k Z_A A⊥ + B⊥ Z_B Λ_k A,    Z_A: r × (d_in − r),  Z_B: (d_out − r) × r

where A⊥ and B⊥ complete A and B to orthonormal bases. The three parts are orthogonal to each other, nothing of the
gauge is left in them, and 2 d r − 2 r² + K r² numbers describe them all (for d_in = d_out = d): the degrees of
freedom. To first order the shared part θ = (Z_A, Z_B) leaves ‖W_k‖ as it is.

The normal equations of a linearised least-squares problem have a block for θ, and one of r² numbers for each user.
The users' blocks are eliminated (Schur complement), so that what is kept is a matrix for θ alone:

    S = Σ_k J_kᵀ J_k − J_kᵀ F_k (F_kᵀ F_k + ridge I)⁻¹ F_kᵀ J_k        cost O(n (r d)²) a user, O((r d)³) once

which is variable projection in the form of Kaufman (BIT 15, 1975; Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.cores import Cores
from colora.theory.users import Block

__all__ = ["Frame", "eliminated", "jacobian"]


@dataclass(frozen=True)
class Frame:
    """Orthonormal A (r, d_in) and B (d_out, r) with their complements A⊥ (d_in − r, d_in) and B⊥ (d_out, d_out − r)."""

    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    A_rest: Float[Tensor, "d_in-r d_in"]
    B_rest: Float[Tensor, "d_out d_out-r"]

    @classmethod
    def at(cls, A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"]) -> "Frame":
        """The frame of orthonormal factors."""
        return cls(A, B, _complement(A.mT).mT, _complement(B))

    @property
    def size(self) -> int:
        """Numbers in θ."""
        return self.A.shape[0] * self.A_rest.shape[0] + self.B.shape[1] * self.B_rest.shape[1]

    def unpack(self, theta: Float[Tensor, " size"]) -> tuple[Float[Tensor, "r into"], Float[Tensor, "out r"]]:
        """Z_A (r, d_in − r) and Z_B (d_out − r, r) of θ."""
        rank, out, into = self.B.shape[1], self.B_rest.shape[1], self.A_rest.shape[0]
        return theta[: rank * into].view(rank, into), theta[rank * into :].view(out, rank)

    def moved(self, theta: Float[Tensor, " size"]) -> "Frame":
        """The frame after a step θ: A + Z_A A⊥ and B + B⊥ Z_B, orthonormal again."""
        Z_A, Z_B = self.unpack(theta)
        A = torch.linalg.qr((self.A + Z_A @ self.A_rest).mT).Q.mT
        return Frame.at(A, torch.linalg.qr(self.B + self.B_rest @ Z_B).Q)


def jacobian(block: Block, frame: Frame, cores: Float[Tensor, "k r r"]) -> Float[Tensor, "k n size"]:
    """Derivatives of the block's observations by θ, (k, n, size): of a row ⟨Λᵀ Bᵀ X A⊥ᵀ, Z_A⟩ + ⟨B⊥ᵀ X Aᵀ Λᵀ, Z_B⟩."""
    turned = cores.mT.unsqueeze(1)
    by_A = turned @ (block.design.left(frame.B) @ frame.A_rest.mT)
    by_B = frame.B_rest.mT @ block.design.right(frame.A) @ turned
    return torch.cat([by_A.flatten(2), by_B.flatten(2)], dim=2)


def eliminated(found: Cores, J: Float[Tensor, "k n size"]) -> tuple[Float[Tensor, "size size"], Float[Tensor, " size"]]:
    """The block's part of S, (size, size), and of the right side Jᵀ (y − F Λ), (size,)."""
    crossed = (found.F.mT @ J).flatten(0, 1)  # (k r², size)
    solved = torch.cholesky_solve(crossed.view(len(J), found.F.shape[2], J.shape[2]), found.cholesky).flatten(0, 1)
    rows = J.flatten(0, 1)
    return rows.mT @ rows - crossed.mT @ solved, rows.mT @ found.residual.flatten()


def _complement(Q: Float[Tensor, "d r"]) -> Float[Tensor, "d d-r"]:
    return torch.linalg.qr(Q, mode="complete").Q[:, Q.shape[1] :]
