"""The examples of a run in tokens, once: for training, for validation, and in which order they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from transformers import PreTrainedModel

from colora.errors import ConfigError
from colora.models.positions import check_positions
from colora.tasks.column.encoded import ColumnRows
from colora.tasks.column.tasks import ColumnTasks
from colora.tasks.encode import EncodedTasks, encode_tasks
from colora.tasks.mixing import TaskMixture
from colora.tasks.schema import Task, first_examples
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import MEASURED, EvaluationSpec
from colora.training.resolve import ResolvedRun

__all__ = ["EncodedRun", "encode_run", "measured_tasks"]


@dataclass(frozen=True)
class EncodedRun:
    """What a trainer takes from a run's tasks.

    Attributes:
        train: the training examples; ids in them are places in the run's `names`. Those of `tasks_from` are encoded
            as they come.
        validation: the validation examples, if the run measures them while it trains; of `tasks_from` those of
            `MEASURED` tasks.
        evaluation: the examples that the run is measured on by their likelihood, if it is.
        mixture: which training example comes when, over all steps.
        pad_token_id: what shorter rows are filled with.
    """

    train: EncodedTasks
    validation: EncodedTasks | None
    evaluation: EncodedTasks | None
    mixture: TaskMixture
    pad_token_id: int


def encode_run(run: ResolvedRun, tokenizer: Tokenizer, model: PreTrainedModel) -> EncodedRun:
    """The run's examples in tokens of this model.

    Raises:
        TaskFileError: listing every example that is too long, or has tokens that the model has no embeddings for.
        ConfigError: if validation examples are wanted and there are none, or the model is too short for `max_length`.
    """
    config, training = run.config, run.config.training
    check_positions(model, training.max_length)

    encoder_decoder = bool(model.config.is_encoder_decoder)

    @cache
    def encoded(split: str, limit: int | None, most: int | None) -> EncodedTasks:
        numbers = _sample(run.tasks, split, most, config.seed)
        tasks = [first_examples(run.tasks[number], split, limit) for number in numbers]
        index = {task.name: number for task, number in zip(tasks, numbers, strict=True)}
        return encode_tasks(tasks, tokenizer, split, training.max_length, encoder_decoder, index)

    # What is measured in the end comes first: its faults must not wait.
    measured, column = config.evaluation, run.column
    most = _most(measured, run.tasks)
    evaluation = encoded(measured.split, measured.limit, most) if "nll" in measured.metrics else None
    if column is None:
        train = encoded("train", None, None)
    else:
        train = ColumnRows(column, tokenizer, "train", training.max_length, encoder_decoder)
    validation = None
    if training.eval_every is not None:
        validation = encoded("val", None, None if column is None else MEASURED)
        if not len(validation):
            raise ConfigError("training.eval_every needs validation examples, but no task has any (tasks.N.val)")
    mixture = TaskMixture(
        train.sizes,
        batch_size=training.rows,
        steps=training.steps,
        policy=training.mixing,
        temperature=training.temperature,
        seed=config.seed,
    )
    if isinstance(train, ColumnRows):
        drawn = np.fromiter(mixture, dtype=np.int64, count=len(mixture))
        train.look_at(np.unique(drawn))
    return EncodedRun(train, validation, evaluation, mixture, tokenizer.pad_token_id)


def measured_tasks(spec: EvaluationSpec, tasks: Sequence[Task], seed: int) -> list[Task]:
    """The tasks of a run that are measured: all, or so many as `evaluation.tasks` says, drawn by seed.

    Args:
        spec: the section `evaluation`.
        tasks: those of the run.
        seed: of the run.
    """
    return [tasks[number] for number in _sample(tasks, spec.split, _most(spec, tasks), seed)]


def _most(spec: EvaluationSpec, tasks: Sequence[Task]) -> int | None:
    return MEASURED if spec.tasks is None and isinstance(tasks, ColumnTasks) else spec.tasks


def _sample(tasks: Sequence[Task], split: str, most: int | None, seed: int) -> list[int]:
    """Numbers of the tasks that are measured on a split, ascending."""
    if most is None or len(tasks) <= most:
        return list(range(len(tasks)))
    if isinstance(tasks, ColumnTasks):
        return tasks.sample(split, most, seed)
    having = [number for number, task in enumerate(tasks) if task.splits[split]]
    if len(having) <= most:
        return having
    chosen: list[int] = np.random.default_rng(seed).choice(having, most, replace=False).tolist()
    return sorted(chosen)
