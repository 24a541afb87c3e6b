"""The examples of a run in tokens, once: for training, for validation, and in which order they come."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from colora.errors import ConfigError
from colora.models.positions import check_positions
from colora.tasks.encode import EncodedTasks, encode_tasks
from colora.tasks.mixing import TaskMixture
from colora.tasks.schema import first_examples
from colora.tasks.tokenizer import Tokenizer
from colora.training.resolve import ResolvedRun

__all__ = ["EncodedRun", "encode_run"]


@dataclass(frozen=True)
class EncodedRun:
    """What a trainer takes from a run's tasks.

    Attributes:
        train: the training examples; ids in them are places in the run's `names`.
        validation: the validation examples, if the run measures them while it trains.
        evaluation: the examples that the run is measured on by their likelihood, if it is.
        mixture: which training example comes when, over all steps.
        pad_token_id: what shorter rows are filled with.
    """

    train: EncodedTasks
    validation: EncodedTasks | None
    evaluation: EncodedTasks | None
    mixture: TaskMixture
    pad_token_id: int


def encode_run(run: ResolvedRun, tokenizer: Tokenizer, model: Any) -> EncodedRun:
    """The run's examples in tokens of this model.

    Raises:
        TaskFileError: listing every example that is too long, or has tokens that the model has no embeddings for.
        ConfigError: if validation examples are wanted and there are none, or the model is too short for `max_length`.
    """
    config, training = run.config, run.config.training
    check_positions(model, training.max_length)

    @cache
    def encoded(split: str, limit: int | None) -> EncodedTasks:
        tasks = [first_examples(task, split, limit) for task in run.tasks]
        return encode_tasks(tasks, tokenizer, split, training.max_length, bool(model.config.is_encoder_decoder))

    # What is measured in the end comes first: its faults must not wait.
    measured = config.evaluation
    evaluation = encoded(measured.split, measured.limit) if "nll" in measured.metrics else None
    train = encoded("train", None)
    validation = None
    if training.eval_every is not None:
        validation = encoded("val", None)
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
    return EncodedRun(train, validation, evaluation, mixture, tokenizer.pad_token_id)
