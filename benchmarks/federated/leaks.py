"""A search for a client's cores and texts in the bytes that left the client."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from colora.tasks.read import read_tasks
from colora.tasks.schema import TaskSource

__all__ = ["core_slices", "factor_slices", "found_in", "texts"]

NUMBERS = 6  # of a slice: 24 bytes of trained numbers occur nowhere by chance
SHORTEST = 6  # bytes of a text worth looking for
KEY, CHUNK = 8, 1 << 22


def core_slices(state: Path) -> Iterator[bytes]:
    """For each trained row of each core in a client's state file, the bytes of its first numbers."""
    for name, core in load_file(state).items():
        if name.startswith("cores:"):
            for row, start in zip(core, torch.eye(len(core)), strict=True):
                if not torch.equal(row, start):
                    for numbers in (row, row.half(), row.double()):
                        yield numbers[:NUMBERS].contiguous().numpy().tobytes()


def factor_slices(state: Path, which: str) -> Iterator[bytes]:
    """The same for A or B: these must be found, or the search proves nothing."""
    for name, factor in load_file(state).items():
        if name.startswith(f"shared:{which}/"):
            yield factor[0, :NUMBERS].contiguous().numpy().tobytes()


def texts(task: Path) -> Iterator[bytes]:
    """Inputs and outputs of a task's examples as text, long enough not to occur by chance."""
    (content,) = read_tasks([TaskSource(path=str(task))])
    for examples in content.splits.values():
        for example in examples:
            for text in (example.input, *example.outputs):
                if len(text.encode()) >= SHORTEST:
                    yield text.encode()


def found_in(seen: bytes, wanted: Iterable[bytes]) -> tuple[int, int]:
    """How many of the wanted pieces occur in `seen`, and how many there are.

    Tens of thousands of pieces in hundreds of megabytes: all positions are first compared by eight bytes, and only
    pieces whose first eight bytes occur are searched for in full.
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
            indices = np.searchsorted(keys, chunk).clip(max=len(keys) - 1)
            found |= set(keys[indices[keys[indices] == chunk]].tolist())
    return {number.to_bytes(KEY, "little") for number in found}
