"""Names of many tasks by number: their letters one after the other, and where each ends; both may lie on disk."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Int, UInt8

__all__ = ["Names"]

AT_ONCE = 1024
"""Names that are made Python objects at a time."""


class Names(Sequence[str]):
    """The names of K tasks.

    Args:
        letters: UTF-8, all names one after the other.
        ends: where each name ends, (K,).

    Examples:
        >>> names = Names.of(["ada", "bo"])
        >>> names[1], names[-2:], len(names)
        ('bo', ['ada', 'bo'], 2)
    """

    def __init__(self, letters: UInt8[np.ndarray, " n"], ends: Int[np.ndarray, " K"]) -> None:
        self.letters, self.ends = letters, ends

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """These names."""
        encoded = [name.encode() for name in names]
        ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"no task {index}: there are {len(self)}")
        begin = int(self.ends[number - 1]) if number else 0
        return bytes(self.letters[begin : int(self.ends[number])]).decode()

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for first in range(0, len(self), AT_ONCE):
            some = self.ends[first : first + AT_ONCE].tolist()
            text, base = self.letters[begin : some[-1]].tobytes(), begin
            for end in some:
                yield text[begin - base : end - base].decode()
                begin = end

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
