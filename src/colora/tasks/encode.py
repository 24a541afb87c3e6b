"""Examples to token ids and labels, with a report of what had to be cut."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypedDict

import numpy as np
from torch.utils.data import Dataset

from colora.errors import ConfigError, TaskIdError
from colora.tasks.faults import Faults, quoted
from colora.tasks.prompting.chat_template import chat_format
from colora.tasks.prompting.prompts import answer_ids, end_token_id, fit_prompt
from colora.tasks.schema import Example, Task
from colora.tasks.tokenizer import Tokenizer
from colora.tasks.vocabulary import beyond_embeddings

__all__ = [
    "IGNORED",
    "Encoded",
    "EncodedRow",
    "EncodedTasks",
    "EncodingReport",
    "encode_causal",
    "encode_seq2seq",
    "encode_tasks",
    "prompt_and_answer",
]

IGNORED = -100
"""The label of tokens that losses leave out, as in transformers."""


@dataclass(frozen=True)
class Encoded:
    """One example in tokens.

    Attributes:
        input_ids: what the model reads.
        labels: the tokens to predict, `IGNORED` elsewhere; as long as `input_ids` for causal models.
        truncated: number of tokens of the input text that were dropped.
        too_long: whether it exceeds the limit even with all of its input text dropped; `input_ids` and `labels`
            then show that shortest form.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: int
    too_long: bool


def encode_causal(
    example: Example, tokenizer: Tokenizer, max_length: int, output: str | None = None, end_id: int | None = None
) -> Encoded:
    """Prompt, output and end token in a row; labels on the last two only.

    Args:
        example: what to encode.
        tokenizer: a transformers tokenizer.
        max_length: limit of all tokens together. Only the input text gives way, from its left.
        output: the output to train on; by default the example's first.
        end_id: `end_token_id(tokenizer)`, for callers with many examples.
    """
    answer = answer_ids(example, output if output is not None else example.outputs[0], tokenizer)
    answer.append(end_token_id(tokenizer) if end_id is None else end_id)
    prompt, dropped = fit_prompt(example, tokenizer, max_length - len(answer))
    input_ids = prompt + answer
    return Encoded(input_ids, [IGNORED] * len(prompt) + answer, dropped, len(input_ids) > max_length)


def encode_seq2seq(
    example: Example, tokenizer: Tokenizer, max_length: int, output: str | None = None, end_id: int | None = None
) -> Encoded:
    """The prompt for the encoder and the output for the decoder, each with an end token and each of at most
    `max_length` tokens; arguments as for `encode_causal`."""
    answer = answer_ids(example, output if output is not None else example.outputs[0], tokenizer, encoder_decoder=True)
    answer.append(end_token_id(tokenizer, encoder_decoder=True) if end_id is None else end_id)
    prompt, dropped = fit_prompt(example, tokenizer, max_length, encoder_decoder=True)
    return Encoded(prompt, answer, dropped, max(len(prompt), len(answer)) > max_length)


@dataclass(frozen=True)
class EncodingReport:
    """What encoding one task came to; tokens are counted in `input_ids`.

    Attributes:
        name: the task.
        examples: how many there are.
        tokens: of all of them.
        max_tokens: of the longest.
        truncated: how many examples lost part of their input.
        tokens_dropped: how many tokens they lost.
    """

    name: str
    examples: int
    tokens: int
    max_tokens: int
    truncated: int
    tokens_dropped: int


class EncodedRow(TypedDict):
    """One example in the form that `TaskCollator` takes."""

    input_ids: list[int]
    labels: list[int]
    task_ids: int


def prompt_and_answer(row: EncodedRow) -> tuple[list[int], list[int]]:
    """The token ids of a row's prompt, and those of its answer."""
    ids, labels = row["input_ids"], row["labels"]
    if len(ids) == len(labels) and IGNORED in labels:
        answer = [label for label in labels if label != IGNORED]
        return ids[: len(ids) - len(answer)], answer
    return ids, labels  # of an encoder-decoder


