"""Tasks in groups, a bank for each: the `grouping` of a run file.

OUTPUT/run.yaml, tasks.json     the run as it was asked for
OUTPUT/prompt.json              which prompt `prompt: auto` took, for all groups
OUTPUT/grouping.json            the groups, the run of each task, and the cosines that the groups follow from
OUTPUT/groups/NAME/             an ordinary run of one group, named after its first task

A task costs the same as in one bank for all: the same optimiser steps, and as many rows of it in each. Rows of a step
are spread over the tasks in it, so a group takes that share of `training.rows` that its tasks have in the whole mix. A
group of one task is a bank of one task: a plain LoRA in effect, since no other task shares A and B.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colora.common.device import DTYPES
from colora.common.files import write_json
from colora.common.json_text import parse_json
from colora.common.systems import file_name_fault
from colora.errors import ConfigError
from colora.evaluation.evaluate import Evaluation
from colora.models.base import load_base
from colora.tasks.schema import Task
from colora.training.config import AUTO, RunConfig
from colora.training.config_file import check_grouping
from colora.training.prompts import FILE as PROMPT_FILE
from colora.training.prompts import PromptChoice, choose_prompt, prompted_tasks, read_choice
from colora.training.resolve import read_run_tasks, resolve_run, tasks_in_memory
from colora.training.run import measure_result, train_resolved
from colora.training.run_folder import as_begun, check_free, claim, task_manifest
from colora.transfer.before_training import run_gradients
from colora.transfer.clusters import cluster_tree
from colora.transfer.similarity import gradient_similarity

__all__ = ["GroupedRun", "folder_names", "part_of", "train_groups"]

FILE = "grouping.json"


@dataclass(frozen=True)
class GroupedRun:
    """What a run in groups left behind.

    Attributes:
        groups: the tasks of each group, by the name of its folder.
        banks: the bank of each.
        evaluation: of all tasks, each by the bank of its group.
    """

    groups: dict[str, list[str]]
    banks: dict[str, Path]
    evaluation: Evaluation


def train_groups(config: RunConfig, log: Callable[[str], None] = lambda line: None) -> GroupedRun:
    """Decide the groups of a run, train and measure a bank for each, or go on with what is there.

    Groups that were decided once stay, and a group's run that has ended is not run again.

    Raises:
        ConfigError: the output folder holds another run, listed groups are not the run's tasks, or there are several
            processes.
        otherwise as `train_and_evaluate`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "grouping: expected one process; let one decide the groups, then give each OUTPUT/groups/NAME/run.yaml to "
            "torchrun"
        )
    config, output = as_begun(config), Path(config.output)
    tasks = tasks_in_memory(read_run_tasks(config, output), "grouping")
    manifest = task_manifest(tasks)
    check_grouping(config, [task.name for task in tasks])
    check_free(output, config, manifest)
    choice = _choose_prompt(config, tasks, log)
    asked, config = config, config.model_copy(update={"prompt": choice.prompt if choice else read_choice(config, None)})
    groups = _decided_groups(output / FILE)
    if groups is None:
        decision = _decide(config, [task.name for task in tasks])
        claim(output, asked, manifest)
        if choice is not None:
            write_json(output / PROMPT_FILE, choice.as_json())
        write_json(output / FILE, decision)
        groups = decision["groups"]
    banks: dict[str, Path] = {}
    evaluation = Evaluation([], [])
    for number, (name, task_names) in enumerate(groups.items(), start=1):
        log(f"group {number} of {len(groups)}: {', '.join(task_names)}")
        part = part_of(config, tasks, task_names, output / "groups" / name, log)
        run = resolve_run(part, [task for task in tasks if task.name in task_names], manifest)
        result = train_resolved(run, log=log)
        banks[name] = result.bank
        measured = measure_result(result)
        if measured is not None:
            evaluation.records.extend(measured.records)
            evaluation.skipped.update(measured.skipped)
    return GroupedRun(groups, banks, evaluation)


