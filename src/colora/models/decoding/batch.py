"""Continuous batching: rows of any tasks share every forward pass, join at the next step and leave when they end."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PretrainedConfig

from colora.errors import ConfigError
from colora.models.decoding.cache import check_attention
from colora.models.decoding.logprobs import token_logprobs
from colora.models.decoding.passes import Passes
from colora.models.decoding.probe import checked_mask
from colora.models.decoding.row import Piece, Row
from colora.models.decoding.sampling import RowError, Sampler, next_tokens
from colora.models.decoding.text import TextStream
from colora.models.positions import most_positions
from colora.tasks.prompting.prompts import end_token_ids
from colora.tasks.tokenizer import Tokenizer

__all__ = ["Batch", "Piece", "Row", "RowError", "run_rows"]

logger = logging.getLogger(__name__)


class Batch:
    """The rows that run.

    An error that belongs to one row ends that row alone: its last `Piece` has it.

    Args:
        model: a `PeftModel` with one bank, decoder-only.
        tokenizer: its tokenizer.
        rows: most rows at once.
        positions: longest prompt and output together; by default as many as the model has.
        probe_tasks: ids of the tasks that the model is checked with; by default the first and the last.

    Raises:
        ConfigError: a model that cannot run so, by its configuration or because a few rows of probe have other logits
            than its plain forward pass gives them; or a tokenizer without fast decoding.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: Tokenizer,
        rows: int = 16,
        positions: int | None = None,
        probe_tasks: Sequence[int] | None = None,
    ) -> None:
        self.peft_model = model
        self.model: Any = model.get_base_model()
        self.tokenizer = tokenizer
        config: PretrainedConfig = self.model.config
        self.positions = min(limit for limit in (positions, most_positions(self.model), 2**20) if limit)
        check_attention(config, self.positions)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ConfigError(f"expected a fast tokenizer, found {type(tokenizer).__name__}")
        self.model.eval()
        with torch.no_grad():  # in inference mode a model might keep tables that it could not train with afterwards
            mask = checked_mask(self.model, self.positions, probe_tasks or (0, self.tasks - 1))
        self.most_rows = rows
        self.rows: list[Row] = []
        self.passes = Passes(self.model, rows, self.positions, mask)
        self.cache = self.passes.cache
        self.ends = end_token_ids(tokenizer)

    @property
    def tasks(self) -> int:
        """How many tasks the model has; tasks may come and go."""
        return len(self.peft_model.peft_config[self.peft_model.active_adapters[0]].tasks)

    @property
    def room(self) -> int:
        """How many more rows may join."""
        return self.most_rows - len(self.rows)

    def check(self, row: Row) -> None:
        """Raises ConfigError if this row cannot join: its prompt, or its task."""
        if not 0 < len(row.prompt) < self.positions:
            raise ConfigError(f"expected a prompt of 1 to {self.positions - 1} tokens, found {len(row.prompt)}")
        embeddings = self.model.get_input_embeddings().weight.shape[0]
        if unknown := [token for token in row.prompt if not 0 <= token < embeddings]:
            raise ConfigError(
                f"prompt: expected token ids from 0 to {embeddings - 1}, as many as the model has embeddings, "
                f"found {unknown[0]}"
            )
        if not 0 <= row.task < self.tasks:
            raise ConfigError(f"expected a task from 0 to {self.tasks - 1}, found {row.task}")

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> list[Piece]:
        """Read the prompts of new rows, all in one forward pass, and give each its first token.

        Raises:
            ConfigError: too many rows, or one that `check` refuses; then none joins.
        """
        if len(rows) > self.room:
            raise ConfigError(f"expected at most {self.room} further rows, found {len(rows)}")
        for row in rows:
            self.check(row)
        for row in rows:
            sampling = row.sampling
            row.text = TextStream(self.tokenizer, sampling.stop, sampling.strip, () if sampling.strip else row.prompt)
            row.sampler = Sampler(row.sampling)
        first = len(self.rows)
        self.rows += rows
        return self._advance(list(rows), first)

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Give each running row its next token."""
        return self._advance(list(self.rows), None) if self.rows else []

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Take a row out, whether it has ended or not; the last one moves into its place."""
        index = self._index(row)
        last = self.rows.pop()
        if last is not row:
            self.cache.move(len(self.rows), index)
            self.rows[index] = last
        else:
            self.cache.wipe(index)
        if not self.rows:
            self.cache.reset()

    def _index(self, row: Row) -> int:
        return next(index for index, other in enumerate(self.rows) if other is row)

    def _advance(self, rows: list[Row], first: int | None) -> list[Piece]:
        """The next token of some rows: one pass for all, and if that fails one for each, to find whose fault it is.

        Args:
            first: the place of the first of them if they have just joined, one after the other; None: they run.
        """
        try:
            return self._take(rows, self._forward(rows, first))
        except Exception as error:
            if len(rows) == 1:
                return [self._fail(rows[0], error)]
            logger.exception("a pass of %d rows failed; each is tried alone", len(rows))
        pieces = []
        for row in rows:
            index = self._index(row)
            try:
                logits = self._forward([row], None if first is None else index, [index])
            except Exception as error:
                pieces.append(self._fail(row, error))
            else:
                pieces += self._take([row], logits)
        return pieces

    def _forward(self, rows: Sequence[Row], first: int | None, slots: Sequence[int] | None = None) -> Tensor:
        """The logits of the next token of each row, (rows, vocabulary)."""
        tasks = [row.task for row in rows]
        if first is not None:
            return self.passes.prompts([row.prompt for row in rows], tasks, first)
        positions = [len(row.prompt) + len(row.tokens) - 1 for row in rows]
        return self.passes.tokens([row.tokens[-1] for row in rows], positions, tasks, slots)

    def _take(self, rows: Sequence[Row], logits: Tensor) -> list[Piece]:
        """Append each row's next token; rows that end leave."""
        samplers = [row.sampler for row in rows if row.sampler is not None]
        pieces = []
        for row, token, of_row in zip(rows, next_tokens(samplers, logits), logits, strict=True):
            try:
                if isinstance(token, Exception):
                    raise token
                pieces.append(self._give(row, token, of_row))
            except Exception as error:
                pieces.append(self._fail(row, error))
        return pieces

    def _give(self, row: Row, token: int, logits: Tensor) -> Piece:
        """Append a token; the row leaves if it has ended."""
        assert row.text is not None  # since it joined
        row.tokens.append(token)
        text, logprobs = "", None
        if token in self.ends:
            row.finish = "stop"
        else:
            if row.sampling.logprobs is not None:
                logprobs = token_logprobs(logits, token, row.sampling.logprobs)
            text = row.text.add(token)
            length = len(row.prompt) + len(row.tokens)
            if row.text.stopped:
                row.finish = "stop"
            elif len(row.tokens) >= row.sampling.max_tokens or length >= self.positions:
                row.finish = "length"
        if row.finish is not None:
            text += row.text.end()
            self.leave(row)
        return Piece(row, text, row.finish, logprobs=logprobs)

    def _fail(self, row: Row, error: Exception) -> Piece:
        """End a row that cannot go on."""
        row.finish = "error"
        if any(other is row for other in self.rows):
            self.leave(row)
        if not isinstance(error, RowError):
            logger.error("a row failed after %d tokens", len(row.tokens), exc_info=error)
            what = f"{type(error).__name__}, after {len(row.tokens)} tokens"
            told = RowError(f"the model failed at this request ({what})")
            told.__cause__ = error
            error = told
        return Piece(row, "", "error", error)


def run_rows(batch: Batch, rows: Sequence[Row]) -> list[str]:
    """The texts of all rows, each of which joins as soon as another leaves.

    Raises:
        RowError: a row cannot go on.
    """
    texts = {id(row): "" for row in rows}
    waiting = deque(rows)
    while waiting or batch.rows:
        new = [waiting.popleft() for _ in range(min(batch.room, len(waiting)))]
        for piece in (batch.join(new) if new else []) + batch.step():
            if piece.error is not None:
                raise piece.error
            texts[id(piece.row)] += piece.text
    return [texts[id(row)] for row in rows]
