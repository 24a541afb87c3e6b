"""What a solver went through: one entry an iteration, the same for all solvers."""

import time
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from colora.theory.factors import Factors, Truth, relative_error, subspace_distance
from colora.theory.users import Users

__all__ = ["Entry", "History"]


@dataclass(frozen=True)
class Entry:
    """An iteration.

    Attributes:
        start: number of the start it belongs to; 0 is the first.
        ridge: the penalty in force.
        objective: Σ_k ‖y_k − X_k(W_k)‖² + ridge ‖W_k‖².
        seconds: since the solver began.
        distance_A, distance_B: sines of the largest angles to the true row and column spaces; None if not known.
        error: relative error of all W_k; None if the truth is not known.
    """

    start: int
    ridge: float
    objective: float
    seconds: float
    distance_A: float | None = None
    distance_B: float | None = None
    error: float | None = None


@dataclass
class History:
    """Entries in their order; knows the truth, if there is one to compare with."""

    users: Users
    truth: Truth | None = None
    start: int = 0
    entries: list[Entry] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)
    _aside: float = 0.0  # seconds that comparing with the truth took, which are not the solver's

    def add(
        self,
        A: Float[Tensor, "r d_in"],
        B: Float[Tensor, "d_out r"],
        cores: Float[Tensor, "K r r"],
        objective: float,
        ridge: float,
    ) -> None:
        """Note the state after an iteration."""
        now = time.perf_counter()
        seconds = now - self._began - self._aside
        if self.truth is None:
            self.entries.append(Entry(self.start, ridge, objective, seconds))
            return
        shared = self.truth.shared
        entry = Entry(
            self.start,
            ridge,
            objective,
            seconds,
            distance_A=subspace_distance(A.mT, shared.A.mT),
            distance_B=subspace_distance(B, shared.B),
            error=relative_error(Factors(A, B, cores), self.truth, self.users),
        )
        self.entries.append(entry)
        self._aside += time.perf_counter() - now
