"""The tasks that a run of very many draws, trained alone: the same rows in the same order, from the same starts."""

from pathlib import Path
from typing import Any

import numpy as np
from peft import get_peft_model
from transformers import set_seed

from colora.adapter.model import CoLoRAModel, bank_tuner
from colora.adapter.stored.access import store_cores
from colora.models.base import load_base
from colora.training.arguments import training_arguments
from colora.training.config import RunConfig
from colora.training.encode import EncodedRun, encode_run
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.place_cores import room_for
from colora.training.resolve import ResolvedRun, resolve_run
from colora.training.starts.small import small_start

__all__ = ["train_alone"]


def train_alone(config: RunConfig, folder: Path) -> CoLoRATrainer:
    """Train a bank that has only the tasks that the run draws, in a store, to the end.

    Args:
        config: of the run of very many tasks.
        folder: for what the trainer writes.
    """
    run = resolve_run(config)
    model, tokenizer = load_base(config.base)
    data = encode_run(run, tokenizer, model)
    tasks = np.unique(np.concatenate(list(data.mixture.tasks())))
    names = [run.names[task] for task in tasks.tolist()]
    started = _started(run)
    set_seed(config.seed)
    bank = get_peft_model(model, run.adapter_on(model))
    store_cores(bank, room_for(config))
    tuner = bank_tuner(bank)
    tuner.add_tasks([name for name in names if name != run.names[0]])
    if run.names[0] not in names:
        tuner.remove_task(run.names[0])
    assert list(tuner.tasks) == names  # the first task of the run has the least id
    for name in names:
        tuner.set_core(name, started.core(name))
    del started
    config = config.model_copy(update={"output": str(folder)})
    arguments = training_arguments(config)
    arguments.save_strategy = "no"  # type: ignore[assignment]
    fewer = ResolvedRun(config, [run.tasks[int(task)] for task in tasks], run.manifest, run.adapter, None)
    rows: Any = _Renumbered(data.train, tasks)
    trainer = CoLoRATrainer(bank, arguments, fewer, EncodedRun(rows, None, None, data.mixture, data.pad_token_id))
    trainer.train()
    return trainer


class _Renumbered:
    """The rows of a dataset, with the ids that their tasks have in a bank of fewer."""

    def __init__(self, rows: Any, tasks: np.ndarray) -> None:
        self._rows, self._tasks = rows, tasks

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        row = self._rows[index]
        return row | {"task_ids": int(np.searchsorted(self._tasks, row["task_ids"]))}


def _started(run: ResolvedRun) -> CoLoRAModel:
    """A bank as the run builds its own, with all its tasks where they start."""
    config, (model, _) = run.config, load_base(run.config.base)
    set_seed(config.seed)
    return bank_tuner(small_start(config, run.adapter_on(model), run.names, model, print))
