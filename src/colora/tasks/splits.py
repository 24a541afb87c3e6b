"""Train, validation and test examples of a task: splits that exist are kept, missing ones are drawn by seed."""

import random
from collections.abc import Mapping, Sequence

from colora.tasks.faults import Faults
from colora.tasks.schema import SPLITS, Example, TaskSource

__all__ = ["make_splits"]


def make_splits(
    given: Mapping[str, Sequence[Example]], source: TaskSource, name: str, seed: int, faults: Faults
) -> tuple[dict[str, tuple[Example, ...]], bool]:
    """The three splits, and whether any was drawn by chance.

    Equal examples count once, in the first of test, val and train that has them, so nothing that is tested was
    trained on. A split that is not given is drawn from the training examples: 20 % for test and 10 % for val,
    both rounded down, unless `source` gives counts. Test is drawn first and training last: asking for another
    number of training examples leaves the other two as they were. Of a given split, a count takes the first so
    many after a shuffle.
    """
    distinct = _distinct(given)
    splits: dict[str, tuple[Example, ...]] = dict.fromkeys(SPLITS, ())
    drawn = False

    def fault(split: str, wanted: int, found: str) -> None:
        faults.add(source.origin, f'expected {wanted} examples for the {split} split of task "{name}", found {found}')

    for split in ("test", "val"):
        if split in distinct:
            count, pool = source.count(split), distinct[split]
            if count is not None and count > len(pool):
                fault(split, count, f"{len(pool)}")
            elif count is not None:
                drawn = drawn or count < len(pool)
                pool = _shuffled(pool, f"{seed}:{name}:{split}")[:count]
            splits[split] = tuple(pool)

    pool, size = distinct["train"], len(distinct["train"])
    missing = [split for split in ("test", "val") if split not in given and source.count(split) != 0]
    if missing or source.train is not None:
        pool = _shuffled(pool, f"{seed}:{name}")
        drawn = drawn or bool(missing) or source.train != size
    for split in missing:
        asked = source.count(split)
        count = size // {"test": 5, "val": 10}[split] if asked is None else asked
        if count > len(pool):
            fault(split, count, _left(len(pool), size))
        splits[split], pool = tuple(pool[:count]), pool[count:]
    if source.train is not None and source.train > len(pool):
        fault("train", source.train, _left(len(pool), size))
    splits["train"] = tuple(pool[: source.train])
    if not splits["train"]:
        fault("train", 1, "none" if source.train == 0 or not size else _left(0, size))
    return splits, drawn


def _distinct(given: Mapping[str, Sequence[Example]]) -> dict[str, list[Example]]:
    seen: set[Example] = set()
    distinct: dict[str, list[Example]] = {}
    for split in ("test", "val", "train"):
        if split in given or split == "train":
            distinct[split] = [e for e in dict.fromkeys(given.get(split, ())) if e not in seen]
            seen.update(distinct[split])
    return distinct


def _shuffled(examples: Sequence[Example], seed: str) -> list[Example]:
    # Seeded by text, so that tasks differ and no task's draw depends on which others are in the run.
    return random.Random(seed).sample(examples, len(examples))


def _left(left: int, size: int) -> str:
    if left == size:
        return f"{size}"
    return f"{left} left of {size} after those for test and val (test: 0 and val: 0 keep all for training)"
