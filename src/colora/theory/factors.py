"""What is estimated: shared factors and a core for each user, and how far they are from the truth."""

from dataclasses import dataclass

import torch
from torch import Tensor

from colora.algebra import canonical_gauge, compose
from colora.errors import ColoraError
from colora.theory.users import Users

__all__ = ["Factors", "Truth", "relative_error", "subspace_distance"]


@dataclass(frozen=True)
class Factors:
    """W_k = B Λ_k A, with A (r, d_in), B (d_out, r) and cores (K, r, r), in float64."""

    A: Tensor
    B: Tensor
    cores: Tensor

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

    def matrices(self, places: Tensor | slice = slice(None)) -> Tensor:
        """W_k of some users, (k, d_out, d_in)."""
        return compose(self.A, self.B, self.cores[places])


@dataclass(frozen=True)
class Truth:
    """What a problem was made from: W_k = B_k Λ_k A_k.

    Attributes:
        shared: A*, B* and the cores Λ_k*.
        A_own (K, r, d_in), B_own (K, d_out, r): each user's own, where users do not share them; else None.
    """

    shared: Factors
    A_own: Tensor | None = None
    B_own: Tensor | None = None

    def matrices(self, places: Tensor | slice = slice(None)) -> Tensor:
        """W_k of some users, (k, d_out, d_in)."""
        A = self.shared.A if self.A_own is None else self.A_own[places]
        B = self.shared.B if self.B_own is None else self.B_own[places]
        return compose(A, B, self.shared.cores[places])


def subspace_distance(first: Tensor, second: Tensor) -> float:
    """Sine of the largest principal angle between the spans of the columns: ‖(I − P₁) Q₂‖₂, from 0 to 1.

    Example:
        >>> axes = torch.eye(3, dtype=torch.float64)
        >>> subspace_distance(axes[:, :2], axes[:, :2] @ torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64))
        0.0
        >>> subspace_distance(axes[:, :1], axes[:, 1:2])
        1.0
    """
    q1, q2 = torch.linalg.qr(first).Q, torch.linalg.qr(second).Q
    return min(1.0, float(torch.linalg.matrix_norm(q2 - q1 @ (q1.mT @ q2), 2)))


def relative_error(found: Factors | Tensor, truth: Truth, users: Users | None = None) -> float:
    """√(Σ_k ‖Ŵ_k − W_k‖² / Σ_k ‖W_k‖²): 0 is recovery, 1 what guessing zero gives.

    Args:
        found: factors, or full matrices (K, d_out, d_in).
        truth: what they should be.
        users: only to go through the users block by block; all at once by default.
    """
    everyone: list[Tensor | slice] = [slice(None)] if users is None else [block.places for block in users]
    wrong = total = 0.0
    for places in everyone:
        W = truth.matrices(places)
        guess = found[places] if isinstance(found, Tensor) else found.matrices(places)
        wrong += float((guess - W).square().sum())
        total += float(W.square().sum())
    return (wrong / total) ** 0.5
