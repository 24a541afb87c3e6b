"""Long lists in messages: the first items, and how many more there are."""

from collections.abc import Collection, Iterable
from itertools import islice

__all__ = ["listed", "readable_time", "shortened"]


def shortened(items: Iterable[str], most: int) -> list[str]:
    """The first `most` items, and a last one that counts the rest, if there is one.

    Examples:
        >>> shortened(["a", "b", "c", "d"], most=2)
        ['a', 'b', '... and 2 more']
    """
    every = items if isinstance(items, Collection) else list(items)
    more = [f"... and {len(every) - most} more"] if len(every) > most else []
    return [*islice(every, most), *more]


def listed(names: Iterable[str], most: int) -> str:
    """The same on one line.

    Examples:
        >>> listed(["ann", "ben", "cat"], most=2)
        'ann, ben, ... and 1 more'
    """
    return ", ".join(shortened(names, most))


def readable_time(seconds: float) -> str:
    """Seconds, or minutes from two on."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
