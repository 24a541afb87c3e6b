"""How well the cores of all users, taken together, determine the shared factors.

In the canonical gauge the stack of K cores is the stack of the W_k in shared coordinates. Its three unfoldings say
different things, and none of them is the condition of a single core: users with badly conditioned but different cores
may be well conditioned together (the theory's diversity of tasks, arXiv:2602.07218).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from colora.theory.factors import Factors

__all__ = ["Conditioning", "core_conditioning"]

UNUSED = 1e-12  # of the largest singular value: what rounding leaves of a zero


@dataclass(frozen=True)
class Conditioning:
    """Singular values, falling, of the unfoldings of the canonical cores (K, r, r).

    Attributes:
        out: of the cores side by side, r × K r: how much of the data is about each direction of B. One near zero is of
            a direction that hardly any user's W_k uses, and that hardly any sample tells.
        into: of the cores on top of each other, K r × r: the same for A.
        stack: of the cores as vectors, K × r²: how many different cores there are; one value where all users have the
            same core up to a factor, who then share a model and need no cores.
    """

    out: Float[Tensor, " r"]
    into: Float[Tensor, " r"]
    stack: Float[Tensor, " _"]

    @property
    def condition(self) -> float:
        """The larger of σ_max / σ_min of `out` and of `into`; infinite where a direction is used by nobody."""
        worst = min(float(values[-1]) / (float(values[0]) or 1.0) for values in (self.out, self.into))
        return 1.0 / worst if worst > UNUSED else float("inf")


def core_conditioning(factors: Factors) -> Conditioning:
    """The conditioning of all cores together; the same in every gauge.

    Examples:
        >>> unit = torch.eye(2, dtype=torch.float64)
        >>> first, second = torch.diag(unit[0]), torch.diag(unit[1])  # singular, both
        >>> core_conditioning(Factors(unit, unit, torch.stack([first, second]))).condition
        1.0
        >>> core_conditioning(Factors(unit, unit, torch.stack([first, first]))).condition
        inf
    """
    cores = factors.canonical().cores
    return Conditioning(
        torch.linalg.svdvals(cores.transpose(0, 1).flatten(1)),
        torch.linalg.svdvals(cores.flatten(0, 1)),
        torch.linalg.svdvals(cores.flatten(1)),
    )
