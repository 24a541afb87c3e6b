"""Whether something personal is in bytes that left a client: cores in any of its states, its text, its tokens."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from colora.tasks.read import read_tasks
from colora.tasks.schema import TaskSource

__all__ = ["core_slices", "factor_slices", "found_in", "texts"]

NUMBERS = 6  # of a slice: 24 bytes of trained numbers stand nowhere by chance
SHORTEST = 6  # bytes of a text worth looking for


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


def found_in(seen: bytes, wanted: Iterator[bytes]) -> tuple[int, int]:
    """How many of the wanted slices are there, and how many were looked for."""
    hits = [slice_ in seen for slice_ in wanted]
    return sum(hits), len(hits)
