"""OPPU: a LoRA for all, then frozen, and on top of it one of each task's own (Tan et al., arXiv:2402.04401).

    stage 1:  A, B ← Adam(∇ Σ_k L_k)                       W_k = W0 + s · B A
    stage 2:  A'_k, B'_k ← Adam(∇ L_k), A and B frozen     W_k = W0 + s · (B A + B'_k A'_k)

The first stage has the share `first` of the steps, so that all steps together are as many as any method's; each stage
has its own warm-up and fall of the rates. `own_rank` is the rank of the tasks' own LoRAs, 0 for that of the common one.
In the paper the first stage fits the base model to the kind of task, told nothing of single users, and retrieved texts
and profiles may stand in the prompt; here both stages see the same tasks, and the prompts are those of all methods.
"""

from colora.experiments.methods.method import OWN, SHARED, Method, Term, rank_option
from colora.experiments.methods.schedule import first_then_second

__all__ = ["OPPU"]

OPPU = Method(
    "oppu",
    "OPPU: pooled LoRA, then one each on top",
    "One LoRA for all tasks, then frozen, and a LoRA of its own for each task trained on top of it.",
    "Tan et al., arXiv:2402.04401",
    terms=(Term(A=SHARED, B=SHARED), Term(A=OWN, B=OWN, rank=rank_option("own_rank"))),
    schedule=first_then_second,
    staged=True,
    options={"first": 0.5, "own_rank": 0},
)
