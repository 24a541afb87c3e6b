"""Designs: the measurement matrices X_i of a block of users, and the few products with them that all solvers need.

User k observes y_i = ⟨X_i, W_k⟩ + noise. No solver forms X_i where it has structure: a design answers with Bᵀ X_i,
X_i Aᵀ and Σ_i w_i X_i. Rows of zeros measure nothing, so users with fewer samples than others are filled up with
them, and least squares needs no mask.

Shapes: k users, n rows each, factors A (r, d_in) and B (d_out, r), or one of each user with a leading k.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Dense", "Design", "Multivariate", "RankOne"]


class Design(Protocol):
    """What a block of users measures; n counts scalar observations."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(k, n, d_out, d_in)."""

    def left(self, B: Tensor) -> Tensor:
        """Bᵀ X_i, shape (k, n, r, d_in)."""

    def right(self, A: Tensor) -> Tensor:
        """X_i Aᵀ, shape (k, n, d_out, r)."""

    def core(self, A: Tensor, B: Tensor) -> Tensor:
        """Bᵀ X_i Aᵀ, shape (k, n, r, r): what the observation says of the core, for ⟨X, B Λ A⟩ = ⟨Bᵀ X Aᵀ, Λ⟩."""

    def measure(self, W: Tensor) -> Tensor:
        """⟨X_i, W_k⟩ of full matrices (k, d_out, d_in), or one (d_out, d_in) for all; shape (k, n)."""

    def adjoint(self, weights: Tensor) -> Tensor:
        """Σ_i w_i X_i for weights (k, n), shape (k, d_out, d_in)."""

    def gram(self) -> Tensor:
        """⟨X_i, X_j⟩ of each user's rows, shape (k, n, n)."""

    def rows(self, chosen: slice) -> "Design":
        """The same users with some of their samples."""


@dataclass(frozen=True)
class Dense:
    """Any matrices: X (k, n, d_out, d_in)."""

    X: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        k, n, d_out, d_in = self.X.shape
        return k, n, d_out, d_in

    def left(self, B: Tensor) -> Tensor:
        return B.mT.unsqueeze(-3) @ self.X

    def right(self, A: Tensor) -> Tensor:
        return self.X @ A.mT.unsqueeze(-3)

    def core(self, A: Tensor, B: Tensor) -> Tensor:
        return self.left(B) @ A.mT.unsqueeze(-3)

    def measure(self, W: Tensor) -> Tensor:
        return (self.X.flatten(2) @ W.expand(self.X.shape[0], *W.shape[-2:]).flatten(1).unsqueeze(-1)).squeeze(-1)

    def adjoint(self, weights: Tensor) -> Tensor:
        k, _, d_out, d_in = self.shape
        return (weights.unsqueeze(1) @ self.X.flatten(2)).view(k, d_out, d_in)

    def gram(self) -> Tensor:
        flat = self.X.flatten(2)
        return flat @ flat.mT

    def rows(self, chosen: slice) -> "Dense":
        return Dense(self.X[:, chosen])


@dataclass(frozen=True)
class RankOne:
    """X_i = u_i v_iᵀ: U (k, n, d_out), V (k, n, d_in); an observation is u_iᵀ W_k v_i."""

    U: Tensor
    V: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        k, n, d_out = self.U.shape
        return k, n, d_out, self.V.shape[2]

    def left(self, B: Tensor) -> Tensor:
        return (self.U @ B).unsqueeze(-1) * self.V.unsqueeze(-2)

    def right(self, A: Tensor) -> Tensor:
        return self.U.unsqueeze(-1) * (self.V @ A.mT).unsqueeze(-2)

    def core(self, A: Tensor, B: Tensor) -> Tensor:
        return (self.U @ B).unsqueeze(-1) * (self.V @ A.mT).unsqueeze(-2)

    def measure(self, W: Tensor) -> Tensor:
        return ((self.U @ W) * self.V).sum(-1)

    def adjoint(self, weights: Tensor) -> Tensor:
        return (self.U * weights.unsqueeze(-1)).mT @ self.V

    def gram(self) -> Tensor:
        return (self.U @ self.U.mT) * (self.V @ self.V.mT)

    def rows(self, chosen: slice) -> "RankOne":
        return RankOne(self.U[:, chosen], self.V[:, chosen])


@dataclass(frozen=True)
class Multivariate:
    """y_i = W_k x_i, all d_out entries of it: X (k, m, d_in); row i·d_out + j is the matrix e_j x_iᵀ, so n = m d_out."""

    X: Tensor
    d_out: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        k, n, d_in = self.X.shape
        return k, n * self.d_out, self.d_out, d_in

    def left(self, B: Tensor) -> Tensor:
        return (B.unsqueeze(-3).unsqueeze(-1) * self.X.unsqueeze(-2).unsqueeze(-2)).flatten(1, 2)

    def right(self, A: Tensor) -> Tensor:
        return self._as_rank_one().right(A)

    def core(self, A: Tensor, B: Tensor) -> Tensor:
        return (B.unsqueeze(-3).unsqueeze(-1) * (self.X @ A.mT).unsqueeze(-2).unsqueeze(-2)).flatten(1, 2)

    def measure(self, W: Tensor) -> Tensor:
        return (self.X @ W.mT).flatten(1)

    def adjoint(self, weights: Tensor) -> Tensor:
        return weights.unflatten(1, (-1, self.d_out)).mT @ self.X

    def gram(self) -> Tensor:
        return torch.kron(self.X @ self.X.mT, torch.eye(self.d_out, dtype=self.X.dtype))

    def rows(self, chosen: slice) -> "Multivariate":
        return Multivariate(self.X[:, chosen], self.d_out)

    def _as_rank_one(self) -> RankOne:
        k, n, _ = self.X.shape
        units = torch.eye(self.d_out, dtype=self.X.dtype).repeat(n, 1).expand(k, -1, -1)
        return RankOne(units, self.X.repeat_interleave(self.d_out, dim=1))
