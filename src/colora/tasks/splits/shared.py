"""Splits of several tasks that have texts in common, such as people who judge the same ones.

A text that one task is tested on is then no training example of another: what trains on all tasks would have seen it,
with another's answer, and what trains on one would not.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from colora.tasks.schema import Example, Task
from colora.tasks.splits.draw import Draw
from colora.tasks.splits.joined import JoinedSets, input_key

__all__ = ["draw_apart", "seen_elsewhere", "seen_note", "seen_words", "shared_places"]

Given = Mapping[str, Sequence[Example]]


def shared_places(sets: JoinedSets, given: Sequence[Given], seed: int) -> list[dict[str, list[int]]]:
    """For each example of each split of each task the place at which its group is drawn, the same in every task.

    Which of two groups comes first depends on the two alone: tasks that are added to a run, or taken out of it, move
    no text from one split to another if they join no groups.

    Args:
        sets: the groups of all tasks.
        given: examples of each task by split.
        seed: decides the order of the groups.
    """
    first: dict[Hashable, str] = {}  # by the least of its inputs a group is known whatever the order of tasks
    for examples in given:
        for key in {input_key(example) for some in examples.values() for example in some}:
            group, text = sets.of(key), repr(key)
            first[group] = min(text, first.get(group, text))
    turn = {group: hashlib.sha256(f"{seed}:{text}".encode()).digest() for group, text in first.items()}
    place = {group: number for number, group in enumerate(sorted(turn, key=turn.__getitem__))}
    return [
        {split: [place[sets.of(input_key(example))] for example in some] for split, some in examples.items()}
        for examples in given
    ]


def draw_apart(draws: Sequence[Draw]) -> None:
    """Make the splits of tasks whose examples have places: no group of a test split is in a validation or training
    split of any task, none of a validation split in a training split.

    What is left out for it is left out before the next split is drawn, so that counts are kept to where there are
    enough other examples.
    """
    for split in ("test", "val"):
        for draw in draws:
            draw.measured(split)
        places = {place for draw in draws for place in draw.places_of(split)}
        for draw in draws:
            draw.leave_out(places, split)
    for draw in draws:
        draw.training()


def seen_elsewhere(tasks: Sequence[Task], measured: str = "test") -> dict[str, int]:
    """For each task the number of its test examples whose input is a training or validation example of another task;
    tasks without any are left out. Of another split that is measured, "val", training examples alone count."""
    before = ("train", "val") if measured == "test" else ("train",)
    trained = [{input_key(example) for split in before for example in task.splits[split]} for task in tasks]
    having = Counter(key for keys in trained for key in keys)
    found = {}
    for task, own in zip(tasks, trained, strict=True):
        keys = [input_key(example) for example in task.splits[measured]]
        if number := sum(having[key] > (key in own) for key in keys):
            found[task.name] = number
    return found


def seen_note(tasks: Sequence[Task], measured: str = "test") -> str | None:
    """The same in a sentence for users; None if there is nothing to say."""
    if not (seen := seen_elsewhere(tasks, measured)):
        return None
    return seen_words(sum(seen.values()), sum(len(task.splits[measured]) for task in tasks), measured)


def seen_words(number: int, of: int, measured: str = "test") -> str:
    """The sentence about so many measured examples of so many."""
    others = "training or validation" if measured == "test" else "training"
    return (
        f"{number} of {of} {measured} inputs are {others} inputs of other tasks, so what trains on all tasks has seen "
        "them; shared_splits: true in the run file keeps them apart"
    )
