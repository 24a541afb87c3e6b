"""What belongs together: equal inputs, and inputs with the same value of a column, along chains."""

import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence

from colora.tasks.schema import Example, Task

__all__ = ["JoinedSets", "group_of", "input_key"]


class JoinedSets:
    """Sets of examples, by a representative of each. An input may be in several groups, and a group has several."""

    def __init__(self) -> None:
        self._above: dict[Hashable, Hashable] = {}

    def __call__(self, thing: Hashable) -> Hashable:
        """The representative of the set that this is in; in one of its own if it was never met."""
        while (above := self._above.setdefault(thing, thing)) != thing:
            self._above[thing] = thing = self._above[above]
        return thing

    def join(
        self,
        given: Mapping[str, Sequence[Example]],
        groups: Mapping[str, Sequence[Hashable]],
        key: Callable[[Example], Hashable] | None = None,
    ) -> None:
        """Make one set of what has the same value.

        Args:
            given: examples by split.
            groups: for each of these its value; splits may be missing.
            key: what makes examples the same; `input_key` by default.
        """
        for split, values in groups.items():
            for example, value in zip(given[split], values, strict=True):
                self._above[self.of((key or input_key)(example))] = self(("group", value))

    def of(self, key: Hashable) -> Hashable:
        """The representative of the set of the examples with this key."""
        return self(("input", key))

    def groups(self, given: Mapping[str, Sequence[Example]]) -> dict[Hashable, Hashable]:
        """For every input its representative."""
        return {key: self.of(key) for examples in given.values() for key in map(input_key, examples)}


def group_of(task: Task, example: Example) -> Hashable:
    """What an example of a task stays together with: its group, or the examples with the same input."""
    key = input_key(example)
    return task.groups.get(key, key)


def input_key(example: Example, case: bool = False) -> Hashable:
    """What makes two inputs the same, in capitals or not unless `case`; without an input the instructions count."""
    if example.history:  # a last turn such as "Go on." says little
        return tuple(_plain(text, case) for text in (*example.history, example.input))
    text = _plain(example.input, case)
    return text if text else ("", _plain(example.instruction or "", case))


def _plain(text: str, case: bool) -> str:
    composed = unicodedata.normalize("NFC", text)
    return " ".join((composed if case else composed.casefold()).split())
