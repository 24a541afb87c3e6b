"""Which adapter is in which slot; the least recently used makes room."""

from collections import OrderedDict
from collections.abc import Collection

__all__ = ["Slots"]


class Slots:
    """Slots 1 to `number`. Slot 0 is nobody's: rows without an adapter read it, and it holds zeros.

    Args:
        number: of adapters that are there at a time.
    """

    def __init__(self, number: int) -> None:
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # the least recently used first
        self._free = list(range(number, 0, -1))

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._slot_of

    def __getitem__(self, adapter: int) -> int:
        """The slot of an adapter that is there."""
        return self._slot_of[adapter]

    def __len__(self) -> int:
        return len(self._slot_of)

    def place(self, adapters: Collection[int]) -> list[int]:
        """See that all of these are in slots at once; those that were not there before are returned, to be filled.

        Raises:
            ValueError: more adapters than slots; nothing is changed.
        """
        wanted = set(adapters)
        if len(wanted) > len(self._free) + len(self._slot_of):
            raise ValueError(
                f"expected at most {len(self._free) + len(self._slot_of)} adapters in a step, found {len(wanted)}"
            )
        for adapter in wanted & self._slot_of.keys():
            self._slot_of.move_to_end(adapter)
        placed = sorted(wanted - self._slot_of.keys())
        for adapter in placed:
            # None of those that are wanted: they are the last to go, and there is room for all of them.
            slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
            self._slot_of[adapter] = slot
        return placed

    def remove(self, adapter: int) -> bool:
        """Free an adapter's slot; whether it had one."""
        slot = self._slot_of.pop(adapter, None)
        if slot is None:
            return False
        self._free.append(slot)
        return True

    def clear(self) -> None:
        """Free all slots."""
        for adapter in list(self._slot_of):
            self.remove(adapter)