def part_of(
    config: RunConfig,
    tasks: Sequence[Task],
    names: Sequence[str],
    output: Path,
    log: Callable[[str], None] = lambda line: None,
) -> RunConfig:
    """The run of some tasks of a run: equal steps, and as many rows of each task in a step as it has there.

    Args:
        tasks: all tasks of the run, as they were read.
        names: those of the tasks to keep.
        output: folder of the new run.
        log: told where the rows of a step do not divide, so that a task gets more or fewer rows.
    """
    training = config.training
    power = {"uniform": 0.0, "proportional": 1.0, "temperature": 1.0 / training.temperature}[training.mixing]
    largest = max(len(task.splits["train"]) for task in tasks)
    weights = {task.name: (len(task.splits["train"]) / largest) ** power for task in tasks}
    exact = training.rows * sum(weights[name] for name in names) / sum(weights.values())
    rows = max(1, round(exact / training.accumulation)) * training.accumulation
    if abs(rows - exact) > 1e-6 * exact:
        log(f"{', '.join(names)}: {rows} rows a step in place of {exact:.3g}, a whole number being needed")
    specs = {
        task.name: spec.model_copy(update={"name": task.name}) for task, spec in zip(tasks, config.tasks, strict=True)
    }
    kept = [spec for name, spec in specs.items() if name in names]
    changes: dict[str, Any] = {"output": str(output), "grouping": "none", "tasks": kept}
    if config.shared_splits:  # else a part's own file would divide its texts in another way
        others = [spec for name, spec in specs.items() if name not in names]
        changes["shared_with"] = [*others, *config.shared_with]
    return config.model_copy(update=changes | {"training": training.model_copy(update={"rows": rows})})


def folder_names(task_names: Sequence[str]) -> list[str]:
    """A folder's name for each task name: only letters, digits and _ . + -, and different where case does not count.

    Examples:
        >>> folder_names(["legal: uk", "legal  UK", "sales"])
        ['legal-uk', 'legal-UK-2', 'sales']
    """
    folders: list[str] = []
    for task_name in task_names:
        stem = re.sub(r"[^\w.+]+", "-", task_name).strip("-.") or "group"
        stem = f"{stem}-group" if file_name_fault(stem) else stem
        folder, number = stem, 1
        while folder.casefold() in {other.casefold() for other in folders}:
            number += 1
            folder = f"{stem}-{number}"
        folders.append(folder)
    return folders


def _choose_prompt(config: RunConfig, tasks: Sequence[Task], log: Callable[[str], None]) -> PromptChoice | None:
    """What `prompt: auto` takes for all groups together, if that is asked for and not decided."""
    if read_choice(config, None) != AUTO:
        return None
    model, tokenizer = load_base(config.base, DTYPES[config.training.base_dtype], chat_template=config.chat_template)
    return choose_prompt(config, prompted_tasks(config, tasks, AUTO, None), model, tokenizer, log)


def _decide(config: RunConfig, names: list[str]) -> dict[str, Any]:
    """What `grouping.json` says of a run."""
    cosine: list[list[float]] | None = None
    if isinstance(config.grouping, list):
        groups = [[name for name in names if name in group] for group in config.grouping]
    elif len(names) == 1:
        groups = [names]
    else:
        similarity = gradient_similarity(run_gradients(config))
        groups = cluster_tree(similarity).groups()
        cosine = [[round(value, 4) for value in row] for row in similarity.overall().tolist()]
    groups.sort(key=lambda group: names.index(group[0]))
    named = dict(zip(folder_names([group[0] for group in groups]), groups, strict=True))
    runs = {name: f"groups/{folder}" for folder, group in named.items() for name in group}
    return {"groups": named, "runs": {name: runs[name] for name in names}, "tasks": names, "cosine": cosine}


def _decided_groups(file: Path) -> dict[str, list[str]] | None:
    """The groups that were decided before, if they were."""
    if not file.is_file():
        return None
    try:
        groups = parse_json(file.read_text(encoding="utf-8"))["groups"]
        return {str(name): [str(task) for task in group] for name, group in groups.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: damaged: {error!r}; restore it, or remove it together with the groups") from error
