"""Ditto: a global model by averaging, and each client's own model held near it (Li et al., arXiv:2012.04221).

    client k:  A'_k, B'_k ← Adam(∇ L_k(W0 + s · B'_k A'_k)), then A'_k ← A'_k − η · pull · (A'_k − A), B'_k likewise,
               with A and B as the server sent them
               A_k, B_k ← Adam(∇ L_k(W0 + s · B_k A_k))
    server:    A = mean_k A_k,  B = mean_k B_k              W_k = W0 + s · B'_k A'_k

The own model begins where the global one begins, and has the share `own_share`, rounded down, of the steps of each
round. `release` is the share of the steps after which the pull falls linearly to zero. Departures: the paper's λ (here
`pull`) is part of the gradient, here it is a proximal step at the rate η of the step, for Adam would undo the size of a
gradient; the paper has whole models, here factors are drawn to factors, which one start for all makes comparable.
"""

from colora.experiments.methods.method import MEAN, OWN, Method, Term
from colora.experiments.methods.schedule import Moment, Turn

__all__ = ["DITTO"]


def _own_then_global(moment: Moment) -> Turn:
    if moment.local_step < int(moment.round_steps * moment.options["own_share"]):
        return Turn(frozen=frozenset({"A", "B"}), silent=frozenset({0}))
    return Turn(frozen=frozenset({"A'", "B'"}), silent=frozenset({1}))


DITTO = Method(
    "ditto",
    "Ditto",
    "Federated: a global LoRA is averaged, and each client answers with a LoRA of its own that is drawn towards it.",
    "Li et al., arXiv:2012.04221",
    terms=(Term(A=MEAN, B=MEAN), Term(A=OWN, B=OWN)),
    schedule=_own_then_global,
    unused=frozenset({0}),
    federated=True,
    pull_to="first",
    options={"own_share": 0.5, "pull": 1.0, "release": 1.0},
)
