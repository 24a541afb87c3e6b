"""A progress bar on standard error with the loss of every task, and a clean end on Ctrl-C."""

import signal
import sys
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from colora.common.progress import progress_bar

__all__ = ["InterruptCallback", "TaskProgressCallback"]

MOST_TASKS_SHOWN = 8


class TaskProgressCallback(TrainerCallback):
    """Steps done, time left and loss per task; plain lines where standard error is no terminal."""

    def __init__(self, description: str = "training") -> None:
        self.description = description
        self.progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.progress = progress_bar(TimeElapsedColumn(), TextColumn("{task.fields[losses]}"), stays=True)
        self.bar = self.progress.add_task(
            self.description, total=state.max_steps, completed=state.global_step, losses=""
        )
        self.progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.progress is not None:
            self.progress.update(self.bar, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: object,
    ) -> None:
        if self.progress is None or "loss" not in logs:
            return
        losses = {key.removeprefix("loss/"): value for key, value in logs.items() if key.startswith("loss/")}
        shown = sorted(losses, key=lambda task: -losses[task])[:MOST_TASKS_SHOWN]
        text = " ".join(f"{task} {losses[task]:.2f}" for task in shown)
        if len(losses) > len(shown):
            text += f" (worst {len(shown)} of {len(losses)})"
        if self.progress.disable:
            line = f"{self.description}: step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}  {text}"
            print(line, file=sys.stderr, flush=True)
        else:
            self.progress.update(self.bar, losses=text)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; also to be called when training ends by an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class InterruptCallback(TrainerCallback):
    """The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and stops; the second ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self._restore()
        print("\ninterrupted: saving a checkpoint after this step (again to stop at once)", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.interrupted = False
        try:
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        except ValueError:
            self._before = {}  # not in the main thread: whoever runs us there handles signals

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if dist.is_initialized():  # with several processes a signal may reach one alone, or each in another step
            anywhere = torch.tensor(float(self.interrupted), device=args.device)
            dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
            self.interrupted = bool(anywhere)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._restore()
