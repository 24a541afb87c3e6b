"""Early stopping task by task: a task that no longer improves on its validation data keeps its core as it is."""

import math
from typing import Any

from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from colora.training.loop.optimizer import unwrapped

__all__ = ["TaskEarlyStopping"]


class TaskEarlyStopping(TrainerCallback, ExportableState):
    """Stops each task after `patience` evaluations without improvement; training ends when all have stopped.

    A stopped task's rows get loss weight zero. So its core moves no more, not by one bit, and it has no more
    influence on the shared factors, which the other tasks go on training.

    Args:
        tasks: names of the tasks with validation data; others never stop.
        patience: evaluations without improvement that a task may have.
        min_delta: by how much the validation token NLL must fall to count as improvement.
    """

    def __init__(self, tasks: list[str], patience: int, min_delta: float = 0.0) -> None:
        self.tasks = list(tasks)
        self.patience = patience
        self.min_delta = min_delta
        self.best: dict[str, float] = {}
        self.waited: dict[str, int] = {}
        self.stopped_at: dict[str, int] = {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: object,
    ) -> None:
        for task in self.tasks:
            loss = metrics.get(f"eval_loss/{task}", math.nan)
            if task in self.stopped_at:
                continue
            if loss < self.best.get(task, math.inf) - self.min_delta:
                self.best[task] = loss
                self.waited[task] = 0
            else:
                self.waited[task] = self.waited.get(task, 0) + 1
                if self.waited[task] >= self.patience:
                    self.stopped_at[task] = state.global_step
        if self._all_stopped():
            control.should_training_stop = True

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer,
        **kwargs: object,
    ) -> None:
        # Only a run resumed after its end comes here with all tasks stopped. The Trainer takes a step before it looks
        # whether to stop; without gradients momentum and weight decay would still move the shared factors.
        if self._all_stopped():
            unwrapped(optimizer).freeze({"shared", "core"})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._all_stopped():
            control.should_training_stop = True

    def _all_stopped(self) -> bool:
        return bool(self.tasks) and len(self.stopped_at) == len(self.tasks)

    def state(self) -> dict[str, Any]:
        """For the checkpoint, in the form that transformers' Trainer restores."""
        return {
            "args": {"tasks": self.tasks, "patience": self.patience, "min_delta": self.min_delta},
            "attributes": {"best": self.best, "waited": self.waited, "stopped_at": self.stopped_at},
        }
