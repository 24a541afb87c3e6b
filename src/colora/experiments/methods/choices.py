"""The nats of every answer of a closed set, as a trained model has them, or as a task's own frequencies do.

A model's nats of a choice are those of its tokens, without the end token: no choice is the beginning of another, so
the choices exclude each other. They are read from as few rows as can be. A row of one choice tells, at each of its
tokens, the nats of every other token as well, and so all of a choice that leaves the row's path with its last token:
where every choice is a single token, one row tells all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from colora.errors import ConfigError
from colora.evaluation.choices import ChoiceScores
from colora.experiments.methods.answering import answer_logits
from colora.experiments.methods.forward import Row, SplitForward
from colora.experiments.methods.in_context import Questions
from colora.experiments.methods.measure import in_blocks
from colora.experiments.trial import TaskScores
from colora.models.batching import device_of
from colora.tasks.encode import IGNORED
from colora.tasks.prompting.prompts import answer_ids, fit_prompt
from colora.tasks.schema import Example, Task
from colora.tasks.tokenizer import Tokenizer

__all__ = ["asked_choice_scores", "choice_scores", "frequency_scores"]

DIGITS = 3


@dataclass(frozen=True)
class _Asked:
    """One example: its choices in tokens, the paths to read, and for each choice the path that tells it."""

    choices: list[list[int]]
    paths: list[list[int]]
    path_of: list[int]


def choice_scores(
    forward: SplitForward, tokenizer: Tokenizer, tasks: Sequence[Task], split: str, count: int, max_length: int
) -> list[ChoiceScores | None]:
    """The nats of every choice for the first `count` examples of a split; None for a task without choices.

    All choices of an example follow one prompt, cut so that the longest of them fits `max_length` tokens.

    Raises:
        ConfigError: for an answer that is no choice, or a choice that is the beginning of another.
    """
    asked = [
        [_asked(task, example, tokenizer) for example in task.splits[split][:count]] if task.choices else []
        for task in tasks
    ]
    rows = [
        [
            Row((*prompt, *path), (*(IGNORED for _ in prompt), *path))
            for example, one in zip(task.splits[split], examples, strict=False)
            for prompt in [fit_prompt(example, tokenizer, max_length - max(map(len, one.choices)) - 1)[0]]
            for path in one.paths
        ]
        for task, examples in zip(tasks, asked, strict=True)
    ]
    filler = [row for own in rows for row in own][:1]
    if not filler:
        return [None for _ in tasks]
    columns = _Columns([one for examples in asked for one in examples], forward.device)

    def measure(batch: Sequence[Row]) -> Tensor:
        row, logits, _ = forward.label_logits(batch)
        return columns.table(row, logits, len(batch))

    # Every batch has rows of every task: one without choices gets another's, and what they give is not looked at.
    read = in_blocks(forward, [own or filler for own in rows], measure)
    return [
        _scores(task, split, examples, columns, table) if task.choices else None
        for task, examples, table in zip(tasks, asked, read, strict=True)
    ]


def asked_choice_scores(
    model: nn.Module, tokenizer: Tokenizer, task: Task, split: str, asked: Questions
) -> ChoiceScores | None:
    """As `choice_scores`, of one task and with examples before each of its questions, which are those of the split."""
    if not task.choices:
        return None
    examples = [_asked(task, example, tokenizer) for example in task.splits[split][: len(asked.items)]]
    columns = _Columns(examples, device_of(model))
    items = tuple(
        replace(question, answer=tuple(path))
        for question, one in zip(asked.items, examples, strict=True)
        for path in one.paths
    )
    tables = [columns.table(*read) for read in answer_logits(model, tokenizer, replace(asked, items=items))]
    return _scores(task, split, examples, columns, torch.cat(tables))


def frequency_scores(tasks: Sequence[Task], split: str, count: int) -> dict[str, TaskScores]:
    """Each task's choices as they are shared in its own training answers, with one more of each (Laplace).

    Nothing is said of texts or of tokens: the scores have choices alone.

    Raises:
        ConfigError: for a task without choices, or an answer that is none of them.
    """
    if free := [task.name for task in tasks if not task.choices]:
        raise ConfigError(
            "frequencies need tasks with a closed set of answers, found tasks without: "
            f'{", ".join(free)}. Name other groups for the method, by "groups:"'
        )
    scores = {}
    for task in tasks:
        counts = [1] * len(task.choices)
        for index in _right(task, "train", None):
            counts[index] += 1
        row = [round(-math.log(number / sum(counts)), DIGITS) for number in counts]
        right = _right(task, split, count)
        choices = ChoiceScores(names=list(task.choices), right=right, nats=[row] * len(right))
        scores[task.name] = TaskScores(nll=[], tokens=[], choices=choices)
    return scores


def _right(task: Task, split: str, count: int | None) -> list[int]:
    """The index of each example's answer among the choices."""
    answers = [example.outputs[0] for example in task.splits[split][:count]]
    if other := [answer for answer in answers if answer not in task.choices]:
        raise ConfigError(
            f'task "{task.name}", {split}: expected one of the choices {", ".join(task.choices)}, found "{other[0]}"'
        )
    return [task.choices.index(answer) for answer in answers]


