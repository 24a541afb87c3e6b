"""The forward passes of a batch: whole prompts, or one token of each row, over keys and values kept by row."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from colora.models.decoding.cache import SlotCache

__all__ = ["MASKS", "Mask", "Passes"]

Mask = Literal["additive", "padding"]
MASKS: tuple[Mask, ...] = ("additive", "padding")
"""How a model is told what a token may look at: by numbers that are added to the scores, or by ones and zeros, of
which the model makes a mask itself; some need these, as they count positions by them (ALiBi in BLOOM and Falcon)."""


class Passes:
    """Forward passes of one model, and its cache.

    Args:
        model: the base model with its adapter, decoder-only.
        rows: most rows at once.
        positions: longest row.
        mask: how the model is told what each token may look at.
    """

    def __init__(self, model: PreTrainedModel, rows: int, positions: int, mask: Mask = "additive") -> None:
        self.model: Any = model
        self.mask = mask
        self.cache = SlotCache(_layers(model.config), rows, positions)
        named = inspect.signature(model.forward).parameters
        takes_more = any(one.kind is one.VAR_KEYWORD for one in named.values())
        self._takes_positions = takes_more or "position_ids" in named
        self._takes_keep = "logits_to_keep" in named

    def prompts(self, prompts: Sequence[Sequence[int]], tasks: Sequence[int], first: int) -> Tensor:
        """Read prompts into the rows from `first` on; the logits after each, (prompts, vocabulary)."""
        lengths = [len(prompt) for prompt in prompts]
        # What fills up is hidden by causality. It is the row's own last token, so that whatever a model makes of it
        # comes from this row alone.
        filled = [[*prompt, *[prompt[-1]] * (max(lengths) - len(prompt))] for prompt in prompts]
        ids = torch.tensor(filled)
        self.cache.at_rows(first, len(prompts), ids.shape[1])
        ends = sorted({length - 1 for length in lengths})  # the only positions whose logits are needed
        keep = torch.tensor(ends, device=self.model.device)
        logits = self._call(ids, torch.arange(ids.shape[1]).expand_as(ids), tasks, None, keep)
        at = [ends.index(length - 1) if logits.shape[1] == len(ends) else length - 1 for length in lengths]
        device = logits.device
        return logits[torch.arange(len(prompts), device=device), torch.tensor(at, device=device)]

    def tokens(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        tasks: Sequence[int],
        slots: Sequence[int] | None = None,
    ) -> Tensor:
        """Read one token of each of the first rows, or of the rows `slots`; the logits after it, (rows, vocabulary)."""
        self.cache.at_positions(positions, self.model.device, slots)
        additive = self.mask == "additive"
        mask = self.cache.additive_mask(self.model.dtype) if additive else self.cache.visible.long()
        logits = self._call(torch.tensor(tokens)[:, None], torch.tensor(positions)[:, None], tasks, mask, 1)
        return logits[:, -1]

    def _call(
        self, ids: Tensor, positions: Tensor, tasks: Sequence[int], mask: Tensor | None, keep: int | Tensor
    ) -> Tensor:
        device = self.model.device
        options: dict[str, Any] = {}
        if self._takes_positions:
            options["position_ids"] = positions.to(device)
        if self._takes_keep:
            options["logits_to_keep"] = keep
        logits: Tensor = self.model(
            input_ids=ids.to(device),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            task_ids=torch.tensor(tasks, device=device),
            **options,
        ).logits
        return logits


def _layers(config: PretrainedConfig) -> int:
    """How many layers keep keys and values, at most: decoders that come from an encoder-decoder count two kinds."""
    text = config.get_text_config()
    return max(getattr(text, name, 0) or 0 for name in ("num_hidden_layers", "decoder_layers", "num_layers"))
