"""Whether something personal is in bytes that left a client: cores in any of its states, its text, its tokens."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from colora.tasks.read import read_tasks
from colora.tasks.schema import TaskSource

__all__ = ["core_slices", "factor_slices", "found_in", "texts"]

NUMBERS = 6  # of a slice: 24 bytes of trained numbers stand nowhere by chance
SHORTEST = 6  # bytes of a text worth looking for
KEY, CHUNK = 8, 1 << 22


def core_slices(state: Path) -> Iterator[bytes]:
    """For each trained row of each core in a client's state file, its first numbers as they lie in memory."""
    for name, core in load_file(state).items():
        if name.startswith("cores:"):
            for row, start in zip(core, torch.eye(len(core)), strict=True):
                if not torch.equal(row, start):
                    for numbers in (row, row.half(), row.double()):
                        yield numbers[:NUMBERS].contiguous().numpy().tobytes()


def factor_slices(state: Path, which: str) -> Iterator[bytes]:
    """The same of A or B: what must be found, or the search shows nothing."""
    for name, factor in load_file(state).items():
        if name.startswith(f"shared:{which}/"):
            yield factor[0, :NUMBERS].contiguous().numpy().tobytes()


def texts(task: Path) -> Iterator[bytes]:
    """Inputs and outputs of a task's examples as text, long enough not to be there by chance."""
    (found,) = read_tasks([TaskSource(path=str(task))])
    for examples in found.splits.values():
        for example in examples:
            for text in (example.input, *example.outputs):
                if len(text.encode()) >= SHORTEST:
                    yield text.encode()


def found_in(seen: bytes, wanted: Iterable[bytes]) -> tuple[int, int]:
    """How many of the wanted pieces are there, at any place, and how many were looked for.

    Tens of thousands of pieces in hundreds of megabytes: all places are first looked up by eight bytes at once, and
    only pieces that begin like something there are searched for in full.
    """
    pieces = list(wanted)
    likely = _present_starts(seen, {piece[:KEY] for piece in pieces if len(piece) >= KEY})
    return sum((len(piece) < KEY or piece[:KEY] in likely) and piece in seen for piece in pieces), len(pieces)


def _present_starts(seen: bytes, starts: set[bytes]) -> set[bytes]:
    keys = np.array(sorted(int.from_bytes(start, "little") for start in starts), dtype=np.uint64)
    found: set[int] = set()
    for offset in range(min(KEY, len(seen) - KEY + 1) if len(keys) else 0):
        words = np.frombuffer(seen, "<u8", count=(len(seen) - offset) // KEY, offset=offset)
        for begin in range(0, len(words), CHUNK):
            chunk = words[begin : begin + CHUNK]
            places = np.searchsorted(keys, chunk).clip(max=len(keys) - 1)
            found |= set(keys[places[keys[places] == chunk]].tolist())
    return {number.to_bytes(KEY, "little") for number in found}
