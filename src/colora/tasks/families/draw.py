"""Which examples a task gets: a function of the task's name and the seed, apart from what its family trains on.

Comparisons of methods rely on two properties:

- Nested: each split is the beginning of one long list, so 4 training examples are the first 4 of 8. No split depends on
  the size of another, so a curve over the number of examples has one test set, and what rates were tuned on (val) is
  never what is tested, however many examples either has.
- Disjoint over a family: an example is a test, val or training example by its content (the day, the number, the
  actions), and that decision is the same for all tasks of the family. So no task of a bank was trained on test examples
  of another.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from colora.errors import ConfigError
from colora.tasks.schema import SPLITS, Example

__all__ = ["DrawnTask", "TaskRequest", "assign_splits", "checked_splits", "shuffled"]

T = TypeVar("T")


@dataclass(frozen=True)
class TaskRequest:
    """A task that a family is to make.

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
class DrawnTask:
    """A task as its family made it: examples without instruction, the short instruction, where they come from, and all
    answers there can be, if the set is closed."""

    splits: dict[str, tuple[Example, ...]]
    instruction: str
    source: str
    choices: tuple[str, ...] = ()


def shuffled(items: Sequence[T], request: TaskRequest, purpose: str = "") -> list[T]:
    """All items in an order that the seed and the task's name decide."""
    return random.Random(f"{request.seed}:{request.name}:{purpose}").sample(items, len(items))


def assign_splits(items: Iterable[T], key: Callable[[T], str], family: str, request: TaskRequest) -> dict[str, list[T]]:
    """The first items for each split: a quarter of all belongs to test, a quarter to val and half to train.

    Args:
        items: in the order in which they are to be taken.
        key: the content of an item; equal contents go to the same split, in all tasks of the family.
        family: name of the family.
        request: the sizes and the seed.

    Returns:
        the splits; where the items do not suffice, smaller than asked for.
    """
    splits: dict[str, list[T]] = {split: [] for split in SPLITS}
    for item in items:
        if all(len(splits[split]) >= request.sizes[split] for split in SPLITS):
            break
        digest = hashlib.blake2b(f"{request.seed}:{family}:{key(item)}".encode(), digest_size=1).digest()
        split = ("train", "train", "val", "test")[digest[0] % 4]
        if len(splits[split]) < request.sizes[split]:
            splits[split].append(item)
    return splits


def checked_splits(
    splits: Mapping[str, Sequence[Example]], request: TaskRequest, pool: str
) -> dict[str, tuple[Example, ...]]:
    """The splits, if each has as many examples as asked for.

    Args:
        splits: what was drawn.
        request: the name and the sizes.
        pool: what was drawn from, for the message.

    Raises:
        ConfigError: with what was expected and found for each split that is too small.
    """
    faults = [
        f"{split}: expected {request.sizes[split]}, found {len(splits[split])}"
        for split in SPLITS
        if len(splits[split]) < request.sizes[split]
    ]
    if faults:
        raise ConfigError(f'too few examples for task "{request.name}" ({pool})', faults)
    return {split: tuple(splits[split]) for split in SPLITS}
