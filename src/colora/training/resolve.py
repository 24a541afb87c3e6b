"""A run resolved: what is known before a model is loaded, found once and handed on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from colora.adapter.config import CoLoRAConfig
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task, TaskSource
from colora.training.adapter_config import bank_config
from colora.training.config import SPECTRAL, RunConfig
from colora.training.config_file import check_grouping
from colora.training.run_folder import task_manifest
from colora.training.starts.from_bank import resolve_adapter

__all__ = ["ResolvedRun", "resolve_run"]


@dataclass(frozen=True)
class ResolvedRun:
    """A run with everything that its files say.

    Attributes:
        config: the run file, with the adapter settings that hold: those of the bank it starts from, if it does.
        tasks: the tasks as they were read.
        manifest: for each task its source, the seed of drawn splits, and size and digest of each split.
        adapter: the config of the run's bank; a copy of it goes on a model, see `adapter_on`.
        start: the bank to start from, open; None if the run starts from none, or has ended.
    """

    config: RunConfig
    tasks: tuple[Task, ...]
    manifest: Mapping[str, Any]
    adapter: CoLoRAConfig
    start: SavedBank | None

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
            from those of the bank to start from.
        BankFileError: no bank there, or a damaged one.
    """
    if config.start_from is not None and config.adapter.init_weights in SPECTRAL:
        raise ConfigError(
            f"adapter.init_weights: {config.adapter.init_weights} begins a new bank, but start_from names one to go "
            "on from; remove one of the two"
        )
    config, start = resolve_adapter(config)
    read = tuple(read_run_tasks(config) if tasks is None else tasks)
    names = [task.name for task in read]
    check_grouping(config, names)
    known = task_manifest(read) if manifest is None else {name: manifest[name] for name in names}
    return ResolvedRun(config, read, known, bank_config(config.adapter, names), start)


def read_run_tasks(config: RunConfig) -> list[Task]:
    """The tasks of a run. Raises TaskFileError with the faults of all files at once."""
    return read_tasks([TaskSource(**spec.model_dump()) for spec in config.tasks], seed=config.seed)
