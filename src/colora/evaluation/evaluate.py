"""Measure a model on tasks: text metrics of what it generates, and the likelihood of the right answers."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import LongTensor, nn

from colora.common.progress import progress_bar
from colora.errors import ConfigError, TaskIdError
from colora.evaluation.metrics import exact_match, rouge_l
from colora.evaluation.nll import token_nll
from colora.evaluation.records import Record
from colora.models.generate import fit_prompts, generate_outputs
from colora.tasks.schema import SPLITS, Task
from colora.tasks.tokenizer import Tokenizer

__all__ = ["METRICS", "Evaluation", "Prediction", "evaluate"]

TEXT_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"rougeL": rouge_l, "exact_match": exact_match}
METRICS = (*TEXT_METRICS, "nll")


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
    *,
    split: str = "test",
    task_index: Mapping[str, int] | None = None,
    metrics: Sequence[str] = METRICS,
    max_length: int = 512,
    max_new_tokens: int = 64,
    batch_rows: int = 16,
    limit: int | None = None,
    run: str = "",
    method: str = "",
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Measure `model` on one split of every task, with rows of all tasks mixed in each batch.

    Args:
        model: a transformers model, causal or encoder-decoder, plain or wrapped by PEFT.
        tokenizer: its tokenizer.
        tasks: what to measure; a task without examples in `split` is listed in `skipped`.
        split: which split.
        task_index: the id of each task, for a model that takes `task_ids`; None for any other model.
        metrics: of "rougeL", "exact_match" (both of greedy outputs) and "nll" (recorded as "token_nll").
        max_length: longest row in tokens as in training (causal: prompt and answer; encoder-decoder: each of the two).
            Longer inputs lose their beginning. For generation it limits the prompt alone, which is cut further only
            where the model has too few positions for `max_new_tokens` after it.
        max_new_tokens: longest generated output in tokens.
        batch_rows: rows per batch.
        limit: use only the first so many examples of each task.
        run, method, seed: copied into the records.
        progress: draw a progress bar on standard error if that is a terminal.

    Raises:
        ConfigError: listing every unknown metric, unknown split and number that is not positive; or if the model has
            no more than `max_new_tokens` positions.
        TaskIdError: if `task_index` lacks a task.
        TaskFileError: for "nll", listing every example that is too long even without its input.

    Warns:
        UserWarning: once for each task whose inputs had to be cut.
    """
    faults = [f"metrics: expected some of {', '.join(METRICS)}, found {m!r}" for m in metrics if m not in METRICS]
    if split not in SPLITS:
        faults.append(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    if limit is not None and limit < 1:
        faults.append(f"limit: expected at least 1 or None, found {limit}")
    if faults:
        raise ConfigError("cannot evaluate:", faults)
    rows = [(task.name, example) for task in tasks for example in task.splits.get(split, ())[:limit]]
    count = Counter(name for name, _ in rows)
    skipped = {task.name: _nothing_in(split, task) for task in tasks if task.name not in count}
    ids = None if task_index is None else _row_ids([name for name, _ in rows], task_index)
    text_metrics = [name for name in metrics if name in TEXT_METRICS]
    values: dict[tuple[str, str], tuple[float, int]] = {}
    predictions: list[Prediction] = []

    with progress_bar(shown=progress) as bar:
        if rows and text_metrics:
            step = bar.add_task("generating", total=len(rows))
            prompts = fit_prompts(rows, model, tokenizer, max_length, max_new_tokens)
            texts = generate_outputs(
                model, tokenizer, prompts, ids, max_new_tokens, batch_rows, lambda done: bar.advance(step, done)
            )
            predictions = [
                Prediction(name, example.input, tuple(example.outputs), text)
                for (name, example), text in zip(rows, texts, strict=True)
            ]
            for metric in text_metrics:
                totals = dict.fromkeys(count, 0.0)
                for one in predictions:
                    totals[one.task] += TEXT_METRICS[metric](one.prediction, one.outputs)
                values |= {(task, metric): (totals[task] / n, n) for task, n in count.items()}
        if rows and "nll" in metrics:
            second = bar.add_task("likelihood", total=len(rows))
            nll = token_nll(
                model, tokenizer, tasks, split, task_index, max_length, batch_rows, limit,
                lambda done: bar.advance(second, done),
            )  # fmt: skip
            values |= {(task, "nll"): (one.mean, one.tokens) for task, one in nll.items()}

    records = [
        Record(run, method, task, split, "token_nll" if metric == "nll" else metric, *values[task, metric], seed)
        for task in count
        for metric in metrics
        if (task, metric) in values
    ]
    return Evaluation(records, predictions, skipped)


def _row_ids(names: Sequence[str], task_index: Mapping[str, int]) -> LongTensor:
    if missing := sorted(set(names) - set(task_index)):
        raise TaskIdError(f"expected tasks known to the model ({', '.join(task_index)}), found {', '.join(missing)}")
    return torch.tensor([task_index[name] for name in names], dtype=torch.long)  # type: ignore[return-value]


def _nothing_in(split: str, task: Task) -> str:
    filled = ", ".join(name for name, examples in task.splits.items() if examples)
    return f"no examples in split {split!r}; splits with examples: {filled or 'none'}"
