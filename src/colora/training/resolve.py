"""A run resolved: what is known before a model is loaded, found once and handed on."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from colora.adapter.config import CoLoRAConfig
from colora.bank.layout import BankInfo, read_bank_info
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError, TaskFileError
from colora.tasks.column.read import read_column_tasks
from colora.tasks.column.tasks import ColumnTasks
from colora.tasks.faults import quoted
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.adapter_config import bank_config
from colora.training.config import AUTO, ON_DEVICE, SPECTRAL, RunConfig
from colora.training.config_file import check_grouping
from colora.training.prompts import (
    PromptChoice,
    check_chat,
    choose_prompt,
    prompted_tasks,
    read_choice,
    source_of,
    table_of,
)
from colora.training.run_folder import as_begun, differing_tasks, task_manifest
from colora.training.starts.from_bank import resolve_adapter
from colora.training.starts.in_store import starts_in_store

__all__ = ["ResolvedRun", "read_run_tasks", "resolve_run", "settle_prompt", "tasks_in_memory"]

Log = Callable[[str], None]


@dataclass(frozen=True)
class ResolvedRun:
    """A run with everything that its files say.

    Attributes:
        config: the run file, with the adapter settings that hold: those of the bank it starts from, if it does.
        tasks: the tasks as they were read; those of `tasks_from` are made as they are asked for.
        manifest: for each task its source, the seed of drawn splits, and size and digest of each split; of
            `tasks_from` one entry for all.
        adapter: the config of the run's bank; a copy of it goes on a model, see `adapter_on`. Of a bank that
            `begins_in_store` it has the first task alone.
        start: the bank to start from, open; None if the run starts from none, or has ended.
        prompt: the run's prompt as in a run file; "auto" until it is decided, see `settle_prompt`.
        choice: what was decided just now, to be written when the run begins.
    """

    config: RunConfig
    tasks: Sequence[Task]
    manifest: Mapping[str, Any]
    adapter: CoLoRAConfig
    start: SavedBank | None
    prompt: str | None = None
    choice: PromptChoice | None = None

    @property
    def names(self) -> Sequence[str]:
        """Names of the tasks, in the order of their ids."""
        return self.tasks.names if isinstance(self.tasks, ColumnTasks) else [task.name for task in self.tasks]

    @property
    def column(self) -> ColumnTasks | None:
        """The tasks of `tasks_from`; None for tasks that were named one by one."""
        return self.tasks if isinstance(self.tasks, ColumnTasks) else None

    @property
    def begins_in_store(self) -> bool:
        """Whether the cores are in a store from the beginning, so that the model never has those of all tasks."""
        return _begins_in_store(self.config, self.start, len(self.tasks))

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(self.config.output)

    @property
    def has_ended(self) -> bool:
        """Whether its bank has been written."""
        return (self.output / "bank" / "adapter_config.json").is_file()

    def adapter_on(self, model: Any) -> CoLoRAConfig:
        """A config of its own for a bank on this base model: PEFT fills in what belongs to the model."""
        return replace(self.adapter, task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM")


def resolve_run(
    config: RunConfig, tasks: Sequence[Task] | None = None, manifest: Mapping[str, Any] | None = None
) -> ResolvedRun:
    """Read and check all that a run names.

    Args:
        config: the run.
        tasks: instead of those that the config names.
        manifest: of these tasks, and perhaps of others, if it is known already.

    Raises:
        TaskFileError: listing the faults of all task files at once.
        ConfigError: fields that do not go together, groups that are not the run's tasks, adapter settings that differ
            from those of the bank to start from, texts that have no place in their prompts.
        BankFileError: no bank there, or a damaged one.
    """
    if config.start_from is not None and config.adapter.init_weights in SPECTRAL:
        raise ConfigError(
            f"adapter.init_weights: {config.adapter.init_weights} begins a new bank, but start_from names one to go "
            "on from; remove one of the two"
        )
    config, start = resolve_adapter(as_begun(config))
    read: Sequence[Task] = read_run_tasks(config, Path(config.output)) if tasks is None else tuple(tasks)
    ended = _ended_bank(config)
    prompt = read_choice(config, ended)
    names: Sequence[str]
    if isinstance(read, ColumnTasks):
        if ended is None:
            _check_many(config, start, len(read))
        names, known = read.names, task_manifest(read)
    else:
        names = [task.name for task in read]
        check_grouping(config, names)
        known = task_manifest(read) if manifest is None else {name: manifest[name] for name in names}
    if ended is not None:
        read = ended.prompted(read) if not isinstance(read, ColumnTasks) else read.prompted(ended.template())
    else:
        read = prompted_tasks(config, read, prompt, None if start is None else start.info)
    read = read if isinstance(read, ColumnTasks) else tuple(read)
    first = names[:1] if _begins_in_store(config, start, len(names)) else list(names)
    return ResolvedRun(config, read, known, bank_config(config.adapter, first), start, prompt)


def _begins_in_store(config: RunConfig, start: SavedBank | None, tasks: int) -> bool:
    """A fresh bank of few tasks is drawn whole, so that it is the same to the bit wherever its cores are."""
    if config.start_from is not None:
        return starts_in_store(config, start, tasks)
    return config.adapter.init_weights not in SPECTRAL and tasks > ON_DEVICE and config.training.cores != "device"


def _check_many(config: RunConfig, start: SavedBank | None, tasks: int) -> None:
    """Raises ConfigError if a run is to have the cores of very many tasks of a column on the device at once."""
    if tasks <= ON_DEVICE or _begins_in_store(config, start, tasks):
        return
    why = {
        "adapter.init_weights": config.adapter.init_weights in SPECTRAL,
        "training.cores: device": config.training.cores == "device",
    }
    named = " and ".join(name for name, is_set in why.items() if is_set)
    raise ConfigError(
        f"{named} needs all cores on the device at once, but tasks_from has {tasks} tasks, more than "
        f"{ON_DEVICE}: remove it from the run file"
    )


def tasks_in_memory(tasks: Sequence[Task], what: str) -> list[Task]:
    """All tasks of a run, for what looks at all of them at once.

    Raises:
        ConfigError: saying that `what` does, where a column names more tasks than that is good for.
    """
    if isinstance(tasks, ColumnTasks) and len(tasks) > ON_DEVICE:
        raise ConfigError(
            f"{what} needs all examples in memory, but tasks_from has {len(tasks)} tasks, more than "
            f"{ON_DEVICE}: use a table with the rows of fewer tasks"
        )
    return list(tasks)


def settle_prompt(run: ResolvedRun, model: PreTrainedModel, tokenizer: Tokenizer, log: Log) -> ResolvedRun:
    """The run with a prompt for each task, once its base is loaded: `prompt: auto` is decided if nobody has yet.

    Raises:
        ConfigError: "chat" without a chat template, or see `choose_prompt`.
    """
    check_chat([run.prompt, *(spec.prompt for spec in run.config.tasks)], model, tokenizer)
    if run.prompt != AUTO:
        return run
    choice = choose_prompt(run.config, run.tasks, model, tokenizer, log)
    prompt = None if choice is None else choice.prompt
    tasks = prompted_tasks(run.config, run.tasks, prompt, None)
    return replace(run, tasks=tasks if isinstance(tasks, ColumnTasks) else tuple(tasks), prompt=prompt, choice=choice)


def read_run_tasks(config: RunConfig, run: Path | None = None) -> Sequence[Task]:
    """The tasks of a run; those of `tasks_from` are made as they are asked for.

    Args:
        config: names the task files.
        run: a folder whose splits are kept, if the examples are still those that it was made with: the first version
            drew splits in another way where several examples have the same input.

    Raises:
        TaskFileError: with the faults of all files at once.

    Warns:
        UserWarning: if tasks have the splits of the first version.
    """
    if config.tasks_from is not None:
        return read_column_tasks(table_of(config.tasks_from), config.seed)
    sources = [source_of(spec) for spec in config.tasks]
    if config.shared_splits:
        others = [source_of(spec) for spec in config.shared_with]
        return read_tasks([*sources, *others], seed=config.seed, shared_splits=True)[: len(sources)]
    tasks = read_tasks(sources, seed=config.seed)
    changed = set() if run is None else differing_tasks(run, tasks)
    if run is None or not changed:
        return tasks
    try:
        earlier = {task.name: task for task in read_tasks(sources, seed=config.seed, together=False)}
    except TaskFileError:  # counts that could not be had then
        return tasks
    kept = changed - differing_tasks(run, list(earlier.values()))
    if kept:
        warnings.warn(
            f"{run}: the splits of {quoted(sorted(kept))} are kept as an earlier version drew them, so equal inputs "
            "may be in training and in test; for splits without that, train in another folder",
            stacklevel=2,
        )
    return [earlier[task.name] if task.name in kept else task for task in tasks]


def _ended_bank(config: RunConfig) -> BankInfo | None:
    """How the run's own bank came to be, if it has been written."""
    folder = Path(config.output) / "bank"
    return read_bank_info(folder) if (folder / "adapter_config.json").is_file() else None
