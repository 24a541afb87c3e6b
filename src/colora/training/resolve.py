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
from colora.tasks.faults import quoted
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.adapter_config import bank_config
from colora.training.config import AUTO, SPECTRAL, RunConfig
from colora.training.config_file import check_grouping
from colora.training.prompts import (
    PromptChoice,
    check_chat,
    choose_prompt,
    prompted_tasks,
    read_choice,
    source_of,
)
from colora.training.run_folder import as_begun, differing_tasks, task_manifest
from colora.training.starts.from_bank import resolve_adapter

__all__ = ["ResolvedRun", "read_run_tasks", "resolve_run", "settle_prompt"]

Log = Callable[[str], None]


@dataclass(frozen=True)
class ResolvedRun:
    """A run with everything that its files say.

    Attributes:
        config: the run file, with the adapter settings that hold: those of the bank it starts from, if it does.
        tasks: the tasks as they were read.
        manifest: for each task its source, the seed of drawn splits, and size and digest of each split.
        adapter: the config of the run's bank; a copy of it goes on a model, see `adapter_on`.
        start: the bank to start from, open; None if the run starts from none, or has ended.
        prompt: the run's prompt as in a run file; "auto" until it is decided, see `settle_prompt`.
        choice: what was decided just now, to be written when the run begins.
    """

    config: RunConfig
    tasks: tuple[Task, ...]
    manifest: Mapping[str, Any]
    adapter: CoLoRAConfig
    start: SavedBank | None
    prompt: str | None = None
    choice: PromptChoice | None = None

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in the order of their ids."""
        return [task.name for task in self.tasks]

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
    read = tuple(read_run_tasks(config, Path(config.output)) if tasks is None else tasks)
    names = [task.name for task in read]
    check_grouping(config, names)
    known = task_manifest(read) if manifest is None else {name: manifest[name] for name in names}
    ended = _ended_bank(config)
    prompt = read_choice(config, ended)
    if ended is not None:
        read = tuple(ended.prompted(read))
    else:
        read = tuple(prompted_tasks(config, read, prompt, None if start is None else start.info))
    return ResolvedRun(config, read, known, bank_config(config.adapter, names), start, prompt)


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
    tasks = tuple(prompted_tasks(run.config, run.tasks, prompt, None))
    return replace(run, tasks=tasks, prompt=prompt, choice=choice)


def read_run_tasks(config: RunConfig, run: Path | None = None) -> list[Task]:
    """The tasks of a run.

    Args:
        config: names the task files.
        run: a folder whose splits are kept, if the examples are still those that it was made with: the first version
            drew splits in another way where several examples have the same input.

    Raises:
        TaskFileError: with the faults of all files at once.

    Warns:
        UserWarning: if tasks have the splits of the first version.
    """
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
