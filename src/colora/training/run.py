"""From a run file to a trained bank: read, check, train, resume, evaluate. What the command line calls.

OUTPUT/run.yaml             the run as it was resolved
OUTPUT/tasks.json           where each task's examples came from, the seed of drawn splits, a digest of each split
OUTPUT/prompt.json          which prompt `prompt: auto` took
OUTPUT/checkpoints/         checkpoint-STEP, whole or not there
OUTPUT/bank/                the trained bank
OUTPUT/records.jsonl        what was measured; environment.json beside it says where
"""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

from colora.bank.load import attach_adapter, save_bank
from colora.common.files import write_json
from colora.common.threads import configure_threads
from colora.errors import ConfigError, InterruptedRunError
from colora.evaluation.evaluate import Evaluation
from colora.models.sharding import free_gathered, is_sharded
from colora.tasks.encode import EncodingReport
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.arguments import device_rows, training_arguments
from colora.training.bank_info import bank_info
from colora.training.base import load_run_base, on_device
from colora.training.config import RunConfig
from colora.training.encode import EncodedRun, encode_run, measured_tasks
from colora.training.loop.sharded import trainer_class
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.measure import measure, measured_before
from colora.training.place_cores import place_cores
from colora.training.prompts import FILE as PROMPT_FILE
from colora.training.resolve import ResolvedRun, resolve_run, settle_prompt
from colora.training.run_folder import (
    check_free,
    claim,
    train_alone,
)
from colora.training.seen import run_seen_note
from colora.training.starts.from_bank import start_bank
from colora.training.starts.small import small_start
from colora.training.starts.spectral import start_run

__all__ = [
    "TrainResult",
    "measure_result",
    "train",
    "train_and_evaluate",
    "train_resolved",
    "trained",
]

Log = Callable[[str], None]
MakeModel = Callable[[Any, list[str]], PeftModel]


def _silent(line: str) -> None:
    pass


