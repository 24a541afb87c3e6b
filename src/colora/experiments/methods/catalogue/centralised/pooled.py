"""Pooled LoRA: one for all tasks, W_k = W0 + s · B A (Hu et al., arXiv:2106.09685).

    A, B ← Adam(∇ Σ_k L_k)

Once at rank r of CoLoRA, and once with at least as many parameters as CoLoRA trains: the next larger rank or so.
"""

import math

from colora.experiments.methods.method import SHARED, Method, Sizes, Term

__all__ = ["POOLED", "POOLED_MATCHED"]


def _matched(sizes: Sizes) -> int:
    return math.ceil(sizes.colora / sizes.widths)


POOLED = Method(
    "pooled",
    "pooled LoRA, same rank",
    "One LoRA, trained on the examples of all tasks.",
    "Hu et al., arXiv:2106.09685",
    terms=(Term(A=SHARED, B=SHARED),),
)
POOLED_MATCHED = Method(
    "pooled-matched",
    "pooled LoRA, same parameters",
    "As pooled, with the rank at which it trains about as many parameters as colora.",
    "Hu et al., arXiv:2106.09685",
    terms=(Term(A=SHARED, B=SHARED, rank=_matched),),
)