class EncodedTasks(Dataset[EncodedRow]):
    """The rows of all tasks, one task after the other, as a dataset.

    Attributes:
        sizes: number of rows of each task, in the order of the tasks.
        offsets: index of each task's first row.
        report: an `EncodingReport` for each task.
    """

    sizes: Sequence[int] | np.ndarray
    offsets: Sequence[int] | np.ndarray

    def __init__(self, items: list[EncodedRow], sizes: list[int], report: list[EncodingReport]) -> None:
        self._items = items
        self.sizes = sizes
        self.offsets = [0, *accumulate(sizes)][:-1]
        self.report = report

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> EncodedRow:
        """Example `index` of all tasks, counted through."""
        return self._items[index]


def encode_tasks(
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    split: str,
    max_length: int,
    encoder_decoder: bool = False,
    task_index: Mapping[str, int] | None = None,
) -> EncodedTasks:
    """Encodes one split of all tasks, with each example's first acceptable output.

    Args:
        tasks: what to encode; a task may have no example in this split.
        tokenizer: a transformers tokenizer.
        split: "train", "val" or "test".
        max_length: limit in tokens, see `encode_causal` and `encode_seq2seq`.
        encoder_decoder: whether the model is one.
        task_index: each task's index in the bank; by default that in `tasks`.

    Raises:
        TaskFileError: listing every example that is too long without its input, or has tokens without an embedding.
        TaskIdError: if `task_index` lacks a task.
        ConfigError: a chat template that raises or loses text, or no token that could end an output.

    Warns:
        UserWarning: once for each task whose inputs had to be cut; a chat template whose prompts change from day to
            day, or whose answers follow something else than its prompts.
    """
    if task_index is None:
        task_index = {task.name: index for index, task in enumerate(tasks)}
    if unknown := [task.name for task in tasks if task.name not in task_index]:
        raise TaskIdError(f"expected tasks of the bank, found {quoted(unknown)}")
    encode = encode_seq2seq if encoder_decoder else encode_causal
    end_id = end_token_id(tokenizer, encoder_decoder)
    faults = Faults()
    items: list[EncodedRow] = []
    report: list[EncodingReport] = []
    for task in tasks:
        rows = _encode_task(task, split, lambda example: encode(example, tokenizer, max_length, end_id=end_id))
        for number, row in enumerate(rows, start=1):
            if row.too_long:
                _note_too_long(task, split, number, row, max_length, faults)
            if fault := beyond_embeddings([*row.input_ids, *row.labels], tokenizer):
                faults.add(f'task "{task.name}"', f"{split} example {number}: {fault}")
            items.append({"input_ids": row.input_ids, "labels": row.labels, "task_ids": task_index[task.name]})
        lengths = [len(row.input_ids) for row in rows]
        dropped = [row.truncated for row in rows if row.truncated]
        report.append(
            EncodingReport(task.name, len(rows), sum(lengths), max(lengths, default=0), len(dropped), sum(dropped))
        )
    faults.raise_any()
    for note in chat_format(tokenizer).notes if tokenizer.chat_template and not encoder_decoder else ():
        warnings.warn(note, stacklevel=2)
    for entry in report:
        if entry.truncated:
            warnings.warn(
                f'task "{entry.name}": {entry.truncated} of {entry.examples} {split} inputs were cut to fit '
                f"{max_length} tokens ({entry.tokens_dropped} tokens dropped from their beginnings)",
                stacklevel=2,
            )
    return EncodedTasks(items, [entry.examples for entry in report], report)


def _encode_task(task: Task, split: str, encode: Callable[[Example], Encoded]) -> list[Encoded]:
    rows = []
    for number, example in enumerate(task.splits[split], start=1):
        try:
            rows.append(encode(example))
        except ConfigError as error:  # a chat template that cannot take this very text
            raise ConfigError(f'task "{task.name}": {split} example {number}: {error}') from error
    return rows


def _note_too_long(task: Task, split: str, number: int, row: Encoded, max_length: int, faults: Faults) -> None:
    start = task.splits[split][number - 1].outputs[0][:40]
    found = f'{max(len(row.input_ids), len(row.labels))} without its input (output "{start}")'
    message = f"{split} example {number}: expected at most {max_length} tokens, found {found}"
    faults.add(f'task "{task.name}"', message)
