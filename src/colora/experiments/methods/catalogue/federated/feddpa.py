"""FedDPA: a global LoRA averaged each round, and a local one that stays at home (Yang et al., arXiv:2403.19211).

    W_k = W0 + s · (B A + B'_k A'_k)

    feddpa (FedDPA-T), in each round but the first, client k:
        A'_k, B'_k ← Adam(∇ L_k(W0 + s · (B A + B'_k A'_k))), A and B as the server sent them
        A_k, B_k   ← Adam(∇ L_k(W0 + s · B_k A_k)), without the local LoRA
    server:  A = mean_k A_k, B = mean_k B_k
    feddpa-f (FedDPA-F): rounds of the global LoRA alone, as FedIT; then it is frozen, and each client trains its local
    one on top of it, without further messages

In feddpa the local LoRA has the share `own_share`, rounded down, of the steps of each round but the first, which is the
global one's alone, as in the authors' code; in feddpa-f the global one has the share `first` of all steps, in whole
rounds, and each of the two stages has its own warm-up and fall of the rates. Departures: the two LoRAs are added, each
at the full scale; the paper weighs them, by a constant in training and by each input's likeness to the client's
training data when it answers. `own_rank` is the rank of the local LoRAs, 0 for that of the global one.
"""

from colora.experiments.methods.method import MEAN, OWN, Method, Term, rank_option
from colora.experiments.methods.schedule import Moment, Turn, first_then_second

__all__ = ["FEDDPA", "FEDDPA_F"]

_TERMS = (Term(A=MEAN, B=MEAN), Term(A=OWN, B=OWN, rank=rank_option("own_rank")))


def _local_then_global(moment: Moment) -> Turn:
    local = int(moment.round_steps * moment.options["own_share"]) if moment.round_number else 0
    if moment.local_step < local:
        return Turn(frozen=frozenset({"A", "B"}))
    return Turn(frozen=frozenset({"A'", "B'"}), silent=frozenset({1}))


FEDDPA = Method(
    "feddpa",
    "FedDPA-T",
    "Federated: a global LoRA is averaged, each client keeps a local one, and the two are trained in turns.",
    "Yang et al., arXiv:2403.19211",
    terms=_TERMS,
    schedule=_local_then_global,
    federated=True,
    options={"own_share": 0.5, "own_rank": 0},
)
FEDDPA_F = Method(
    "feddpa-f",
    "FedDPA-F",
    "Federated: rounds of a global LoRA, then each client trains a local one on top of it.",
    "Yang et al., arXiv:2403.19211",
    terms=_TERMS,
    schedule=first_then_second,
    staged=True,
    federated=True,
    options={"first": 0.5, "own_rank": 0},
)
