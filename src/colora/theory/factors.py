"""What is estimated: shared factors and a core for each user, and how far they are from the truth."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from colora.algebra import canonical_gauge, compose
from colora.errors import ColoraError
from colora.theory.users import Users

__all__ = ["Factors", "Truth", "relative_error", "subspace_distance"]


@dataclass(frozen=True)
class Factors:
    """W_k = B Λ_k A, with A (r, d_in), B (d_out, r) and cores (K, r, r), in float64."""

    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    cores: Float[Tensor, "K r r"]

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def of(self, users: Users) -> "Factors":
        """These factors, if they can be those of `users`.

        Raises:
            ColoraError: another number of cores, or matrices of another size.
        """
        expected = (len(users), users.d_out, users.d_in)
        found = (len(self.cores), self.B.shape[0], self.A.shape[1])
        if expected != found:
            raise ColoraError(f"factors: expected those of (K, d_out, d_in) = {expected}, found {found}")
        return self

    def canonical(self) -> "Factors":
        """The same matrices W_k with A Aᵀ = Bᵀ B = I; see `colora.algebra.canonical_gauge`."""
        return Factors(*canonical_gauge(self.A, self.B, self.cores))

    def matrices(self, indices: Int[Tensor, " k"] | slice = slice(None)) -> Float[Tensor, "k d_out d_in"]:
        """W_k of some users, (k, d_out, d_in)."""
        return compose(self.A, self.B, self.cores[indices])


@dataclass(frozen=True)
class Truth:
    """What a problem was made from: W_k = B_k Λ_k A_k.

    Attributes:
        shared: A*, B* and the cores Λ_k*.
        A_own (K, r, d_in), B_own (K, d_out, r): each user's own, where users do not share them; else None.
    """

    shared: Factors
    A_own: Float[Tensor, "K r d_in"] | None = None
    B_own: Float[Tensor, "K d_out r"] | None = None

    def matrices(self, indices: Int[Tensor, " k"] | slice = slice(None)) -> Float[Tensor, "k d_out d_in"]:
        """W_k of some users, (k, d_out, d_in)."""
        A = self.shared.A if self.A_own is None else self.A_own[indices]
        B = self.shared.B if self.B_own is None else self.B_own[indices]
        return compose(A, B, self.shared.cores[indices])


def subspace_distance(first: Float[Tensor, "d r"], second: Float[Tensor, "d q"]) -> float:
    """Sine of the largest principal angle between the spans of the columns: ‖(I − P₁) Q₂‖₂, from 0 to 1.

    Examples:
        >>> axes = torch.eye(3, dtype=torch.float64)
        >>> subspace_distance(axes[:, :2], axes[:, :2] @ torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64))
        0.0
        >>> subspace_distance(axes[:, :1], axes[:, 1:2])
        1.0
    """
    q1, q2 = torch.linalg.qr(first).Q, torch.linalg.qr(second).Q
    return min(1.0, float(torch.linalg.matrix_norm(q2 - q1 @ (q1.mT @ q2), 2)))


def relative_error(found: Factors | Float[Tensor, "K d_out d_in"], truth: Truth, users: Users | None = None) -> float:
    """√(Σ_k ‖Ŵ_k − W_k‖² / Σ_k ‖W_k‖²): 0 is recovery, 1 what guessing zero gives.

    Args:
        found: factors, or full matrices (K, d_out, d_in).
        truth: what they should be.
        users: only to go through the users block by block; all at once by default.
    """
    everyone: list[Tensor | slice] = [slice(None)] if users is None else [block.indices for block in users]
    wrong = total = 0.0
    for indices in everyone:
        W = truth.matrices(indices)
        guess = found[indices] if isinstance(found, Tensor) else found.matrices(indices)
        wrong += float((guess - W).square().sum())
        total += float(W.square().sum())
    return (wrong / total) ** 0.5
