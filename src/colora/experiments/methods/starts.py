"""Starts that look at the weights or at a gradient first, for the methods whose factors stay frozen."""

from collections.abc import Callable

import torch
from torch import Tensor

from colora.errors import ConfigError
from colora.experiments.methods.federation import Traffic, message_bytes
from colora.experiments.methods.layer import ConstrainedLinear

__all__ = ["leading", "start_from_basis", "start_from_gradient", "start_from_weights"]

OVERSAMPLED, ITERATIONS = 8, 8
XS_SPREAD = 1e-5  # of Λ's start in LoRA-XS, arXiv:2405.17604


@torch.no_grad()
def start_from_weights(layers: dict[str, ConstrainedLinear]) -> None:
    """B = U_r Σ_r, A = V_rᵀ from the leading singular directions of W0, and Λ near zero (LoRA-XS)."""
    for layer in layers.values():
        for term in layer.term_layers():
            U, S, V = leading(layer.base.weight, term.A.shape[-2])
            term.A.copy_(V.T.expand_as(term.A))
            term.B.copy_((U * S).expand_as(term.B))
            if term.core is not None:
                term.core.normal_(std=XS_SPREAD)


def start_from_gradient(layers: dict[str, ConstrainedLinear], first_loss: Callable[[], Tensor]) -> Traffic:
    """B = U_r, A = V_rᵀ from the gradient of the first client's loss with respect to W0, and Λ = 0 (Fed-SB).

    Args:
        layers: the adapted layers; their terms add nothing yet.
        first_loss: computes that loss.

    Returns:
        bytes: the first client sends A and B, and all the others get them.
    """
    weights = {name: layer.base.weight for name, layer in layers.items()}
    for layer in layers.values():
        for term in layer.term_layers():
            if term.core is not None:
                term.core.data.zero_()
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        gradients = torch.autograd.grad(first_loss(), list(weights.values()))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    message: dict[str, Tensor] = {}
    with torch.no_grad():
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
            for term in layer.term_layers():
                U, _, V = leading(gradient, term.A.shape[-2])
                term.A.copy_(V.T.expand_as(term.A))
                term.B.copy_(U.expand_as(term.B))
                message |= {f"{name}.A": term.A[0], f"{name}.B": term.B[0]}
    size, clients = message_bytes(message), next(iter(layers.values())).tasks
    return Traffic(size, size * (clients - 1))


@torch.no_grad()
def start_from_basis(layers: dict[str, ConstrainedLinear]) -> None:
    """The second term as a basis of the first term's K LoRAs, and Λ_k as each one's coefficients in it (Share).

    B = the leading left singular vectors of (B_1, ..., B_K), Aᵀ = those of (A_1ᵀ, ..., A_Kᵀ), Λ_k = Bᵀ B_k A_k Aᵀ.

    Raises:
        ConfigError: if the basis has more directions than the K LoRAs have together.
    """
    for name, layer in layers.items():
        local, shared = layer.term_layers()
        if shared.core is None:
            raise ConfigError("expected cores in the second term of a method that makes a basis")
        rank, most = shared.A.shape[-2], local.A.shape[0] * local.A.shape[1]
        if rank > most:
            raise ConfigError(f"basis of layer {name!r}: expected a rank of at most {most}, found {rank}")
        left, right = local.B.double(), local.A.double()
        U = torch.linalg.svd(left.transpose(0, 1).flatten(1), full_matrices=False).U[:, :rank]
        V = torch.linalg.svd(right.flatten(0, 1), full_matrices=False).Vh[:rank].T
        shared.B.copy_(U.expand_as(shared.B))
        shared.A.copy_(V.T.expand_as(shared.A))
        shared.core.copy_((U.T @ left) @ (right @ V))


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `rank` singular triples, U (m, r), S (r,), V (n, r), in float32 at least."""
    work = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    q = min(rank + OVERSAMPLED, *work.shape)
    U, S, V = torch.svd_lowrank(work, q=q, niter=ITERATIONS)
    return U[:, :rank], S[:rank], V[:, :rank]
