"""One factor for all tasks, the other of each task's own.

    alora:     W_k = W0 + s · B A_k        B ← Adam(∇ Σ_k L_k), A_k ← Adam(∇ L_k)      (Ban and Ji, arXiv:2509.25414)
    shared-a:  W_k = W0 + s · B_k A        A ← Adam(∇ Σ_k L_k), B_k ← Adam(∇ L_k)

ALoRA has several A and a single B for multi-task fine-tuning; here there is one A for each task, which all rows of the
task take, so nothing chooses among them. The mirror is FedSA-LoRA (Guo et al., arXiv:2410.01463) without rounds: what
is averaged there is trained on the sum of all losses.
"""

from colora.experiments.methods.method import OWN, SHARED, Method, Term

__all__ = ["ALORA", "SHARED_A"]

ALORA = Method(
    "alora",
    "ALoRA: B shared, A own",
    "One B for all tasks and an A of its own for each, trained together.",
    "Ban and Ji, arXiv:2509.25414",
    terms=(Term(A=OWN, B=SHARED),),
)
SHARED_A = Method(
    "shared-a",
    "A shared, B own",
    "One A for all tasks and a B of its own for each, trained together.",
    "after Guo et al., arXiv:2410.01463",
    terms=(Term(A=SHARED, B=OWN),),
)
