"""Alternating minimisation: A fixed, least squares for the cores and B; then B fixed, for the cores and A.

This is the algorithm of the theory (arXiv:2602.07218): from a spectral start it converges linearly to the truth when
there are enough samples and no noise. Each half needs one pass over the users and a matrix of (r d)² numbers.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.cores import JITTER, fit_block, fit_cores
from colora.theory.factors import Factors
from colora.theory.history import History
from colora.theory.stopping import Stopping
from colora.theory.users import Users

__all__ = ["alternate"]


def alternate(
    users: Users,
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    ridge: float,
    stopping: Stopping,
    history: History,
    splits: int = 1,
) -> tuple[Factors, float]:
    """Minimise Σ_k ‖y_k − X_k(B Λ_k A)‖² + ridge ‖B Λ_k A‖² from orthonormal A (r, d_in) and B (d_out, r).

    Args:
        users: the samples; gone through twice an iteration.
        ridge: weight of the penalty.
        stopping: when to end.
        history: gets an entry an iteration.
        splits: sample splitting: each half step uses the next of so many disjoint parts of everybody's samples, as
            proofs do to keep what is estimated independent of what it is estimated from; 1 uses all samples always.

    Returns:
        the factors in the canonical gauge up to a rotation, and the objective on all samples.
    """
    parts = [users] if splits == 1 else [users.part(number, splits) for number in range(splits)]
    half = 0
    while True:
        B, _, _ = _half_step(parts[half % splits], A, B, ridge, up=True)
        better_A, cores, objective = _half_step(parts[(half + 1) % splits], A, B, ridge, up=False)
        half += 2
        # These cores belong to the A that the half step began with.
        history.add(A, B, cores, objective, ridge)
        if stopping.reached(objective):
            break
        A = better_A
    if splits > 1:
        cores, objective = fit_cores(users, A, B, ridge)
    return Factors(A, B, cores), objective


def _half_step(
    users: Users, A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"], ridge: float, up: bool
) -> tuple[Float[Tensor, "_ _"], Float[Tensor, "K r r"], float]:
    """The cores for A and B, then the best B (`up`) or A for these cores, orthonormal again.

    The normal equations are those of the correction to the factor, with the residual on their right side. So the
    rounding in them goes to zero with the residual, and recovery is exact to the last digits.

    Returns:
        the new factor; the cores (K, r, r) and the objective before it.
    """
    old = B if up else A
    rank = A.shape[0]
    cores = torch.zeros(len(users), rank, rank, dtype=old.dtype)
    gram = torch.zeros(old.numel(), old.numel(), dtype=old.dtype)
    right = torch.zeros(old.numel(), dtype=old.dtype)
    objective = 0.0
    for block in users:
        found = fit_block(block, A, B, ridge)
        of_block = found.cores.unsqueeze(1)
        rows = block.design.right(A) @ of_block.mT if up else of_block.mT @ block.design.left(B)
        rows = rows.flatten(2).flatten(0, 1)
        gram += rows.mT @ rows
        right += rows.mT @ found.residual.flatten()
        cores[block.indices] = found.cores
        objective += found.objective
    if ridge:
        # ‖B Λ A‖² = tr(B Λ Λᵀ Bᵀ) where A is orthonormal, and tr(Aᵀ Λᵀ Λ A) where B is.
        unit = torch.eye(max(old.shape), dtype=old.dtype)
        weight = (cores @ cores.mT if up else cores.mT @ cores).sum(0)
        penalty = ridge * (torch.kron(unit, weight) if up else torch.kron(weight, unit))
        gram += penalty
        right -= penalty @ old.flatten()
    gram.diagonal().add_(JITTER * gram.diagonal().mean() + torch.finfo(old.dtype).tiny)
    new = old + torch.cholesky_solve(right.unsqueeze(1), torch.linalg.cholesky(gram)).view(old.shape)
    return (torch.linalg.qr(new).Q if up else torch.linalg.qr(new.mT).Q.mT), cores, objective
