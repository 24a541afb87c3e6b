"""Negative log-likelihood of the right answers: the measure that moves before any text metric does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import LongTensor, Tensor, nn

from colora.common.text import listed
from colora.errors import TaskIdError
from colora.evaluation.settings import EvaluationSettings
from colora.models.batching import device_of, length_batches, pad, pad_token_id
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.models.modes import eval_mode
from colora.tasks.encode import IGNORED, EncodedTasks, encode_tasks
from colora.tasks.schema import Task, first_examples
from colora.tasks.tokenizer import Tokenizer

__all__ = ["TokenNLL", "row_ids", "token_nll"]


@dataclass(frozen=True)
class TokenNLL:
    """The negative log-likelihood of one task's answers.

    Attributes:
        sum: over all answer tokens, in nats.
        tokens: how many answer tokens there are, end tokens included.
    """

    sum: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token; NaN without tokens."""
        return self.sum / self.tokens if self.tokens else float("nan")


def token_nll(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    settings: EvaluationSettings,
    task_index: Mapping[str, int] | None = None,
    progress: Callable[[int], None] | None = None,
    encoded: EncodedTasks | None = None,
) -> dict[str, TokenNLL]:
    """Summed negative log-likelihood of the first acceptable output of every example, end token included.

    Rows of all tasks are mixed in batches of similar length. Rows are right-padded, so position 0 is the first token
    for models with absolute positions too. The logits of answer tokens are turned into log-probabilities in float32
    (or float64 if the model is in float64), and the sums of the rows are added up in float64.

    Args:
        model: a transformers model, causal or encoder-decoder, plain or wrapped by PEFT.
        tokenizer: its tokenizer.
        tasks: what to measure; a task without examples in the split is absent from the result.
        settings: split, `max_length`, `batch_rows` and `limit`.
        task_index: the id of each task, given to the model as `task_ids` LongTensor (rows,). None: the model gets no
            `task_ids`, as a base model or a plain LoRA wants it.
        progress: called with the number of rows just measured.
        encoded: the same examples of the same tasks in tokens, cut to `max_length`, if they have been encoded.

    Returns:
        for each task name its sum in nats and its number of tokens.

    Raises:
        TaskIdError: if `task_index` lacks a task.
        TaskFileError: listing every example that is too long even without its input.

    Warns:
        UserWarning: once for each task whose inputs had to be cut.
    """
    seq2seq, split = is_encoder_decoder(model), settings.split
    if encoded is None:
        chosen = [first_examples(task, split, settings.limit) for task in tasks]
        encoded = encode_tasks(chosen, tokenizer, split, settings.max_length, seq2seq)
    rows = [encoded[row] for row in range(len(encoded))]
    names = [task.name for task, size in zip(tasks, encoded.sizes, strict=True) for _ in range(size)]
    ids = None if task_index is None else row_ids(names, task_index)
    device, filler = device_of(model), pad_token_id(tokenizer)
    sums, tokens = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    lengths = [len(row["input_ids"]) + len(row["labels"]) for row in rows]
    with eval_mode(model):
        for batch in length_batches(lengths, settings.batch_rows):
            inputs, labels = _padded([rows[row] for row in batch], filler, device)
            if ids is not None:
                inputs["task_ids"] = ids[batch].to(device)
            losses, counts = row_nll(model, inputs, labels), label_tokens(labels, seq2seq)
            for row, loss, count in zip(batch, losses.tolist(), counts.tolist(), strict=True):
                sums[names[row]] += loss
                tokens[names[row]] += count
            if progress is not None:
                progress(len(batch))
    return {name: TokenNLL(sums[name], tokens[name]) for name in sums}


def row_ids(names: Sequence[str], task_index: Mapping[str, int]) -> LongTensor:
    """The id of each row's task. Raises TaskIdError if `task_index` lacks a task."""
    if missing := sorted(name for name in set(names) if name not in task_index):  # of which there may be a million
        known = listed(task_index, 20)
        raise TaskIdError(f"expected tasks known to the model ({known}), found {listed(missing, 20)}")
    return torch.tensor([task_index[name] for name in names], dtype=torch.long)  # type: ignore[return-value]


def _padded(rows: Sequence[Mapping[str, Any]], filler: int, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """What the model takes of a batch of encoded rows, and their labels, LongTensor (rows, longest)."""
    input_ids, mask = pad([row["input_ids"] for row in rows], filler, device)
    labels, _ = pad([row["labels"] for row in rows], IGNORED, device)
    return {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}, labels
