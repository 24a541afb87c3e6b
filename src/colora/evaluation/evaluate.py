"""Measure a model on tasks: text metrics of what it generates, and the likelihood of the right answers."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import LongTensor, nn

from colora.common.progress import progress_bar
from colora.evaluation.nll import row_ids, token_nll
from colora.evaluation.records import Record
from colora.evaluation.settings import EvaluationSettings
from colora.models.generate import fit_prompts, generate_outputs
from colora.tasks.encode import EncodedTasks
from colora.tasks.schema import Example, Task
from colora.tasks.tokenizer import Tokenizer

__all__ = ["Evaluation", "Prediction", "evaluate"]


@dataclass(frozen=True)
class Prediction:
    """What the model wrote for one example, beside what it should have written."""

    task: str
    input: str
    outputs: tuple[str, ...]
    prediction: str


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        records: one for each task and metric.
        predictions: one for each example, in the order of tasks and examples; empty without text metrics.
        skipped: the reason for each task that has no record.
    """

    records: list[Record]
    predictions: list[Prediction]
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    settings: EvaluationSettings | None = None,
    task_index: Mapping[str, int] | None = None,
    progress: bool = True,
    encoded: EncodedTasks | None = None,
) -> Evaluation:
    """Measure `model` on one split of every task, with rows of all tasks mixed in each batch.

    Args:
        model: a transformers model, causal or encoder-decoder, plain or wrapped by PEFT.
        tokenizer: its tokenizer.
        tasks: what to measure; a task without examples in the split is listed in `skipped`.
        settings: split, metrics and limits; the defaults of `EvaluationSettings` if None.
        task_index: the id of each task, for a model that takes `task_ids`; None for any other model.
        progress: draw a progress bar on standard error if that is a terminal.
        encoded: the examples to be measured, in tokens, if they have been encoded; see `token_nll`.

    Raises:
        ConfigError: if the model has no more than `max_new_tokens` positions.
        TaskIdError: if `task_index` lacks a task.
        TaskFileError: for "nll", listing every example that is too long even without its input.

    Warns:
        UserWarning: once for each task whose inputs had to be cut.
    """
    settings = settings or EvaluationSettings()
    split, metrics = settings.split, settings.chosen
    rows = [(task.name, example) for task in tasks for example in task.splits.get(split, ())[: settings.limit]]
    count = Counter(name for name, _ in rows)
    skipped = {task.name: _nothing_in(split, task) for task in tasks if task.name not in count}
    ids = None if task_index is None else row_ids([name for name, _ in rows], task_index)
    values: dict[tuple[str, str], tuple[float, int]] = {}
    predictions: list[Prediction] = []

    with progress_bar(shown=progress) as bar:
        if rows and any(metric.score is not None for metric in metrics):
            generating = bar.add_task("generating", total=len(rows))
            predictions = _predictions(model, tokenizer, rows, ids, settings, lambda n: bar.advance(generating, n))
        for metric in metrics:
            if rows and metric.score is not None:
                values |= _text_values(metric.name, metric.score, predictions)
            elif rows:
                step = bar.add_task("likelihood", total=len(rows))
                advance = partial(bar.advance, step)
                nll = token_nll(model, tokenizer, tasks, settings, task_index, advance, encoded)
                values |= {(task, metric.name): (one.mean, one.tokens) for task, one in nll.items()}

    records = [
        Record(settings.run, settings.method, task, split, metric.name, *values[task, metric.name], settings.seed)
        for task in count
        for metric in metrics
        if (task, metric.name) in values
    ]
    return Evaluation(records, predictions, skipped)


def _predictions(
    model: nn.Module,
    tokenizer: Tokenizer,
    rows: Sequence[tuple[str, Example]],
    ids: LongTensor | None,
    settings: EvaluationSettings,
    progress: Callable[[int], None],
) -> list[Prediction]:
    """The greedy output for every row, a task's name and an example."""
    prompts = fit_prompts(rows, model, tokenizer, settings.max_length, settings.max_new_tokens)
    texts = generate_outputs(model, tokenizer, prompts, ids, settings.max_new_tokens, settings.batch_rows, progress)
    return [
        Prediction(name, example.input, tuple(example.outputs), text)
        for (name, example), text in zip(rows, texts, strict=True)
    ]


def _text_values(
    metric: str, score: Callable[[str, Sequence[str]], float], predictions: Sequence[Prediction]
) -> dict[tuple[str, str], tuple[float, int]]:
    """For each (task, metric) the mean over its predictions and their number."""
    scores: dict[str, list[float]] = {}
    for prediction in predictions:
        scores.setdefault(prediction.task, []).append(score(prediction.prediction, prediction.outputs))
    return {(task, metric): (sum(values) / len(values), len(values)) for task, values in scores.items()}


def _nothing_in(split: str, task: Task) -> str:
    filled = ", ".join(name for name, examples in task.splits.items() if examples)
    return f"no examples in split {split!r}; splits with examples: {filled or 'none'}"