def _asked(task: Task, example: Example, tokenizer: Tokenizer) -> _Asked:
    choices = [answer_ids(example, choice, tokenizer) for choice in task.choices]
    for one, tokens in enumerate(choices):
        for other, others in enumerate(choices):
            if one != other and others[: len(tokens)] == tokens:
                raise ConfigError(
                    f'task "{task.name}": expected choices of which none is the beginning of another, '
                    f'found "{task.choices[one]}" and "{task.choices[other]}"'
                )
    paths: list[list[int]] = []
    for choice in sorted(choices, key=len, reverse=True):
        if not any(_tells(path, choice) for path in paths):
            paths.append(choice)
    return _Asked(choices, paths, [[_tells(path, choice) for path in paths].index(True) for choice in choices])


def _tells(path: list[int], choice: list[int]) -> bool:
    """Whether a row of `path` has a place for every token of the choice, after the very tokens before it."""
    return len(path) >= len(choice) and path[: len(choice) - 1] == choice[:-1]


class _Columns:
    """The tokens that occur in choices, as the columns of tables of nats."""

    def __init__(self, asked: Sequence[_Asked], device: torch.device) -> None:
        tokens = sorted({token for one in asked for choice in one.choices for token in choice})
        self.of = {token: column for column, token in enumerate(tokens)}
        self.longest = max(len(choice) for one in asked for choice in one.choices)
        self._tokens = torch.tensor(tokens, device=device)

    def table(self, row: Tensor, logits: Tensor, rows: int) -> Tensor:
        """Nats of these tokens at every place of each row's answer: (rows, longest, columns), 0 after its end.

        Args:
            row: of each answer token, in order: (answer tokens,).
            logits: that predict it, (answer tokens, vocabulary).
            rows: how many rows there are.
        """
        nats = -logits.log_softmax(-1)[:, self._tokens]
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        table = nats.new_zeros(rows, self.longest, len(self._tokens))
        table[row, place] = nats
        return table


def _scores(task: Task, split: str, asked: Sequence[_Asked], columns: _Columns, table: Tensor) -> ChoiceScores:
    """From the nats of all rows of a task, (rows, longest, columns)."""
    values, start, read = [], 0, table.double().cpu()
    for one in asked:
        nats = [
            sum(float(read[start + path, place, columns.of[token]]) for place, token in enumerate(choice))
            for choice, path in zip(one.choices, one.path_of, strict=True)
        ]
        values.append([round(value, DIGITS) for value in nats])
        start += len(one.paths)
    return ChoiceScores(names=list(task.choices), right=_right(task, split, len(asked)), nats=values)
