"""One LoRA for all tasks and one of each task's own, trained together: W_k = W0 + s · (B A + B'_k A'_k).

    A, B ← Adam(∇ Σ_k L_k) and A'_k, B'_k ← Adam(∇ L_k), in every step

The centralised form of a global and a local adapter, as FedDPA has them (Yang et al., arXiv:2403.19211): one sum of
losses in place of rounds, and the two parts learn at once. `own_rank` is the rank of the tasks' own LoRAs, 0 for that
of the common one.
"""

from colora.experiments.methods.method import OWN, SHARED, Method, Term, rank_option

__all__ = ["POOLED_AND_OWN"]

POOLED_AND_OWN = Method(
    "pooled-and-own",
    "pooled LoRA and one each, together",
    "One LoRA for all tasks and one for each task, trained at the same time.",
    "after Yang et al., arXiv:2403.19211",
    terms=(Term(A=SHARED, B=SHARED), Term(A=OWN, B=OWN, rank=rank_option("own_rank"))),
    options={"own_rank": 0},
)