@dataclass
class TrainResult:
    """What a training run left behind.

    Attributes:
        run: what was trained.
        bank: folder of the trained bank.
        model, tokenizer: in memory, on the device they were trained on.
        steps: optimiser steps done, over all starts of the run.
        encoded: the examples in tokens; None where the run had ended before, and nothing was trained.
    """

    run: ResolvedRun
    bank: Path
    model: PeftModel
    tokenizer: Tokenizer
    steps: int
    encoded: EncodedRun | None = None

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks as they were read."""
        return self.run.tasks

    @property
    def reports(self) -> list[EncodingReport]:
        """What encoding came to, for each task."""
        return [] if self.encoded is None else self.encoded.train.report

    @property
    def reused(self) -> bool:
        """Whether the run had ended before, and nothing was trained."""
        return self.encoded is None


def train(
    config: RunConfig, tasks: list[Task] | None = None, make_model: MakeModel | None = None, log: Log = _silent
) -> TrainResult:
    """Train the bank of a run, or go on where an earlier start stopped; a run that has ended is not run again.

    Args:
        config: the run.
        tasks: instead of those that the config names.
        make_model: instead of a bank, puts something else on the base (a plain LoRA without task ids, for a baseline).
        log: takes lines for the user.

    Raises:
        ConfigError: the output folder holds another run, the tasks have no training examples, both a bank to start
            from and a spectral start are asked for, or a bank for each of several groups; or see `resolve_run`.
        TaskFileError: listing all faults of the task files; nothing is trained.
        BankFileError, BaseMismatchError: the bank to start from is none, or of another base.
            Or another process trains the same run.
        InterruptedRunError: after Ctrl-C; a checkpoint has been saved.
        TrainingDivergedError, CheckpointError: see `CoLoRATrainer`.
    """
    device_rows(config)
    if config.grouping != "none":
        raise ConfigError(
            "grouping: this trains one bank; a bank for each group is `colora.transfer.grouping.train_groups`"
        )
    return train_resolved(resolve_run(config, tasks), make_model, log)


def train_resolved(run: ResolvedRun, make_model: MakeModel | None = None, log: Log = _silent) -> TrainResult:
    """`train`, of a run whose files have been read.

    Raises:
        as `train`.
    """
    config, is_first = run.config, int(os.environ.get("RANK", "0")) == 0
    configure_threads(config.training.threads)
    if is_first:  # the others would look while this one writes
        check_free(run.output, config, run.manifest)
    model, tokenizer = load_run_base(config)
    if run.has_ended:
        log(f"{run.output} has ended before; nothing to train")
        loaded = attach_adapter(on_device(model, config), run.output / "bank")
        return TrainResult(run, run.output / "bank", loaded, tokenizer, config.training.steps)

    with train_alone(run.output) if is_first else nullcontext():
        trainer, run = trained(run, model, tokenizer, make_model, log if is_first else _silent)
    encoded, steps = trainer.data, trainer.state.global_step
    if is_first:
        save_bank(trainer.model, run.output / "bank", bank_info(run, encoded, steps))
    trainer.accelerator.wait_for_everyone()
    return TrainResult(run, run.output / "bank", trainer.model, tokenizer, steps, encoded)


def trained(
    run: ResolvedRun,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    make_model: MakeModel | None = None,
    log: Log = _silent,
) -> tuple[CoLoRATrainer, ResolvedRun]:
    """A run from its tasks to its last checkpoint, or on from the last one there is; no bank is written.

    Returns:
        the trainer, with all that was trained, and the run with the prompt that was decided.

    Raises:
        as `train`.
    """
    config, is_first = run.config, int(os.environ.get("RANK", "0")) == 0
    run = settle_prompt(run, model, tokenizer, log)
    if seen := run_seen_note(run.tasks):
        log(seen)
    encoded = encode_run(run, tokenizer, model)
    set_seed(config.seed)
    checkpoints = run.output / "checkpoints"
    checkpoint = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if make_model is not None:
        bank = make_model(model, list(run.names))
    elif run.begins_in_store and run.start is None:
        bank = small_start(config, run.adapter_on(model), run.names, model, log)
    else:
        bank = _start(run, model, encoded, checkpoint is None, log)
        place_cores(bank, config, len(run.names), log)
    if is_first:
        claim(run.output, config, run.manifest)
        if run.choice is not None:
            write_json(run.output / PROMPT_FILE, run.choice.as_json())
    trainer = trainer_class(bank)(bank, training_arguments(config), run, encoded, routed=make_model is None)
    if checkpoint is not None:
        log(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.interrupt.interrupted:
        step = trainer.state.global_step
        raise InterruptedRunError(f"interrupted at step {step}; run the same command again to go on from there")
    free_gathered(bank)
    return trainer, run


def _start(run: ResolvedRun, model: PreTrainedModel, encoded: EncodedRun, is_new: bool, log: Log) -> PeftModel:
    """The run's bank on its base model, as training begins with it; where a checkpoint follows, its shape is enough."""
    if run.start is not None:
        return start_bank(run.adapter, run.start, model, log, run.names, run.config)
    bank = get_peft_model(model, run.adapter_on(model))
    if is_new:
        start_run(run.config, bank, encoded.train, list(run.names), encoded.pad_token_id, log)
    return bank


def train_and_evaluate(config: RunConfig, log: Log = _silent) -> tuple[TrainResult, Evaluation | None]:
    """`train`, then measure the bank. Of several processes only the first tells; the others get None.

    Raises:
        as `train` and `evaluate`.
    """
    result = train(config, log=log)
    return result, measure_result(result)


def measure_result(result: TrainResult) -> Evaluation | None:
    """Measure what training left behind, unless that has been done. Of several processes only the first measures, or
    where they share one base all together.

    Raises:
        as `evaluate`.
    """
    config = result.run.config
    is_first = int(os.environ.get("RANK", "0")) == 0
    if not is_first and not is_sharded(result.model):
        return None
    if result.reused and (records := measured_before(config)):
        return Evaluation(records, []) if is_first else None
    encoded = None if result.encoded is None else result.encoded.evaluation
    tasks = measured_tasks(config.evaluation, result.tasks, config.seed)
    length, all_of_them = config.training.max_length, len(tasks) == len(result.tasks)
    found = measure(config, result.model, result.tokenizer, tasks, length, encoded=encoded, on_card=all_of_them)
    return found if is_first else None
