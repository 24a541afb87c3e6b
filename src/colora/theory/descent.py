"""Gradient descent on A, B and all cores at once, plain and scaled.

With G_k = Σ_i (⟨X_i, W_k⟩ − y_i) X_i the gradients of half the objective are

    ∇A = Σ_k Λ_kᵀ Bᵀ G_k,    ∇B = Σ_k G_k Aᵀ Λ_kᵀ,    ∇Λ_k = Bᵀ G_k Aᵀ.

The scaled one divides each by the curvature that the other two give it, so that its rate does not depend on how well
the cores are conditioned (Tong, Ma and Chi, JMLR 22, 2021; for Tucker decompositions Tong et al., JMLR 23, 2022):

    ∇A ← (Σ_k Λ_kᵀ Bᵀ B Λ_k)⁻¹ ∇A,    ∇B ← ∇B (Σ_k Λ_k A Aᵀ Λ_kᵀ)⁻¹,    ∇Λ_k ← (Bᵀ B)⁻¹ ∇Λ_k (A Aᵀ)⁻¹.

Neither goes back to orthonormal factors on its way. A step that raises the objective is taken back and halved.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.cores import core_energy, fit_cores
from colora.theory.factors import Factors
from colora.theory.history import History
from colora.theory.stopping import Stopping
from colora.theory.users import Users

__all__ = ["descend"]

GROWTH = 1.1  # of the step size after a step that helped
MOST_HALVINGS = 40


def descend(
    users: Users,
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    ridge: float,
    stopping: Stopping,
    history: History,
    scaled: bool,
) -> tuple[Factors, float]:
    """Minimise Σ_k ‖y_k − X_k(B Λ_k A)‖² + ridge ‖B Λ_k A‖² from orthonormal A (r, d_in) and B (d_out, r).

    The cores begin at their least-squares solution with a ridge as large as the samples, which is stable where
    samples are few. The first step size is the inverse of an estimate of the curvature.

    Args:
        users: the samples; gone through once for each step tried.
        ridge: weight of the penalty.
        stopping: when to end.
        history: gets an entry an iteration.
        scaled: whether gradients are divided by their curvature.

    Returns:
        the factors, not in the canonical gauge, and their objective.
    """
    weight = core_energy(users, A, B)
    cores, _ = fit_cores(users, A, B, ridge + weight)
    # Plain descent wants factors and cores of like size; the scaled one does not mind.
    size = 1.0 if scaled else float(torch.linalg.matrix_norm(cores.flatten(0, 1), 2)) ** (1 / 3) or 1.0
    step = 0.5 / max(weight * size**4, torch.finfo(A.dtype).tiny)
    here = _evaluated(users, Factors(size * A, size * B, cores / size**2), ridge)
    while not stopping.reached(here.objective):
        direction = _scaled(here) if scaled else here.gradient
        for _ in range(MOST_HALVINGS):
            there = _evaluated(users, _moved(here.factors, direction, step), ridge)
            if there.objective < here.objective:
                break
            step /= 2
        else:
            break
        here, step = there, step * GROWTH
        history.add(here.factors.A, here.factors.B, here.factors.cores, here.objective, ridge)
    return here.factors, here.objective


@dataclass(frozen=True)
class _State:
    factors: Factors
    gradient: Factors
    objective: float


def _evaluated(users: Users, at: Factors, ridge: float) -> _State:
    """The objective and its gradient, in one pass."""
    A, B = at.A, at.B
    grad_A, grad_B, grad_cores = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(at.cores)
    objective = 0.0
    for block in users:
        cores = at.cores[block.indices]
        wrong = (block.design.core(A, B) * cores.unsqueeze(1)).sum((2, 3)) - block.y
        G = block.design.adjoint(wrong)
        if ridge:
            W = at.matrices(block.indices)
            G = G + ridge * W
            objective += ridge * float(W.square().sum())
        objective += float(wrong.square().sum())
        beside, above = G @ A.mT, B.mT @ G
        grad_A += (cores.mT @ above).sum(0)
        grad_B += (beside @ cores.mT).sum(0)
        grad_cores[block.indices] = B.mT @ beside
    return _State(at, Factors(grad_A, grad_B, grad_cores), objective)


def _scaled(here: _State) -> Factors:
    at, gradient = here.factors, here.gradient
    of_A, of_B = at.A @ at.A.mT, at.B.mT @ at.B
    for_A = (at.cores.mT @ of_B @ at.cores).sum(0)
    for_B = (at.cores @ of_A @ at.cores.mT).sum(0)
    return Factors(
        torch.linalg.solve(for_A, gradient.A),
        torch.linalg.solve(for_B, gradient.B.mT).mT,
        torch.linalg.solve(of_B, torch.linalg.solve(of_A, gradient.cores.mT).mT),
    )


def _moved(at: Factors, direction: Factors, step: float) -> Factors:
    return Factors(at.A - step * direction.A, at.B - step * direction.B, at.cores - step * direction.cores)
