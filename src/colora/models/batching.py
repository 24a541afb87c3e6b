"""What measuring and generating share: batches of similar length, and padding."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from colora.errors import ColoraError, ConfigError
from colora.tasks.tokenizer import Tokenizer

__all__ = ["device_of", "length_batches", "pad", "pad_token_id"]


def length_batches(lengths: Sequence[int], batch_rows: int) -> Iterator[list[int]]:
    """Positions into `lengths` in batches of `batch_rows`, longest first.

    Rows of similar length share a batch, so little is padding; and a batch too large for the memory fails at the
    start, not at the end.

    Raises:
        ConfigError: if `batch_rows` is not positive.
    """
    if batch_rows < 1:
        raise ConfigError(f"batch_rows: expected at least 1, found {batch_rows}")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]


def pad(rows: Sequence[Sequence[int]], value: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of integers as LongTensor (rows, longest), filled up with `value`, and the 0/1 mask of the same shape."""
    width = max(len(row) for row in rows)
    filled = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        filled[index, columns] = torch.tensor(row, dtype=torch.long)
        mask[index, columns] = 1
    return filled.to(device), mask.to(device)


def pad_token_id(tokenizer: Tokenizer) -> int:
    """The id to fill up with; masked wherever it is used, so any id does where the tokenizer has none for padding."""
    for name in ("pad_token_id", "eos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    return 0


def device_of(model: nn.Module) -> torch.device:
    """Where the model's inputs belong: the device of its first parameter."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ColoraError("expected a model with parameters, found none")
    return parameter.device
