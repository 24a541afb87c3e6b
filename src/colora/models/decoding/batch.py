"""Continuous batching: rows of any tasks share every forward pass, join at the next step and leave when they end."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PretrainedConfig

from colora.errors import ConfigError
from colora.models.decoding.cache import SlotCache, check_attention
from colora.models.decoding.sampling import Sampler, Sampling, next_tokens
from colora.models.decoding.text import TextStream
from colora.tasks.prompts import end_token_ids
from colora.tasks.tokenizer import Tokenizer

__all__ = ["Batch", "Piece", "Row", "run_rows"]


@dataclass
class Row:
    """One output in the making.

    Attributes:
        prompt: token ids.
        task: the number of its core in the model.
        sampling: how it is continued.
        tokens: of the output, the end token included.
        finish: why it ended: "stop" at an end token or a stop string, "length" at `max_tokens` or the last position.
    """

    prompt: list[int]
    task: int
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    text: TextStream | None = None
    sampler: Sampler | None = None


@dataclass(frozen=True)
class Piece:
    """What a step gave one row: text to pass on, and, with the last one, why the row has ended.

    That is not looked up in the row, which has gone on by the time that another thread reads this.
    """

    row: Row
    text: str
    finish: Literal["stop", "length"] | None


class Batch:
    """The rows that run.

    Args:
        model: a `PeftModel` with one bank, decoder-only.
        tokenizer: its tokenizer.
        rows: most rows at once.
        positions: longest prompt and output together; by default as many as the model has.

    Raises:
        ConfigError: a model whose layers do not look at everything before them, or a tokenizer without fast decoding.
    """

    def __init__(self, model: PeftModel, tokenizer: Tokenizer, rows: int = 16, positions: int | None = None) -> None:
        self.peft_model = model
        self.model: Any = model.get_base_model()
        self.tokenizer = tokenizer
        config: PretrainedConfig = self.model.config
        most_positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.positions = min(limit for limit in (positions, most_positions, 2**20) if limit)
        check_attention(config, self.positions)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ConfigError(f"expected a fast tokenizer, found {type(tokenizer).__name__}")
        self.most_rows = rows
        self.rows: list[Row] = []
        self.cache = SlotCache(config.get_text_config().num_hidden_layers, rows, self.positions)
        self.ends = end_token_ids(tokenizer)
        self.model.eval()

    @property
    def room(self) -> int:
        """How many more rows may join."""
        return self.most_rows - len(self.rows)

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> list[Piece]:
        """Read the prompts of new rows, all in one forward pass, and give each its first token."""
        if len(rows) > self.room:
            raise ConfigError(f"expected at most {self.room} further rows, found {len(rows)}")
        for row in rows:
            if not 0 < len(row.prompt) < self.positions:
                raise ConfigError(f"expected a prompt of 1 to {self.positions - 1} tokens, found {len(row.prompt)}")
            sampling = row.sampling
            row.text = TextStream(
                self.tokenizer, sampling.stop, sampling.strip, () if sampling.strip else row.prompt
            )
            row.sampler = Sampler(row.sampling)
        lengths = [len(row.prompt) for row in rows]
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)  # what fills up is hidden by causality
        for index, row in enumerate(rows):
            ids[index, : len(row.prompt)] = torch.tensor(row.prompt)
        self.cache.at_rows(len(self.rows))
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        ends = sorted({length - 1 for length in lengths})  # the only positions whose logits are needed
        logits = self._forward(ids, positions, rows, None, torch.tensor(ends, device=self.model.device))
        self.rows += rows
        column = torch.tensor([ends.index(length - 1) for length in lengths], device=logits.device)
        return self._take(rows, logits[torch.arange(len(rows), device=logits.device), column])

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Give each running row its next token."""
        if not self.rows:
            return []
        positions = [len(row.prompt) + len(row.tokens) - 1 for row in self.rows]
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows])
        mask = self.cache.at_positions(positions, self.model.device)
        logits = self._forward(ids, torch.tensor(positions)[:, None], self.rows, mask, 1)
        return self._take(list(self.rows), logits[:, -1])

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Take a row out, whether it has ended or not; the last one moves into its place."""
        index = next(index for index, other in enumerate(self.rows) if other is row)
        last = self.rows.pop()
        if last is not row:
            self.cache.move(len(self.rows), index)
            self.rows[index] = last
        if not self.rows:
            self.cache.reset()

    def _forward(
        self, ids: Tensor, positions: Tensor, rows: Sequence[Row], mask: Tensor | None, keep: int | Tensor
    ) -> Tensor:
        device = self.model.device
        tasks = torch.tensor([row.task for row in rows], device=device)
        logits: Tensor = self.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
            task_ids=tasks,
        ).logits
        return logits

    def _take(self, rows: Sequence[Row], logits: Tensor) -> list[Piece]:
        """Append each row's next token; rows that end leave."""
        pieces = []
        samplers = [row.sampler for row in rows if row.sampler is not None]
        for row, token in zip(rows, next_tokens(samplers, logits), strict=True):
            assert row.text is not None  # since it joined
            row.tokens.append(token)
            text = ""
            if token in self.ends:
                row.finish = "stop"
            else:
                text = row.text.add(token)
                length = len(row.prompt) + len(row.tokens)
                if row.text.stopped:
                    row.finish = "stop"
                elif len(row.tokens) >= row.sampling.max_tokens or length >= self.positions:
                    row.finish = "length"
            if row.finish is not None:
                text += row.text.end()
                self.leave(row)
            pieces.append(Piece(row, text, row.finish))
        return pieces


def run_rows(batch: Batch, rows: Sequence[Row]) -> list[str]:
    """The texts of all rows, each of which joins as soon as another leaves."""
    texts = {id(row): "" for row in rows}
    waiting = deque(rows)
    while waiting or batch.rows:
        new = [waiting.popleft() for _ in range(min(batch.room, len(waiting)))]
        for piece in (batch.join(new) if new else []) + batch.step():
            texts[id(piece.row)] += piece.text
    return [texts[id(row)] for row in rows]
