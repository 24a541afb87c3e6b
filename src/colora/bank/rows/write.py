"""`RowWriter`: cores to files of rows, in the memory of one file, whatever their number.

A file is named by what is in it. So a file never changes: a bank that has grown can hold the files of before by hard
links, and the same cores are the same files.
"""

from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from colora.bank.rows.codec import digests
from colora.bank.rows.index import DIGEST_BYTES, Form
from colora.bank.rows.read import ROWS

__all__ = ["SHARD_BYTES", "Placed", "RowWriter", "rows_of_file"]

SHARD_BYTES = 2**26


@dataclass(frozen=True)
class Placed:
    """Where cores were written: `shard`, `row`, `rank` and `digest` of each, as `COLUMNS` of the index."""

    columns: dict[str, np.ndarray]


@dataclass
class _Open:
    """A file that is being filled."""

    shard: int
    rows: list[Tensor] = field(default_factory=list)
    count: int = 0


def rows_of_file(layers: int, rank: int, dtype: torch.dtype) -> int:
    """How many cores of a rank a file holds."""
    return max(1, SHARD_BYTES // (layers * rank**2 * dtype.itemsize))


class RowWriter:
    """Writes into a folder of cores; `close` at the end.

    Args:
        folder: is there.
        layers: names of the layers, ascending.
        dtype: of the numbers.
        shards: names of files that are there already.

    Raises:
        OSError, SafetensorError: a file cannot be written, here and below.
    """

    def __init__(self, folder: Path, layers: list[str], dtype: torch.dtype, shards: list[str] | None = None) -> None:
        self.folder, self.layers, self.dtype = folder, layers, dtype
        self._shards = list(shards or [])
        self._open: dict[int, _Open] = {}  # by rank

    def add(self, rows: Float[Tensor, "n layers k k"]) -> Placed:
        """Write cores of one rank."""
        rows = rows.detach().to("cpu", self.dtype).contiguous()
        rank, most = rows.shape[-1], rows_of_file(len(self.layers), rows.shape[-1], self.dtype)
        shard, row = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int32)
        begin = 0
        while begin < len(rows):
            file = self._open.get(rank)
            if file is None:
                file = self._open[rank] = _Open(len(self._shards))
                self._shards.append("")  # its name follows from what will be in it
            end = min(len(rows), begin + most - file.count)
            shard[begin:end], row[begin:end] = file.shard, np.arange(file.count, file.count + end - begin)
            file.rows.append(rows[begin:end].clone())  # the caller may use its own again
            file.count += end - begin
            if file.count == most:
                self._flush(rank)
            begin = end
        ranks = np.full(len(rows), rank, dtype=np.uint16)
        return Placed({"shard": shard, "row": row, "rank": ranks, "digest": digests(rows)})

    def close(self) -> Form:
        """Write what is left; the form of the rows, with the names of all files."""
        for rank in list(self._open):
            self._flush(rank)
        return Form(self.layers, str(self.dtype).removeprefix("torch."), self._shards)

    def _flush(self, rank: int) -> None:
        file = self._open.pop(rank)
        rows = torch.cat(file.rows)
        content = blake2b(f"{tuple(rows.shape)} {rows.dtype}".encode(), digest_size=DIGEST_BYTES)
        content.update(digests(rows).tobytes())
        name = f"{content.hexdigest()}.safetensors"
        self._shards[file.shard] = name
        if not (self.folder / name).exists():
            save_file({ROWS: rows}, self.folder / name)
