"""Negative transfer: which tasks are worse off in a common bank than alone, measured on held-out examples.

Each task is trained a second time, alone, with equal steps and rows of its own: OUTPUT/alone/NAME, an ordinary run of
one task. Both models are measured on the same validation examples, so the difference has a paired standard error:
for nats d_i and tokens t_i of n examples, R = Σ d_i / Σ t_i and se² = n / (n − 1) · Σ (d_i − R t_i)² / (Σ t_i)². More
than two standard errors decide; of forty tasks without any difference about one is then called worse off.

Test examples are not looked at: who trains alone would be chosen by them, and no number on them could be trusted after.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colora.adapter.model import bank_tuner
from colora.common.files import write_json
from colora.errors import ConfigError
from colora.evaluation.evaluate import evaluate
from colora.evaluation.metrics import rouge_l
from colora.evaluation.nll import token_nll
from colora.evaluation.settings import EvaluationSettings
from colora.tasks.schema import Task
from colora.tasks.splits.shared import seen_note
from colora.training.config import RunConfig
from colora.training.resolve import read_run_tasks, tasks_in_memory
from colora.training.run import TrainResult, train
from colora.transfer.grouping import folder_names, part_of

__all__ = ["FILE", "PairedDifference", "TaskTransfer", "measure_transfer", "paired_difference"]

FILE = "transfer.json"
SPLIT = "val"
ERRORS = 2.0
"""Standard errors that a difference must exceed to be called one."""


@dataclass(frozen=True)
class PairedDifference:
    """One measure of a task in the bank and alone.

    Attributes:
        together, alone: means.
        difference: together − alone.
        error: its standard error over examples; None with fewer than two.
    """

    together: float
    alone: float
    difference: float
    error: float | None

    @property
    def clear(self) -> bool:
        """Whether the difference is more than chance over examples explains."""
        return self.error is not None and abs(self.difference) > ERRORS * self.error


@dataclass(frozen=True)
class TaskTransfer:
    """One task in the common bank and alone, measured on `examples` validation examples.

    Attributes:
        nll: nats per token.
        rouge: ROUGE-L, 0 to 100; None if it was not asked for.
    """

    task: str
    examples: int
    nll: PairedDifference
    rouge: PairedDifference | None = None

    @property
    def verdict(self) -> str:
        """ "loses", "gains" or "even", by the likelihood."""
        if not self.nll.clear:
            return "even"
        return "loses" if self.nll.difference > 0 else "gains"

    def sentence(self) -> str:
        """The comparison in words, with advice for a task that loses."""
        nll = self.nll
        if self.verdict == "even":
            few = ", too few examples to tell" if nll.error is None else ""
            return f"task {self.task}: no clear difference ({nll.together:.2f}; alone {nll.alone:.2f}{few})"
        size = f"{self.verdict} {abs(nll.difference):.2f} ± {nll.error:.2f} nats per token in the common bank"
        advice = ": train it alone" if self.verdict == "loses" else ""
        return f"task {self.task} {size} ({nll.together:.2f}; alone {nll.alone:.2f}){advice}"


def measure_transfer(
    config: RunConfig, rouge: bool = False, log: Callable[[str], None] = lambda line: None
) -> list[TaskTransfer]:
    """Measure every task of a run in its bank and alone; trains what is not there yet, and goes on where it stopped.

    Writes OUTPUT/transfer.json.

    Args:
        config: the run, of several tasks in one bank.
        rouge: also generate the outputs and compare ROUGE-L.
        log: takes lines for the user.

    Returns:
        the comparison of each task, in the order of the run.

    Raises:
        ConfigError: one task only, a run in groups, a task without validation examples or not in the bank any more.
        otherwise as `train`.
    """
    output = Path(config.output)
    if config.grouping != "none":
        raise ConfigError(f"{output} is a run in groups: name the run of one group, {output / 'groups'}/NAME")
    tasks = tasks_in_memory(read_run_tasks(config, output), "colora transfer")
    if len(tasks) < 2:
        raise ConfigError(f"expected several tasks, found only {tasks[0].name!r}: transfer is between tasks")
    if without := [task.name for task in tasks if not task.splits[SPLIT]]:
        raise ConfigError(
            f"expected validation examples (tasks.N.{SPLIT}) for every task, found none for {', '.join(without)}; test "
            "examples must not choose who trains alone"
        )
    if seen := seen_note(tasks, SPLIT):
        log(seen)
    result = train(config, log=log)
    tasks = list(result.tasks)  # with their prompts
    config = config.model_copy(update={"prompt": result.run.prompt})
    index = {name: place for place, name in enumerate(bank_tuner(result.model).tasks)}
    if gone := [task.name for task in tasks if task.name not in index]:
        raise ConfigError(f"{result.bank}: expected the run's tasks, but it has no {', '.join(gone)} (any more)")
    together = {task.name: _measured(result, task, index[task.name], config, rouge) for task in tasks}
    del result
    comparisons = []
    for task, folder in zip(tasks, folder_names([task.name for task in tasks]), strict=True):
        log(f"{task.name} alone")
        run_alone = part_of(config, tasks, [task.name], output / "alone" / folder, log)
        alone = _measured(train(run_alone, log=log), task, 0, config, rouge)
        comparisons.append(_compared(task.name, together[task.name], alone))
    write_json(output / FILE, {"split": SPLIT, "tasks": [_as_json(one) for one in comparisons]})
    return comparisons


def paired_difference(together: Sequence[float], alone: Sequence[float], weights: Sequence[float]) -> PairedDifference:
    """Compare Σ together / Σ weights with the same of `alone`, by the ratio estimator of the module's docstring.

    Args:
        together, alone: of each example its nats, or its score.
        weights: of each example its tokens, or 1.
    """
    total, n = math.fsum(weights), len(weights)
    differences = [one - other for one, other in zip(together, alone, strict=True)]
    ratio = math.fsum(differences) / total
    error = None
    if n > 1:
        spread = math.fsum((d - ratio * t) ** 2 for d, t in zip(differences, weights, strict=True))
        error = math.sqrt(n / (n - 1) * spread) / total
    return PairedDifference(math.fsum(together) / total, math.fsum(alone) / total, ratio, error)


@dataclass(frozen=True)
class _Examples:
    """Nats, tokens and scores of one model on each validation example of one task."""

    nats: list[float]
    tokens: list[int]
    scores: list[float]


def _measured(result: TrainResult, task: Task, index: int, config: RunConfig, rouge: bool) -> _Examples:
    options = config.evaluation
    settings = EvaluationSettings(
        split=SPLIT,
        metrics=("rougeL",),
        max_length=config.training.max_length,
        max_new_tokens=options.max_new_tokens,
        batch_rows=options.rows,
        limit=options.limit,
    )
    # A task for each example: what is measured of a task is then measured of the example.
    rows = [
        Task(f"{task.name}/{number}", {SPLIT: (example,)}, task.source, None)
        for number, example in enumerate(task.splits[SPLIT][: options.limit])
    ]
    ids = {row.name: index for row in rows}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for each example that is cut
        nll = token_nll(result.model, result.tokenizer, rows, settings, ids)
    scores = []
    if rouge:
        evaluation = evaluate(result.model, result.tokenizer, [task], settings, {task.name: index})
        scores = [rouge_l(one.prediction, one.outputs) for one in evaluation.predictions]
    return _Examples([nll[row.name].sum for row in rows], [nll[row.name].tokens for row in rows], scores)


def _compared(task: str, together: _Examples, alone: _Examples) -> TaskTransfer:
    nll = paired_difference(together.nats, alone.nats, together.tokens)
    ones = [1.0] * len(together.scores)
    rouge = paired_difference(together.scores, alone.scores, ones) if ones else None
    return TaskTransfer(task, len(together.nats), nll, rouge)


def _as_json(comparison: TaskTransfer) -> dict[str, Any]:
    return asdict(comparison) | {"verdict": comparison.verdict, "sentence": comparison.sentence()}
