"""Which examples a task gets: the same ones whatever else is asked for, and nothing tested that a sibling trained on.

Two promises that a comparison needs:

- Nested: each split is the beginning of one long list, so 4 training examples are the first 4 of 8. No split depends on
  the size of another, so a curve over the number of examples has one test set, and what rates were tuned on (val) is
  never what is tested, however many examples either has.
- Apart over a family: an example is a test, val or training example by its content (the day, the number, the actions),
  and that decision is the same for all tasks of the family. So a collaborator cannot have trained on another's test.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from colora.errors import ConfigError
from colora.tasks.schema import SPLITS, Example

__all__ = ["Ask", "Draw", "complete", "deal", "shuffled"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """What is asked of a family.

    Attributes:
        name: of the task.
        variant: the name without the family's prefix.
        sizes: examples of "train", "val" and "test".
        seed: decides the draw, together with the name.
        data: the folder of task data, if the caller named one.
    """

    name: str
    variant: str
    sizes: Mapping[str, int]
    seed: int
    data: Path | None


@dataclass(frozen=True)
class Draw:
    """What a family makes of it: examples without instruction, the short instruction, and where they come from."""

    splits: dict[str, tuple[Example, ...]]
    instruction: str
    source: str


def shuffled(items: Sequence[T], ask: Ask, purpose: str = "") -> list[T]:
    """All items in an order that the seed and the task's name decide."""
    return random.Random(f"{ask.seed}:{ask.name}:{purpose}").sample(items, len(items))


def deal(items: Iterable[T], key: Callable[[T], str], family: str, ask: Ask) -> dict[str, list[T]]:
    """The first items for each split: a quarter of all belongs to test, a quarter to val and half to train.

    Args:
        items: in the order in which they are to be taken.
        key: the content of an item; equal contents go to the same split, in all tasks of the family.
        family: name of the family.
        ask: the sizes and the seed.

    Returns:
        the splits; where the items do not suffice, smaller than asked for.
    """
    splits: dict[str, list[T]] = {split: [] for split in SPLITS}
    for item in items:
        if all(len(splits[split]) >= ask.sizes[split] for split in SPLITS):
            break
        digest = hashlib.blake2b(f"{ask.seed}:{family}:{key(item)}".encode(), digest_size=1).digest()
        split = ("train", "train", "val", "test")[digest[0] % 4]
        if len(splits[split]) < ask.sizes[split]:
            splits[split].append(item)
    return splits


def complete(splits: Mapping[str, Sequence[Example]], ask: Ask, pool: str) -> dict[str, tuple[Example, ...]]:
    """The splits, if each has as many examples as asked for.

    Args:
        splits: what was drawn.
        ask: the name and the sizes.
        pool: what was drawn from, for the message.

    Raises:
        ConfigError: with what was expected and found for each split that is too small.
    """
    faults = [
        f"{split}: expected {ask.sizes[split]}, found {len(splits[split])}"
        for split in SPLITS
        if len(splits[split]) < ask.sizes[split]
    ]
    if faults:
        raise ConfigError(f'too few examples for task "{ask.name}" ({pool})', faults)
    return {split: tuple(splits[split]) for split in SPLITS}
