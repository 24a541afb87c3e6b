"""The schedule of a run at work: a callback of the trainer that freezes groups of the optimiser."""

from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from colora.training.loop.optimizer import unwrapped
from colora.training.loop.schedule import Schedule, frozen_roles

__all__ = ["AlternatingCallback"]


class AlternatingCallback(TrainerCallback):
    """Freezes groups of a `TaskAdamW` at every step; a function of the step alone, so it can resume."""

    def __init__(self, schedule: Schedule, turn: int) -> None:
        self.schedule = schedule
        self.turn = turn

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer,
        **kwargs: object,
    ) -> None:
        unwrapped(optimizer).freeze(frozen_roles(self.schedule, state.global_step, self.turn))
