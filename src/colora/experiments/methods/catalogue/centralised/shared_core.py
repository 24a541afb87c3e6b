"""The mirror of CoLoRA: one core for all tasks, factors of each task's own, W_k = W0 + s · B_k Λ A_k.

    Λ ← Adam(∇ Σ_k L_k) and A_k, B_k ← Adam(∇ L_k), in every step

The centralised form of `fed-core`, with the same sources and departures. The core starts at the identity and moves at
the rate of the cores.
"""

from colora.experiments.methods.method import OWN, SHARED, Method, Term

__all__ = ["SHARED_CORE"]

SHARED_CORE = Method(
    "shared-core",
    "core shared, A and B own",
    "One core for all tasks, between an A and a B of each task's own.",
    "after Seo et al., arXiv:2506.11024",
    terms=(Term(A=OWN, B=OWN, core=SHARED),),
    core_rate=True,
)
