"""Designs: the measurement matrices X_i of a block of users, and the few products with them that all solvers need.

User k observes y_i = ⟨X_i, W_k⟩ + noise. No solver forms X_i where it has structure: a design answers with Bᵀ X_i,
X_i Aᵀ and Σ_i w_i X_i. Rows of zeros measure nothing, so users with fewer samples than others are filled up with
them, and least squares needs no mask.

Shapes: k users, n rows each, factors A (r, d_in) and B (d_out, r), or one of each user with a leading k.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Dense", "Design", "Multivariate", "RankOne"]


class Design(ABC):
    """What a block of users measures; n counts scalar observations."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of: each (k, m, ...) for m samples of each of k users."""

    @abstractmethod
    def like(self, *tensors: Tensor) -> "Design":
        """A design of the same kind made of other tensors."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(k, n, d_out, d_in)."""

    @abstractmethod
    def left(self, B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r d_in"]:
        """Bᵀ X_i, shape (k, n, r, d_in)."""

    @abstractmethod
    def right(self, A: Float[Tensor, "... r d_in"]) -> Float[Tensor, "k n d_out r"]:
        """X_i Aᵀ, shape (k, n, d_out, r)."""

    @abstractmethod
    def core(self, A: Float[Tensor, "... r d_in"], B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r r"]:
        """Bᵀ X_i Aᵀ, shape (k, n, r, r): what the observation says of the core, for ⟨X, B Λ A⟩ = ⟨Bᵀ X Aᵀ, Λ⟩."""

    @abstractmethod
    def measure(self, W: Float[Tensor, "... d_out d_in"]) -> Float[Tensor, "k n"]:
        """⟨X_i, W_k⟩ of full matrices (k, d_out, d_in), or one (d_out, d_in) for all; shape (k, n)."""

    @abstractmethod
    def adjoint(self, weights: Float[Tensor, "k n"]) -> Float[Tensor, "k d_out d_in"]:
        """Σ_i w_i X_i for weights (k, n), shape (k, d_out, d_in)."""

    @abstractmethod
    def gram(self) -> Float[Tensor, "k n n"]:
        """⟨X_i, X_j⟩ of each user's rows, shape (k, n, n)."""

    @abstractmethod
    def energy(self) -> Float[Tensor, "k n"]:
        """‖X_i‖² of each row, shape (k, n)."""

    @property
    def per_sample(self) -> int:
        """Observations of one sample: more than one where a sample is a vector."""
        return self.shape[1] // self.tensors[0].shape[1]

    def rows(self, chosen: slice) -> "Design":
        """The same users with some of their samples."""
        return self._each(lambda one: one[:, chosen])

    def users(self, chosen: slice) -> "Design":
        """Some of the users."""
        return self._each(lambda one: one[chosen])

    def kept(self, real: Float[Tensor, "k m"]) -> "Design":
        """The same with zeros for every sample where `real` (k, m) is zero."""
        return self._each(lambda one: one * real.view(*real.shape, *[1] * (one.dim() - 2)))

    @staticmethod
    def together(designs: "Sequence[Design]") -> "Design":
        """All samples of all users of designs of one kind, as those of a single user."""
        columns = zip(*(design.tensors for design in designs), strict=True)
        return designs[0].like(*(torch.cat([one.flatten(0, 1) for one in column]).unsqueeze(0) for column in columns))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Design":
        return self.like(*map(change, self.tensors))


@dataclass(frozen=True)
class Dense(Design):
    """Any matrices: X (k, n, d_out, d_in)."""

    X: Float[Tensor, "k n d_out d_in"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.X,)

    def like(self, *tensors: Tensor) -> "Dense":
        return Dense(*tensors)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        k, n, d_out, d_in = self.X.shape
        return k, n, d_out, d_in

    def left(self, B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r d_in"]:
        return B.mT.unsqueeze(-3) @ self.X

    def right(self, A: Float[Tensor, "... r d_in"]) -> Float[Tensor, "k n d_out r"]:
        return self.X @ A.mT.unsqueeze(-3)

    def core(self, A: Float[Tensor, "... r d_in"], B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r r"]:
        return self.left(B) @ A.mT.unsqueeze(-3)

    def measure(self, W: Float[Tensor, "... d_out d_in"]) -> Float[Tensor, "k n"]:
        return (self.X.flatten(2) @ W.expand(self.X.shape[0], *W.shape[-2:]).flatten(1).unsqueeze(-1)).squeeze(-1)

    def adjoint(self, weights: Float[Tensor, "k n"]) -> Float[Tensor, "k d_out d_in"]:
        k, _, d_out, d_in = self.shape
        return (weights.unsqueeze(1) @ self.X.flatten(2)).view(k, d_out, d_in)

    def gram(self) -> Float[Tensor, "k n n"]:
        flat = self.X.flatten(2)
        return flat @ flat.mT

    def energy(self) -> Float[Tensor, "k n"]:
        return self.X.square().sum((2, 3))


@dataclass(frozen=True)
class RankOne(Design):
    """X_i = u_i v_iᵀ: U (k, n, d_out), V (k, n, d_in); an observation is u_iᵀ W_k v_i."""

    U: Float[Tensor, "k n d_out"]
    V: Float[Tensor, "k n d_in"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.U, self.V)

    def like(self, *tensors: Tensor) -> "RankOne":
        return RankOne(*tensors)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        k, n, d_out = self.U.shape
        return k, n, d_out, self.V.shape[2]

    def left(self, B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r d_in"]:
        return (self.U @ B).unsqueeze(-1) * self.V.unsqueeze(-2)

    def right(self, A: Float[Tensor, "... r d_in"]) -> Float[Tensor, "k n d_out r"]:
        return self.U.unsqueeze(-1) * (self.V @ A.mT).unsqueeze(-2)

    def core(self, A: Float[Tensor, "... r d_in"], B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r r"]:
        return (self.U @ B).unsqueeze(-1) * (self.V @ A.mT).unsqueeze(-2)

    def measure(self, W: Float[Tensor, "... d_out d_in"]) -> Float[Tensor, "k n"]:
        return ((self.U @ W) * self.V).sum(-1)

    def adjoint(self, weights: Float[Tensor, "k n"]) -> Float[Tensor, "k d_out d_in"]:
        return (self.U * weights.unsqueeze(-1)).mT @ self.V

    def gram(self) -> Float[Tensor, "k n n"]:
        return (self.U @ self.U.mT) * (self.V @ self.V.mT)

    def energy(self) -> Float[Tensor, "k n"]:
        return self.U.square().sum(2) * self.V.square().sum(2)


@dataclass(frozen=True)
class Multivariate(Design):
    """y_i = W_k x_i, all d_out entries: X (k, m, d_in); row i·d_out + j is the matrix e_j x_iᵀ, so n = m d_out."""

    X: Float[Tensor, "k m d_in"]
    d_out: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.X,)

    def like(self, *tensors: Tensor) -> "Multivariate":
        return Multivariate(tensors[0], self.d_out)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        k, n, d_in = self.X.shape
        return k, n * self.d_out, self.d_out, d_in

    def left(self, B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r d_in"]:
        return (B.unsqueeze(-3).unsqueeze(-1) * self.X.unsqueeze(-2).unsqueeze(-2)).flatten(1, 2)

    def right(self, A: Float[Tensor, "... r d_in"]) -> Float[Tensor, "k n d_out r"]:
        return self._as_rank_one().right(A)

    def core(self, A: Float[Tensor, "... r d_in"], B: Float[Tensor, "... d_out r"]) -> Float[Tensor, "k n r r"]:
        return (B.unsqueeze(-3).unsqueeze(-1) * (self.X @ A.mT).unsqueeze(-2).unsqueeze(-2)).flatten(1, 2)

    def measure(self, W: Float[Tensor, "... d_out d_in"]) -> Float[Tensor, "k n"]:
        return (self.X @ W.mT).flatten(1)

    def adjoint(self, weights: Float[Tensor, "k n"]) -> Float[Tensor, "k d_out d_in"]:
        return weights.unflatten(1, (-1, self.d_out)).mT @ self.X

    def gram(self) -> Float[Tensor, "k n n"]:
        return torch.kron(self.X @ self.X.mT, torch.eye(self.d_out, dtype=self.X.dtype))

    def energy(self) -> Float[Tensor, "k n"]:
        return self.X.square().sum(2).repeat_interleave(self.d_out, dim=1)

    def _as_rank_one(self) -> RankOne:
        k, n, _ = self.X.shape
        units = torch.eye(self.d_out, dtype=self.X.dtype).repeat(n, 1).expand(k, -1, -1)
        return RankOne(units, self.X.repeat_interleave(self.d_out, dim=1))
