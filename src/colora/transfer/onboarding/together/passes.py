"""Forward passes over rows of several new tasks: rows of similar length together, and a bound on what one holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from colora.models.batching import device_of
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.models.modes import eval_mode
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedRow

__all__ = ["Line", "Passes", "length_of"]


@dataclass(frozen=True)
class Line:
    """A row of the task in a slot."""

    slot: int
    row: EncodedRow


def length_of(row: EncodedRow) -> int:
    """Tokens that a pass over a row computes on."""
    ids, labels = len(row["input_ids"]), len(row["labels"])
    return ids if ids == labels else ids + labels  # of an encoder-decoder, both have a pass


class Passes:
    """How rows go through a model.

    Args:
        model: with slots.
        pad_token_id: what fills shorter rows.
        most_tokens: of a pass, padding included; a single row may be longer.
        random: whether the model draws random numbers in training. Then those of a step are what they would be for one
            task alone: its rows stay in their order, in one pass, and whole, with the last token of each, after which
            nothing is predicted.
    """

    def __init__(self, model: PeftModel, pad_token_id: int, most_tokens: int, random: bool = False) -> None:
        self.model, self.most_tokens = model, most_tokens
        self.encoder_decoder = is_encoder_decoder(model)
        self.device = device_of(model)
        self._collate = TaskCollator(pad_token_id)
        self._random = random

    def batches(self, lines: Sequence[Line]) -> Iterator[list[Line]]:
        """The lines in batches, the longest first."""
        batch: list[Line] = []
        for line in sorted(lines, key=lambda line: -length_of(line.row)):
            if batch and (len(batch) + 1) * length_of(batch[0].row) > self.most_tokens:
                yield batch
                batch = []
            batch.append(line)
        if batch:
            yield batch

    def step_batches(self, lines: Sequence[Line]) -> Iterator[list[Line]]:
        """The lines of a training step in batches."""
        return iter([list(lines)]) if self._random else self.batches(lines)

    def row_nll(self, lines: Sequence[Line]) -> Float[Tensor, " lines"]:
        """Nats of each line, with the core in its slot, in one pass."""
        batch = self._collate([line.row for line in lines])
        batch["task_ids"] = torch.tensor([line.slot for line in lines])
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        if not (self._random or self.encoder_decoder) and labels.shape[1] > 1:
            for name in ("input_ids", "attention_mask"):
                inputs[name] = inputs[name][:, :-1]
        return row_nll(self.model, inputs, labels)

    def tokens(self, lines: Sequence[Line], slots: int) -> Int[Tensor, " slots"]:
        """How many labels the lines of each slot have, on the device."""
        labels = self._collate([line.row for line in lines])["labels"]
        index = torch.tensor([line.slot for line in lines])
        counts = label_tokens(labels, self.encoder_decoder)
        return torch.zeros(slots, dtype=torch.long).index_add(0, index, counts).to(self.device)

    def nll(self, lines: Sequence[Line], slots: int) -> list[float]:
        """Nats per token of the lines of each slot; nan where a slot has none."""
        nats = torch.zeros(slots, dtype=torch.float64)
        with eval_mode(self.model):
            for batch in self.batches(lines):
                found = self.row_nll(batch).cpu().double()  # some devices have no float64
                nats.index_add_(0, torch.tensor([line.slot for line in batch]), found)
        found_tokens = self.tokens(lines, slots).cpu() if lines else torch.zeros(slots)
        return (nats / found_tokens).tolist()
