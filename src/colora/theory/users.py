"""Users: the samples of K users, as blocks that are gone through one after another.

A block holds the rows of some users side by side, so that everything is computed for all of them at once. What goes
through all users goes through the blocks, and keeps of each no more than sums and r × r cores: the blocks may be made
anew, or read from disk, at every pass.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from colora.errors import ColoraError
from colora.theory.design import Design

__all__ = ["Block", "Users"]


@dataclass(frozen=True)
class Block:
    """Some users' samples.

    Attributes:
        design: what is measured, k users by n rows.
        y: what was observed, (k, n); zero where a user has fewer rows than others of the block.
        indices: which of the K users these are, (k,) integers.
    """

    design: Design
    y: Float[Tensor, "_ _"]
    indices: Int[Tensor, " _"]

    def __post_init__(self) -> None:
        k, n = self.design.shape[:2]
        if self.y.shape != (k, n) or self.indices.shape != (k,):
            raise ColoraError(
                f"block: expected y of shape {(k, n)} and indices of shape {(k,)}, "
                f"found {tuple(self.y.shape)} and {tuple(self.indices.shape)}"
            )


@dataclass(frozen=True)
class Users:
    """The samples of K users.

    Attributes:
        blocks: each user in one of them; may be gone through as often as one likes, as a list may.
        observations: scalar observations of each user, (K,) integers.
        d_out, d_in: of the matrices W_k.
    """

    blocks: Iterable[Block]
    observations: Int[Tensor, " K"]
    d_out: int
    d_in: int

    @classmethod
    def of(cls, blocks: list[Block], observations: Int[Tensor, " K"] | None = None) -> "Users":
        """Users in memory; every row of a block counts as an observation unless `observations` says how many do.

        Raises:
            ColoraError: no block, a user in two blocks or in none, or blocks of different sizes of W.
        """
        if not blocks:
            raise ColoraError("users: expected at least one block of samples, found none")
        sizes = {block.design.shape[2:] for block in blocks}
        if len(sizes) > 1:
            raise ColoraError(f"users: expected blocks of one d_out and d_in, found {sorted(sizes)}")
        indices = torch.cat([block.indices for block in blocks])
        if not torch.equal(indices.sort().values, torch.arange(len(indices))):
            raise ColoraError("users: expected each user from 0 to K - 1 in exactly one block")
        if observations is None:
            observations = torch.zeros(len(indices), dtype=torch.long)
            for block in blocks:
                observations[block.indices] = block.y.shape[1]
        ((d_out, d_in),) = sizes
        return cls(blocks, observations, d_out, d_in)

    def __len__(self) -> int:
        return len(self.observations)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    def part(self, number: int, parts: int) -> "Users":
        """Every `parts`-th sample of each user, from sample `number` on: disjoint parts for sample splitting."""
        per_sample = next(iter(self.blocks)).design.per_sample
        samples = (self.observations // per_sample - number + parts - 1).clamp_min(0) // parts
        return Users(_Part(self.blocks, number, parts), samples * per_sample, self.d_out, self.d_in)


@dataclass(frozen=True)
class _Part:
    blocks: Iterable[Block]
    number: int
    parts: int

    def __iter__(self) -> Iterator[Block]:
        chosen = slice(self.number, None, self.parts)
        for block in self.blocks:
            y = block.y.unflatten(1, (-1, block.design.per_sample))[:, chosen].flatten(1)
            yield Block(block.design.rows(chosen), y, block.indices)
