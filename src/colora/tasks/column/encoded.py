"""The rows of a column's tasks in tokens, each encoded when it is asked for."""

import warnings

import numpy as np
from jaxtyping import Int

from colora.common.progress import progress_bar
from colora.errors import ConfigError
from colora.tasks.column.tasks import ColumnTasks
from colora.tasks.encode import Encoded, EncodedRow, EncodedTasks, EncodingReport, encode_causal, encode_seq2seq
from colora.tasks.faults import Faults
from colora.tasks.prompting.chat_template import chat_format
from colora.tasks.prompting.prompts import end_token_id
from colora.tasks.tokenizer import Tokenizer
from colora.tasks.vocabulary import beyond_embeddings

__all__ = ["ColumnRows"]


class ColumnRows(EncodedTasks):
    """One split of all tasks as a dataset, as `encode_tasks` would make it; ids are the tasks' numbers.

    Args:
        tasks: whose rows.
        tokenizer: a transformers tokenizer.
        split: "train", "val" or "test".
        max_length: limit in tokens, see `encode_causal` and `encode_seq2seq`.
        encoder_decoder: whether the model is one.

    Attributes:
        sizes: number of rows of each task, (K,).
        offsets: index of each task's first row, (K,).
        report: one, of all the rows that `look_at` looked at.
    """

    def __init__(
        self, tasks: ColumnTasks, tokenizer: Tokenizer, split: str, max_length: int, encoder_decoder: bool = False
    ) -> None:
        self._tasks, self._tokenizer, self._split, self._max_length = tasks, tokenizer, split, max_length
        self._encode = encode_seq2seq if encoder_decoder else encode_causal
        self._end_id = end_token_id(tokenizer, encoder_decoder)
        self._notes = bool(tokenizer.chat_template) and not encoder_decoder
        self.sizes = sizes = tasks.sizes(split)
        self.offsets = np.cumsum(sizes) - sizes
        self._count = int(sizes.sum())
        self.report: list[EncodingReport] = []

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> EncodedRow:
        """Example `index` of all tasks, counted through.

        Raises:
            TaskFileError: it is too long without its input, or has tokens without an embedding.
            ConfigError: a chat template that raises or loses text.
        """
        faults = Faults()
        task, row = self._row(index, faults)
        faults.raise_any()
        return {"input_ids": row.input_ids, "labels": row.labels, "task_ids": task}

    def look_at(self, indices: Int[np.ndarray, " n"]) -> None:
        """Encode these rows once, so that what is wrong with them is told before anything is trained.

        Raises:
            TaskFileError: listing the rows that are too long without their input, or have tokens without an embedding.
            ConfigError: a chat template that raises or loses text.

        Warns:
            UserWarning: inputs had to be cut; what the chat template makes of them changes from day to day.
        """
        faults, tokens, longest, cut, dropped = Faults(), 0, 0, 0, 0
        with progress_bar() as bar:
            step = bar.add_task("looking at examples", total=len(indices))
            for index in indices.tolist():
                _, row = self._row(index, faults)
                bar.advance(step)
                tokens, longest = tokens + len(row.input_ids), max(longest, len(row.input_ids))
                cut, dropped = cut + (row.truncated > 0), dropped + row.truncated
        faults.raise_any()
        self.report = [EncodingReport("tasks_from", len(indices), tokens, longest, cut, dropped)]
        for note in chat_format(self._tokenizer).notes if self._notes else ():
            warnings.warn(note, stacklevel=2)
        if cut:
            warnings.warn(
                f"{cut} of {len(indices)} {self._split} inputs were cut to fit {self._max_length} tokens ({dropped} "
                "tokens dropped from their beginnings)",
                stacklevel=2,
            )

    def _row(self, index: int, faults: Faults) -> tuple[int, Encoded]:
        task, example = self._tasks.example(self._split, index)
        try:
            row = self._encode(example, self._tokenizer, self._max_length, end_id=self._end_id)
        except ConfigError as error:  # a chat template that cannot take this very text
            raise ConfigError(f'{self._told(index)}: task "{self._tasks.names[task]}": {error}') from error
        if row.too_long:
            found = f'{max(len(row.input_ids), len(row.labels))} without its input (output "{example.outputs[0][:40]}")'
            self._add(faults, index, f"expected at most {self._max_length} tokens, found {found}")
        if fault := beyond_embeddings([*row.input_ids, *row.labels], self._tokenizer):
            self._add(faults, index, fault)
        return task, row

    def _add(self, faults: Faults, index: int, message: str) -> None:
        file, place = self._tasks.place(self._split, index)
        faults.add(file, message, place)

    def _told(self, index: int) -> str:
        return ":".join(self._tasks.place(self._split, index))
