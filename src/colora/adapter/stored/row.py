"""`RowForm`: how the cores of one task, of one rank, lie in a row of numbers.

A row is a task: of each layer, one layer after the other, the core; then, in the same order, the first moments, the
second moments, and the number of steps.

Examples:
    >>> form = RowForm(2, layers=[4, 4])
    >>> form.sizes, form.numbers, form.width
    ([4, 4], 8, 26)
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

__all__ = ["RowForm"]


class RowForm:
    """The rows of tasks whose cores have one rank.

    Args:
        rank: of the cores.
        layers: rank of the stack of each layer; a core is no larger than its stack.

    Attributes:
        ranks: of the core in each layer. sizes: numbers of these cores.
        numbers: of all of them together. width: of a row.
    """

    def __init__(self, rank: int, layers: Sequence[int]) -> None:
        self.rank = rank
        self.ranks = [min(rank, layer) for layer in layers]
        self.sizes = [one * one for one in self.ranks]
        self.numbers = sum(self.sizes)
        self.width = self.numbers * 3 + len(self.sizes)

    def cores(self, row: Float[Tensor, " numbers"]) -> list[Float[Tensor, "r r"]]:
        """The core of each layer, views of the beginning of a row."""
        parts = row[: self.numbers].split(self.sizes)
        return [part.view(rank, rank) for part, rank in zip(parts, self.ranks, strict=True)]

    def parts(self, rows: Float[Tensor, "n width"], moments: bool) -> list[list[Tensor]]:
        """Views of the columns, layer by layer: cores (n, r, r); and with `moments` both of them, and steps (n,)."""
        values, first, second, steps = rows.split([self.numbers] * 3 + [len(self.sizes)], 1)
        found = [
            [one.view(len(rows), rank, rank) for one, rank in zip(part.split(self.sizes, 1), self.ranks, strict=True)]
            for part in (values, first, second)
        ]
        return [*found, list(steps.unbind(1))] if moments else found[:1]
