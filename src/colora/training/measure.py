"""Measuring a run's bank, as the run's section `evaluation` says; the records go to the run's folder."""

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from peft import PeftModel

from colora.adapter.lookup import only_bank
from colora.bank.card import with_means, write_card
from colora.bank.card_text import Figure
from colora.bank.layout import CONFIG_FILE, find_bank
from colora.bank.tensors import SavedBank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.evaluation.evaluate import Evaluation, evaluate
from colora.evaluation.metrics import metric_options
from colora.evaluation.records import Record, append_records, read_records
from colora.evaluation.settings import EvaluationSettings
from colora.tasks.encode import EncodedTasks
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.base import load_run_bank
from colora.training.chosen import chosen_tasks
from colora.training.config import RunConfig
from colora.training.config_file import parse_config
from colora.training.encode import measured_tasks
from colora.training.resolve import read_run_tasks
from colora.training.run_folder import (
    check_same_tasks,
    run_config,
    task_manifest,
)

__all__ = ["evaluate_bank", "measure", "measured_before"]

MOST_TOLD = 20
"""Tasks that are named where a bank has more of them than its run."""


def evaluate_bank(
    path: str | Path,
    *,
    base: str | None = None,
    tasks: Sequence[Task] | None = None,
    overrides: dict[str, Any] | None = None,
    progress: bool = True,
    only: Sequence[str] | None = None,
    sample: int | None = None,
) -> Evaluation:
    """Measure a bank on the tasks of its run, and append the records to the run's `records.jsonl`.

    Where only some tasks are measured, only their cores are read.

    Args:
        path: folder of a run, or of its bank.
        base: another place of the same base model.
        tasks: instead of those of the run; where their examples have no template, they get the bank's prompts.
        overrides: fields of `EvaluationSpec` that replace those of the run.
        only: names of the only tasks to measure.
        sample: how many tasks to measure at most, drawn by the run's seed.

    Raises:
        TaskIdError: one of `only` is no task of the run.
        BankFileError: no bank there, or a damaged one.
        ConfigError: no run file beside it, or an override that cannot be.
        TaskFileError: the run's task files have faults now, or hold other examples than the bank was trained with.
    """
    folder = find_bank(path)
    run = folder.parent
    config = run_config(run)
    if overrides:
        changed = config.model_dump(mode="json")
        changed["evaluation"] |= overrides
        config = parse_config(changed, "the evaluation")
    own = tasks is None
    if tasks is None:
        tasks = read_run_tasks(config, run)
        check_same_tasks(run, task_manifest(tasks))
    configure_threads(config.training.threads)
    saved, chosen = SavedBank(folder), measured_tasks(config.evaluation, tasks, config.seed)
    if only is not None or sample is not None:
        chosen = chosen_tasks(tasks, only, sample, config.seed)
    some = [task.name for task in chosen if task.name in saved.index] if len(chosen) < len(tasks) else []
    model, tokenizer = load_run_bank(config, saved, base, some or None)
    info, config.output = saved.info, str(run)
    result = measure(
        config, model, tokenizer, info.prompted(chosen), info.max_length, progress, on_card=own and not some
    )
    if own and len(chosen) == len(tasks):
        result.skipped.update(
            dict.fromkeys(_added_later(saved, tasks), "added after the run, which has no examples of it")
        )
    return result


def _added_later(saved: SavedBank, tasks: Sequence[Task]) -> list[str]:
    """A few tasks of the bank that its run does not have."""
    if len(saved.tasks) <= len(tasks):
        return []
    names = {task.name for task in tasks}
    return list(islice((name for name in saved.tasks if name not in names), MOST_TOLD))


def measure(
    config: RunConfig,
    model: PeftModel,
    tokenizer: Tokenizer,
    tasks: list[Task],
    max_length: int,
    progress: bool = True,
    encoded: EncodedTasks | None = None,
    on_card: bool = True,
) -> Evaluation:
    """Measure a bank in memory as the run's `evaluation` says, and append the records to the run's folder.

    Args:
        encoded: what is measured of these tasks, in tokens, if it has been encoded.
        on_card: whether the bank's model card tells the figures, if they are of a whole split that was held out.
    """
    run, spec = Path(config.output), config.evaluation
    _, router, adapter_name = only_bank(model)
    index = router.tasks[adapter_name]
    kept = [task for task in tasks if task.name in index] or tasks  # of none at all, evaluate tells what is wrong
    settings = EvaluationSettings(
        split=spec.split,
        metrics=tuple(spec.metrics),
        max_length=max_length,
        max_new_tokens=spec.max_new_tokens,
        batch_rows=spec.rows,
        limit=spec.limit,
        run=run.resolve().name,
        method=_method(config),
        seed=config.seed,
    )
    is_first = int(os.environ.get("RANK", "0")) == 0  # the others of several processes take part, and write nothing
    encoded = encoded if len(kept) == len(tasks) else None
    result = evaluate(model, tokenizer, kept, settings, index, progress and is_first, encoded)
    result.skipped.update({task.name: "not in the bank (any more)" for task in tasks if task not in kept})
    if not is_first:
        return result
    append_records(run / "records.jsonl", result.records)
    write_json(run / "environment.json", environment())
    if on_card and spec.limit is None and spec.split != "train" and (run / "bank" / CONFIG_FILE).is_file():
        figures = [Figure(one.task, one.metric, one.split, one.value, one.n) for one in result.records]
        write_card(run / "bank", with_means(figures))
    return result


def _method(config: RunConfig) -> str:
    """The method's name in records; a part of the split is told apart from the whole."""
    limit, tasks = config.evaluation.limit, config.evaluation.tasks
    told = [*([] if limit is None else [f"first {limit}"]), *([] if tasks is None else [f"{tasks} tasks"])]
    return ", ".join(["colora", *told])


def measured_before(config: RunConfig) -> list[Record]:
    """The run's records of the split it measures, or none if a metric is missing."""
    file, spec = Path(config.output) / "records.jsonl", config.evaluation
    known = read_records(file) if file.is_file() else []
    records = [one for one in known if (one.split, one.method) == (spec.split, _method(config))]
    wanted = {metric_options()[option].name for option in spec.metrics}
    return records if wanted <= {one.metric for one in records} else []
