"""Local LoRA: one for each task, W_k = W0 + s · B_k A_k (Hu et al., arXiv:2106.09685).

    A_k, B_k ← Adam(∇ L_k)          nothing is shared

Once at CoLoRA's rank r, with K times the parameters, and once with about as many as CoLoRA trains in all, which is
a rank of 1 or a little more. The K adapters train in one batched run; Adam is elementwise, so it is the same as K runs.
"""

from colora.experiments.methods.method import OWN, Method, Sizes, Term

__all__ = ["LOCAL", "LOCAL_MATCHED"]


def _matched(sizes: Sizes) -> int:
    return max(1, round(sizes.colora / (sizes.tasks * sizes.widths)))


LOCAL = Method(
    "local",
    "local LoRA, same rank",
    "A LoRA of its own for each task, trained on that task alone.",
    "Hu et al., arXiv:2106.09685",
    terms=(Term(A=OWN, B=OWN),),
)
LOCAL_MATCHED = Method(
    "local-matched",
    "local LoRA, same parameters",
    "As local, with the rank at which all tasks together train about as many parameters as colora.",
    "Hu et al., arXiv:2106.09685",
    terms=(Term(A=OWN, B=OWN, rank=_matched),),
)
