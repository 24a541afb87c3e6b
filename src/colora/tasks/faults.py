"""Collects the faults of all task files, so that a user can mend all of them at once."""

from collections.abc import Iterable

from colora.common.text import listed, shortened
from colora.errors import TaskFileError

__all__ = ["Faults", "describe", "quoted"]


class Faults:
    """Faults in the order they were found, grouped by file, at most `per_file` of each file shown."""

    def __init__(self, per_file: int = 20) -> None:
        self._per_file = per_file
        # A dict keeps the order and drops repeats, as when two sources name the same broken file.
        self._by_file: dict[str, dict[str, None]] = {}
        self._added = 0

    def add(self, file: str, message: str, place: str | int | None = None) -> None:
        """Notes one fault; `place` is a line number or a path inside the file's JSON."""
        self._added += 1
        where = file if place is None else f"{file}:{place}"
        self._by_file.setdefault(file, {})[f"{where}: {message}"] = None

    def __len__(self) -> int:
        """How often a fault was added, repeats included: it has grown if and only if something went wrong since."""
        return self._added

    def shown(self) -> list[str]:
        """All faults, each file's cut at the limit with a last line that counts the rest."""
        lines: list[str] = []
        for file, faults in self._by_file.items():
            first, more = list(faults)[: self._per_file], shortened(faults, self._per_file)[self._per_file :]
            lines += [*first, *(f"{file}: {count}" for count in more)]
        return lines

    def raise_any(self) -> None:
        """Raises one `TaskFileError` with every fault, if there is any."""
        if self._by_file:
            raise TaskFileError(self.shown())


def quoted(names: Iterable[str], limit: int = 12) -> str:
    """`"a", "b"`, or `nothing`; a long list is cut."""
    return listed([f'"{name}"' for name in names], limit) or "nothing"


def describe(value: object) -> str:
    """A value of the wrong kind in a few words, never longer than a line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {str(value)[:20]}"
        case str():
            return "text" if value.strip() else "empty text"
        case list() | tuple():
            return f"a list of {len(value)}" if value else "an empty list"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"
