"""The size of a core: r × r numbers that mix the leading r directions of A and B, which may have more.

Examples:
    >>> import torch
    >>> resized_core(torch.ones(1, 1), 2).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["resized_core"]


def resized_core(core: Float[Tensor, "*K q q"], r: int) -> Float[Tensor, "*K {r} {r}"]:
    """The leading r × r corner of a core, a view; where the core is smaller, a copy with zeros beyond it.

    Against A and B of higher rank, the core with zeros is the same update; the corner of a larger one is not.
    """
    more = r - core.shape[-1]
    return core[..., :r, :r] if more <= 0 else pad(core, (0, more, 0, more))
