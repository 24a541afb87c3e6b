"""Second order: Levenberg–Marquardt on the subspaces of A and B, with the cores eliminated.

For given A and B the cores are a least-squares problem, so the objective is a function of two subspaces alone. A step
solves

    (S + μ mean(diag S) I) θ = Σ_k J_kᵀ (y_k − F_k Λ_k)

with S of `tangent`, moves along θ, and solves for the cores again; μ falls when the objective does, and rises until
it does. Near a solution without noise convergence is quadratic. Memory holds S, (2 r d)² numbers, and one block's rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.cores import fit_block, fit_cores
from colora.theory.factors import Factors
from colora.theory.history import History
from colora.theory.stopping import Stopping
from colora.theory.tangent import Frame, eliminated, jacobian
from colora.theory.users import Users

__all__ = ["levenberg_marquardt"]

FIRST_DAMPING, LEAST_DAMPING, RISE, FALL = 1e-2, 1e-14, 4.0, 5.0
MOST_RISES = 14  # a factor of 3e8: if even that step does not help, none does


def levenberg_marquardt(
    users: Users,
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    ridge: float,
    stopping: Stopping,
    history: History,
) -> tuple[Factors, float]:
    """Minimise Σ_k ‖y_k − X_k(B Λ_k A)‖² + ridge ‖B Λ_k A‖² from orthonormal A (r, d_in) and B (d_out, r).

    Args:
        users: the samples; gone through once an iteration and once for each step tried.
        ridge: weight of the penalty.
        stopping: when to end.
        history: gets an entry an iteration.

    Returns:
        the factors in the canonical gauge up to a rotation, and their objective.
    """
    frame, damping = Frame.at(A, B), FIRST_DAMPING
    cores, objective = fit_cores(users, A, B, ridge)
    history.add(frame.A, frame.B, cores, objective, ridge)
    while not stopping.reached(objective) and frame.size:  # with r = d_out = d_in there is nothing to share
        schur, right = _normal_equations(users, frame, ridge)
        unit = schur.diagonal().mean() * torch.eye(len(schur), dtype=A.dtype)
        for _ in range(MOST_RISES):
            step = torch.linalg.solve(schur + damping * unit, right)
            moved = frame.moved(step)
            better, lower = fit_cores(users, moved.A, moved.B, ridge)
            if lower < objective:
                break
            damping *= RISE
        else:
            break  # nowhere to go from here
        frame, cores, objective = moved, better, lower
        damping = max(damping / FALL, LEAST_DAMPING)
        history.add(frame.A, frame.B, cores, objective, ridge)
    return Factors(frame.A, frame.B, cores), objective


def _normal_equations(
    users: Users, frame: Frame, ridge: float
) -> tuple[Float[Tensor, "size size"], Float[Tensor, " size"]]:
    schur = torch.zeros(frame.size, frame.size, dtype=frame.A.dtype)
    right = torch.zeros(frame.size, dtype=frame.A.dtype)
    for block in users:
        found = fit_block(block, frame.A, frame.B, ridge)
        of_block, of_right = eliminated(found, jacobian(block, frame, found.cores))
        schur += of_block
        right += of_right
    return (schur + schur.mT) / 2, right
