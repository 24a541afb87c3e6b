"""What collaboration is compared with: every user alone, one model for all, and an oracle that knows the subspaces.

All give full matrices W_k, (K, d_out, d_in), and take the ridge of `recover`: the weight of ‖W_k‖² beside ‖y_k −
X_k(W_k)‖².
"""

import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.cores import JITTER, fit_cores
from colora.theory.design import Design
from colora.theory.factors import Factors, Truth
from colora.theory.recover import recover
from colora.theory.settings import SolverSettings
from colora.theory.stopping import Stopping
from colora.theory.users import Block, Users

__all__ = ["local_least_squares", "local_low_rank", "local_second_order", "oracle", "pooled"]

RANK_TOLERANCE = 1e-10  # of the largest eigenvalue, below which a direction counts as not measured


def local_least_squares(users: Users, ridge: float = 0.0) -> Float[Tensor, "K d_out d_in"]:
    """Each user alone: min ‖y_k − X_k(W)‖² + ridge ‖W‖², of several solutions the one of least norm.

    W_k = Σ_i α_i X_i with (G_k + ridge I) α = y_k, where G_k holds the inner products ⟨X_i, X_j⟩: a matrix of n²
    numbers in place of (d_out d_in)².
    """
    found = torch.zeros(len(users), users.d_out, users.d_in, dtype=torch.float64)
    for block in users:
        gram = block.design.gram()
        gram = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype)
        inverse = torch.linalg.pinv(gram, rtol=RANK_TOLERANCE, hermitian=True)
        found[block.indices] = block.design.adjoint((inverse @ block.y.unsqueeze(-1)).squeeze(-1))
    return found


def local_low_rank(
    users: Users, rank: int, ridge: float = 0.0, max_iter: int = 1000, tol: float = 1e-7
) -> Float[Tensor, "K d_out d_in"]:
    """Each user alone with W_k = B_k A_k of rank r, by alternating least squares from a spectral start.

    All users of a block at once, until the last of them has ended. Without a core there is nothing to share; alone, a
    user has r (d_out + d_in) − r² degrees of freedom.
    """
    found = torch.zeros(len(users), users.d_out, users.d_in, dtype=torch.float64)
    for block in users:
        B = torch.linalg.svd(block.design.adjoint(block.y), full_matrices=False).U[:, :, :rank]
        A = torch.zeros(len(block.indices), rank, users.d_in, dtype=torch.float64)
        stopping = Stopping(max_iter, tol, float(block.y.square().sum()))
        while True:
            A, _ = _improved(block, block.design.left(B), A, ridge)
            A = torch.linalg.qr(A.mT).Q.mT
            B, objective = _improved(block, block.design.right(A), torch.zeros_like(B), ridge)
            found[block.indices] = B @ A
            if stopping.reached(objective):
                break
            B = torch.linalg.qr(B).Q
            A = torch.zeros_like(A)
    return found


def local_second_order(users: Users, rank: int, ridge: float = 0.0) -> Float[Tensor, "K d_out d_in"]:
    """Each user alone with the second-order solver, its annealing and its restarts: `recover` of a single user."""
    found = torch.zeros(len(users), users.d_out, users.d_in, dtype=torch.float64)
    for block in users:
        for number, index in enumerate(block.indices.tolist()):
            design, y = block.design.users(slice(number, number + 1)), block.y[number : number + 1]
            alone = Users.of(
                [Block(design, y, torch.zeros(1, dtype=torch.long))], users.observations[index : index + 1]
            )
            found[index] = recover(alone, rank, SolverSettings(ridge=ridge)).factors.matrices()[0]
    return found


def pooled(users: Users, rank: int, ridge: float = 0.0) -> Float[Tensor, "K d_out d_in"]:
    """One W of rank r for everybody, from all samples as if one user had them. They are brought into memory."""
    blocks = list(users)
    y = torch.cat([block.y.flatten() for block in blocks]).unsqueeze(0)
    together = Block(Design.together([block.design for block in blocks]), y, torch.zeros(1, dtype=torch.long))
    everyone = Users.of([together], users.observations.sum().view(1))
    W = recover(everyone, rank, SolverSettings(ridge=ridge, restarts=0)).factors.matrices()[0]
    return W.expand(len(users), -1, -1)


def oracle(users: Users, truth: Truth, ridge: float = 0.0) -> Factors:
    """The cores for the true A* and B*: what nobody who has to estimate these can beat, where they are shared."""
    shared = truth.shared.canonical()
    cores, _ = fit_cores(users, shared.A, shared.B, ridge)
    return Factors(shared.A, shared.B, cores)


def _improved(
    block: Block, features: Float[Tensor, "k n rows columns"], old: Float[Tensor, "k _ _"], ridge: float
) -> tuple[Float[Tensor, "k _ _"], float]:
    """The least-squares solution for features (k, n, ., .), in two rounds, and the objective of the block."""
    rows = features.flatten(2)
    gram = rows.mT @ rows
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(rows.dtype).tiny)
    unit = torch.eye(gram.shape[-1], dtype=rows.dtype)
    cholesky = torch.linalg.cholesky(gram + (ridge + JITTER * scale)[:, None, None] * unit)
    flat = old.flatten(1).unsqueeze(-1)
    for _ in range(2):  # the second for what rounding in the first left over
        rest = block.y.unsqueeze(-1) - rows @ flat
        flat = flat + torch.cholesky_solve(rows.mT @ rest - ridge * flat, cholesky)
    rest = block.y.unsqueeze(-1) - rows @ flat
    return flat.view_as(old), float(rest.square().sum()) + ridge * float(flat.square().sum())
