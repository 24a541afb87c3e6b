"""Where solvers begin: the spectral start of the theory, or orthonormal factors at random."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.users import Users

__all__ = ["random_start", "spectral_start"]


def spectral_start(users: Users, rank: int) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Leading singular spaces of the users' gradients at zero.

    G_k = Σ_i y_i X_i / n_k estimates W_k where the design is isotropic. B spans the r leading eigenvectors of
    Σ_k G_k G_kᵀ and A those of Σ_k G_kᵀ G_k: the factors of the stack's higher-order singular value decomposition
    (arXiv:2602.07218, initialisation; in the language models the same would be taken of the gradients of W0).

    Args:
        users: the samples; gone through once.
        rank: r, at most d_out and d_in.

    Returns:
        A (r, d_in) with A Aᵀ = I and B (d_out, r) with Bᵀ B = I.
    """
    out = torch.zeros(users.d_out, users.d_out, dtype=torch.float64)
    into = torch.zeros(users.d_in, users.d_in, dtype=torch.float64)
    for block in users:
        observed = users.observations[block.indices].clamp_min(1).unsqueeze(-1)
        gradients = block.design.adjoint(block.y / observed)
        # Side by side and on top of each other: sums over users as one product.
        beside, above = gradients.transpose(0, 1).flatten(1), gradients.flatten(0, 1)
        out += beside @ beside.mT
        into += above.mT @ above
    return torch.linalg.eigh(into).eigenvectors[:, -rank:].mT, torch.linalg.eigh(out).eigenvectors[:, -rank:]


def random_start(
    users: Users, rank: int, seed: int, number: int = 0
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Orthonormal factors from a uniform distribution: A (r, d_in) and B (d_out, r); the `number`-th of a seed."""
    generator = np.random.default_rng([seed, number, 260207218])
    A, B = (torch.from_numpy(generator.standard_normal((size, rank))) for size in (users.d_in, users.d_out))
    return torch.linalg.qr(A).Q.mT, torch.linalg.qr(B).Q
