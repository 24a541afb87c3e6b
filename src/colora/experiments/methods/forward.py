"""The frozen lower part of the base, computed once for each row and kept; only the adapted upper part runs again.

With adapters on the upper layers alone, what enters the first adapted layer never changes while training. Keeping it
saves the forward pass of everything below. The result is that of the plain pass, which a check on the first batch
proves: a model that scales its embeddings or caps its logits, say, is then run plainly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from colora.experiments.methods.attach import decoder_layers
from colora.models.batching import device_of, pad
from colora.models.likelihood import label_logits
from colora.models.modes import eval_mode
from colora.tasks.encode import IGNORED

__all__ = ["Row", "SplitForward"]

LOWER_ROWS = 32


@dataclass(frozen=True)
class Row:
    """A row in tokens: `labels` are as long as `input_ids`, and `IGNORED` where nothing is to be said."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def answer_tokens(self) -> int:
        """How many labels count; the first position is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


class SplitForward:
    """Negative log-likelihood of rows, with the activations below `first_layer` kept.

    Args:
        model: a causal model, without adapters at the moment.
        first_layer: the lowest layer that adapters will sit on.
    """

    def __init__(self, model: nn.Module, first_layer: int) -> None:
        self.model: PreTrainedModel = model
        self.first_layer = first_layer
        self.device = device_of(model)
        self.kept: dict[tuple[int, ...], Tensor] = {}
        self._decoder = model.get_decoder()  # type: ignore[operator]
        self._layers = decoder_layers(model)
        self.splits = first_layer > 0 and self._agrees()

    def row_nll(self, rows: Sequence[Row]) -> Tensor:
        """Nats of each row's labels, summed: (rows,), float32 or the model's float64, with gradients if enabled."""
        row, logits, targets = self.label_logits(rows)
        losses = F.cross_entropy(logits, targets, reduction="none")
        return losses.new_zeros(len(rows)).index_add(0, row, losses)

    def label_logits(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each label, row by row and from left to right: its row, the logits (labels, vocabulary), and the label."""
        if not self.splits:
            return self._plain(rows)
        hidden, mask = self._below(rows)
        with self._upper():
            states = self._decoder(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state
        labels, _ = pad([row.labels for row in rows], IGNORED, self.device)
        # Logits of a large vocabulary cost as much as many layers: ask for those of answers only.
        row, place = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        logits = self.model.get_output_embeddings()(states[row, place])
        return row, logits.to(torch.promote_types(logits.dtype, torch.float32)), labels[row, place + 1]

    def _plain(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = pad([row.input_ids for row in rows], 0, self.device)
        labels, _ = pad([row.labels for row in rows], IGNORED, self.device)
        return label_logits(self.model, {"input_ids": ids, "attention_mask": mask, "use_cache": False}, labels)

    def _below(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """What enters the first adapted layer, (rows, longest, d), zero where there is padding, and the mask."""
        new = list(dict.fromkeys(row.input_ids for row in rows if row.input_ids not in self.kept))
        for start in range(0, len(new), LOWER_ROWS):
            part = new[start : start + LOWER_ROWS]
            ids, mask = pad(part, 0, self.device)
            with eval_mode(self.model), self._lower():
                states = self._decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for row, state in zip(part, states, strict=True):
                self.kept[row] = state[: len(row)].clone()
        kept = [self.kept[row.input_ids] for row in rows]
        mask = pad([row.input_ids for row in rows], 0, self.device)[1]
        return nn.utils.rnn.pad_sequence(kept, batch_first=True), mask

    @contextmanager
    def _lower(self) -> Iterator[None]:
        """The decoder as its lower layers only, without the last norm."""
        norm, self._decoder.norm = self._decoder.norm, nn.Identity()
        self._decoder.layers = self._layers[: self.first_layer]
        try:
            yield
        finally:
            self._decoder.norm, self._decoder.layers = norm, self._layers

    @contextmanager
    def _upper(self) -> Iterator[None]:
        self._decoder.layers = self._layers[self.first_layer :]
        try:
            yield
        finally:
            self._decoder.layers = self._layers

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether the split pass gives what the plain pass gives, to a hundredth of a nat or the dtype's rounding."""
        if not hasattr(self._decoder, "norm"):
            return False
        words = torch.arange(3, 19).tolist()
        probe = [Row(tuple(words[:12]), (IGNORED, *words[1:12])), Row(tuple(words), (IGNORED, *words[1:]))]
        try:
            with eval_mode(self.model):
                self.splits = True
                split = self.row_nll(probe)
                self.splits = False
                plain = self.row_nll(probe)
        finally:
            self.kept.clear()
        return bool(torch.allclose(split, plain, rtol=1e-2, atol=1e-2))
