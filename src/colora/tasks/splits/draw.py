"""Train, validation and test examples of a task: splits that exist are kept, missing ones are drawn by seed.

What belongs together is never torn apart: examples with the same input, and those with the same value of a field.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass

from colora.tasks.faults import Faults
from colora.tasks.schema import SPLITS, Example, TaskSource
from colora.tasks.splits.joined import JoinedSets, input_key

__all__ = ["Draw", "Grouping", "make_splits"]

Split = dict[str, tuple[Example, ...]]


@dataclass(frozen=True)
class Grouping:
    """Which of the given examples stay together.

    Attributes:
        values: for each example of each given split its value of `group_by`; empty without one.
        places: for each example of each given split the place at which its group is drawn, one to a group, where the
            tasks of a run are drawn together; None for a draw of the task's own.
    """

    values: Mapping[str, Sequence[Hashable]]
    places: Mapping[str, Sequence[int]] | None = None


def make_splits(
    given: Mapping[str, Sequence[Example]],
    source: TaskSource,
    name: str,
    seed: int,
    faults: Faults,
    grouping: Grouping | None = None,
    notes: list[str] | None = None,
    together: bool = True,
) -> tuple[Split, bool]:
    """The three splits, and whether any was drawn by chance.

    Equal examples count once, in the first of test, val and train that has them, and so do equal inputs with other
    outputs: nothing that is tested was trained on. Inputs are equal if they differ in white space or Unicode
    composition alone; of examples without an input the instructions are compared. Where splits are drawn, inputs that
    differ in case alone are kept together as well; given ones are kept, and noted.

    A split that is not given is drawn from the training examples: 20 % for test and 10 % for val, both rounded down,
    unless `source` gives counts. Test is drawn first and training last: asking for another number of training examples
    leaves the other two as they were. Of a given split, a count takes the first so many after a shuffle.

    Examples that share an input or a group are drawn together. A share is filled with what fits into it; if nothing
    does, the smallest of several is taken. A count that `source` gives is kept to: of the last that are drawn
    together, those beyond it are in no split.

    Args:
        given: examples by split.
        source: counts of examples, and the names for messages.
        name: of the task; decides the draw, together with `seed`.
        seed: of the draw.
        faults: where faults are noted: counts that cannot be had, groups in two of the given splits.
        grouping: which examples stay together, besides those with equal inputs.
        notes: where it is noted what a user would not expect of the sizes.
        together: False draws as the first version did, with only equal examples as one.
    """
    draw = Draw(given, source, name, seed, faults, together)
    draw.gather(grouping or Grouping({}))
    for split in ("test", "val"):
        draw.measured(split)
    draw.training()
    if notes is not None:
        notes += draw.notes
    return draw.splits, draw.drawn


class Draw:
    """One task's splits in the making: what there is, then test, val and train, in this order.

    Attributes:
        splits: as far as they are made.
        drawn: whether any was drawn by chance.
        notes: what a user would not expect of the sizes.
        apart: the same of what is left out because tasks have it in a split that is measured.
    """

    def __init__(
        self,
        given: Mapping[str, Sequence[Example]],
        source: TaskSource,
        name: str,
        seed: int,
        faults: Faults,
        together: bool,
    ) -> None:
        self.given, self.source, self.name, self.seed, self.faults = given, source, name, seed, faults
        self.together = together
        self.splits: Split = dict.fromkeys(SPLITS, ())
        self.drawn = False
        self.notes: list[str] = []
        self.apart: list[str] = []
        self.kept: dict[str, list[Example]] = {}
        self.pool: list[Example] = []
        self.of: dict[Example, int] = {}
        self.place: dict[Example, int] = {}

    def gather(self, grouping: Grouping) -> None:
        """The examples of each given split without those that stand in another, and which of them belong together."""
        self._check_given(grouping.values)
        for split, places in (grouping.places or {}).items():
            self.place.update(zip(self.given[split], places, strict=True))
        seen: set[Hashable] = set()
        alike: set[Hashable] = set()
        for split in ("test", "val", "train"):
            if split in self.given or split == "train":
                once = list(dict.fromkeys(self.given.get(split, ())))
                kept = [example for example in once if self._key(example, case=True) not in seen]
                others = " or ".join(self.kept)
                if dropped := len(once) - len(kept):
                    self.notes.append(f"{dropped} {split} examples are left out: their inputs are also in {others}")
                near = 0 if self.place else sum(self._key(example) in alike for example in kept)
                if near:
                    self.notes.append(f"{near} {split} inputs differ from some in {others} in case alone")
                seen.update(self._key(example, case=True) for example in kept)
                alike.update(map(self._key, kept))
                self.kept[split] = kept
        sets = JoinedSets()
        sets.join(self.given, grouping.places or grouping.values, self._key)
        numbers: dict[Hashable, int] = {}
        for example in self.kept["train"]:
            self.of[example] = numbers.setdefault(sets.of(self._key(example)), len(numbers))
        if any(map(self._is_missing, ("test", "val"))):
            self._note_together()
        self.pool = self.kept["train"]
        if self.source.train is not None or any(map(self._is_missing, ("test", "val"))):
            self.pool = self._shuffled(self.pool)

    def measured(self, split: str) -> None:
        """Test or val: as given, in the size asked for, or drawn."""
        count = self.source.count(split)
        if split in self.kept:
            examples = self.kept[split]
            if count is not None and count > len(examples):
                self._fault(split, count, "; ".join([f"{len(examples)}", *self.apart]))
            elif count is not None:
                self.drawn = self.drawn or count < len(examples)
                examples = self._in_turn(self._shuffled(examples, f":{split}"))[:count]
            self.splits[split] = tuple(examples)
        elif self._is_missing(split):
            self.drawn = True
            pool = self._in_turn(self.pool)
            if count is None:
                share = len(self.kept["train"]) // {"test": 5, "val": 10}[split]
                self.splits[split], self.pool = self._share(split, pool, share)
            else:
                if count > len(pool):
                    self._fault(split, count, "; ".join([self._left(), *self.apart]))
                self.splits[split], self.pool = self._count(split, pool, count)

    def places_of(self, split: str) -> set[int]:
        """The places of the groups that a split has some of."""
        return {self.place[example] for example in self.splits[split]}

    def leave_out(self, places: Set[int], split: str) -> None:
        """Drop from what is left whatever is in one of these groups, which tasks have in this split."""
        before = len(self.pool)
        self.pool = [example for example in self.pool if self.place[example] not in places]
        lost = before - len(self.pool)
        if split == "test" and "val" in self.kept:
            left = [example for example in self.kept["val"] if self.place[example] not in places]
            lost += len(self.kept["val"]) - len(left)
            self.kept["val"] = left
        if lost:
            self.apart.append(f"{lost} examples are left out: they belong together with what tasks have in {split}")

    def training(self) -> None:
        """Training with what is left."""
        wanted = self.source.train
        if wanted is not None:
            if self.place:  # of all groups, not of those alone whose turn is next
                self.pool = self._shuffled(self.pool)
            self.drawn = self.drawn or wanted != len(self.kept["train"])
            if wanted > len(self.pool):
                self._fault("train", wanted, "; ".join([self._left(), *self.apart]))
        self.splits["train"] = tuple(self.pool[:wanted])
        if not self.splits["train"]:
            found = "none" if wanted == 0 or not self.kept["train"] else self._left()
            self._fault("train", 1, "; ".join([found, *self.notes, *self.apart]))

    def _is_missing(self, split: str) -> bool:
        return split not in self.given and self.source.count(split) != 0

    def _shuffled(self, pool: Sequence[Example], suffix: str = "") -> list[Example]:
        # Seeded by text, so that tasks differ and no task's draw depends on which others are in the run.
        return random.Random(f"{self.seed}:{self.name}{suffix}").sample(pool, len(pool))

    def _in_turn(self, pool: list[Example]) -> list[Example]:
        """The order in which groups are drawn."""
        return sorted(pool, key=self.place.__getitem__) if self.place else pool

    def _left(self) -> str:
        left, size = len(self.pool), len(self.kept["train"])
        if left == size:
            return f"{size}"
        if self.source.count("test") == self.source.count("val") == 0:
            return f"{left} left of {size}"
        return f"{left} left of {size} after those for test and val (test: 0 and val: 0 keep all for training)"

    def _share(self, split: str, pool: list[Example], target: int) -> tuple[tuple[Example, ...], list[Example]]:
        """About `target` examples of the pool and the rest of it, no group in both."""
        sizes = self._sizes(pool)
        chosen: set[int] = set()
        room = target
        for group, size in sizes.items():
            if size <= room:
                chosen.add(group)
                room -= size
        left = sorted((size, number) for number, size in sizes.items() if number not in chosen)
        if target and len(left) > 1 and (not chosen or left[0][0] - room < room):
            chosen.add(left[0][1])
        taken, pool = self._parted(pool, chosen)
        if target and abs(len(taken) - target) > target // 2:
            self.notes.append(
                f"{split} has {len(taken)} examples, not {target}: what belongs together is not torn apart"
            )
        return taken, pool

    def _count(self, split: str, pool: list[Example], asked: int) -> tuple[tuple[Example, ...], list[Example]]:
        """So many examples of the pool and the rest of it, no group in both."""
        chosen: set[int] = set()
        room = asked
        sizes = self._sizes(pool)
        for group, size in sizes.items():
            if size <= room:
                chosen.add(group)
                room -= size
        rest = [(size, group) for group, size in sizes.items() if group not in chosen]
        if room and rest:
            chosen.add(min(rest)[1])
        taken, pool = self._parted(pool, chosen)
        if len(taken) > asked:
            more = f"they belong together with some of the {asked} in {split}"
            self.notes.append(f"{len(taken) - asked} examples are in no split: {more}")
        return taken[:asked], pool

    def _sizes(self, pool: Sequence[Example]) -> Counter[int]:
        return Counter(self.of[example] for example in pool)  # in the order in which each is met first

    def _parted(self, pool: Sequence[Example], chosen: set[int]) -> tuple[tuple[Example, ...], list[Example]]:
        inside = tuple(example for example in pool if self.of[example] in chosen)
        return inside, [example for example in pool if self.of[example] not in chosen]

    def _note_together(self) -> None:
        inputs = Counter(map(self._key, self.kept["train"]))
        if shared := sum(count for count in inputs.values() if count > 1):
            self.notes.append(f"{shared} examples share their input with others; equal inputs are drawn into one split")
        number = len(set(self.of.values()))
        if self.place:
            self.notes.append(f"splits are drawn together with those of the other tasks: {number} groups")
        elif self.source.group_by is not None:
            self.notes.append(
                f"splits are drawn by {self.source.group_by}: {number} groups that have no input in common"
            )

    def _key(self, example: Example, case: bool = False) -> Hashable:
        return input_key(example, case) if self.together else example

    def _check_given(self, groups: Mapping[str, Sequence[Hashable]]) -> None:
        splits: dict[Hashable, list[str]] = defaultdict(list)
        for split in SPLITS:
            for value in dict.fromkeys(groups.get(split, ())):
                splits[value].append(split)
        for value, found in splits.items():
            if len(found) > 1:
                self.faults.add(
                    self.source.origin,
                    f'expected the {self.source.group_by} "{value}" in one split, found it in {" and ".join(found)}; '
                    "give one file, of which splits are drawn, or leave group_by out",
                )

    def _fault(self, split: str, wanted: int, found: str) -> None:
        message = f'expected {wanted} examples for the {split} split of task "{self.name}", found {found}'
        self.faults.add(self.source.origin, message)
