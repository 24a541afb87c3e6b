"""From a run file to a trained bank: read, check, train, resume, evaluate. What the command line calls.

OUTPUT/run.yaml             the run as it was resolved
OUTPUT/tasks.json           where each task's examples came from, the seed of drawn splits, a digest of each split
OUTPUT/prompt.json          which prompt `prompt: auto` took
OUTPUT/checkpoints/         checkpoint-STEP, whole or not there
OUTPUT/bank/                the trained bank
OUTPUT/records.jsonl        what was measured; environment.json beside it says where
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from colora.adapter.lookup import only_bank
from colora.bank.layout import find_bank
from colora.bank.load import attach_adapter, load_bank, save_bank
from colora.common.device import DTYPES, training_device
from colora.common.files import write_json
from colora.common.locks import file_lock
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.errors import CheckpointError, ConfigError, InterruptedRunError
from colora.evaluation.evaluate import Evaluation, evaluate
from colora.evaluation.metrics import metric_options
from colora.evaluation.records import Record, append_records, read_records
from colora.evaluation.settings import EvaluationSettings
from colora.models.base import load_base
from colora.tasks.encode import EncodedTasks, EncodingReport
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.arguments import device_rows, training_arguments
from colora.training.bank_info import bank_info
from colora.training.config import RunConfig
from colora.training.config_file import parse_config
from colora.training.encode import EncodedRun, encode_run, measured_tasks
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.place_cores import place_cores
from colora.training.prompts import FILE as PROMPT_FILE
from colora.training.resolve import ResolvedRun, read_run_tasks, resolve_run, settle_prompt
from colora.training.run_folder import check_free, check_same_tasks, claim, run_config, task_manifest
from colora.training.seen import run_seen_note
from colora.training.starts.from_bank import start_bank
from colora.training.starts.small import small_start
from colora.training.starts.spectral import start_run

__all__ = [
    "TrainResult",
    "evaluate_bank",
    "measure",
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
    model, tokenizer = load_base(
        config.base, dtype=DTYPES[config.training.base_dtype], chat_template=config.chat_template
    )
    if run.has_ended:
        log(f"{run.output} has ended before; nothing to train")
        device = training_device(config.training.device)
        loaded = attach_adapter(model if device is None else model.to(device), run.output / "bank")
        return TrainResult(run, run.output / "bank", loaded, tokenizer, config.training.steps)

    with _alone(run.output) if is_first else nullcontext():
        trainer, run = trained(run, model, tokenizer, make_model, log if is_first else _silent)
    encoded, steps = trainer.data, trainer.state.global_step
    if is_first:
        save_bank(trainer.model, run.output / "bank", bank_info(run, encoded, steps))
    trainer.accelerator.wait_for_everyone()
    return TrainResult(run, run.output / "bank", trainer.model, tokenizer, steps, encoded)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Nobody else trains this run meanwhile: each would delete files that the other's next checkpoint needs."""
    lock = output.with_name(f".{output.name}.training")
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(file_lock(lock))
        except OSError as error:
            raise CheckpointError(f"could not write {lock}: {error}; choose another output") from error
        if not mine:
            raise ConfigError(
                f"{output}: another process trains this run: wait for it, or choose another output. If that ran on "
                f"another machine, and has ended, remove {lock}"
            )
        yield


def trained(
    run: ResolvedRun, model: Any, tokenizer: Tokenizer, make_model: MakeModel | None = None, log: Log = _silent
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
    elif run.begins_small:
        bank = small_start(config, run.adapter_on(model), run.names, model, log)
    else:
        bank = _start(run, model, encoded, checkpoint is None, log)
        place_cores(bank, config, len(run.names), log)
    if is_first:
        claim(run.output, config, run.manifest)
        if run.choice is not None:
            write_json(run.output / PROMPT_FILE, run.choice.as_json())
    trainer = CoLoRATrainer(bank, training_arguments(config), run, encoded, routed=make_model is None)
    if checkpoint is not None:
        log(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.interrupt.interrupted:
        step = trainer.state.global_step
        raise InterruptedRunError(f"interrupted at step {step}; run the same command again to go on from there")
    return trainer, run


def _start(run: ResolvedRun, model: Any, encoded: EncodedRun, is_new: bool, log: Log) -> PeftModel:
    """The run's bank on its base model, as training begins with it; where a checkpoint follows, its shape is enough."""
    if run.start is not None:
        return start_bank(run.adapter, run.start, model, log)
    bank = get_peft_model(model, run.adapter_on(model))
    if is_new:
        start_run(run.config, bank, encoded.train, list(run.names), encoded.pad_token_id, log)
    return bank


def train_and_evaluate(config: RunConfig, log: Log = _silent) -> tuple[TrainResult, Evaluation | None]:
    """`train`, then measure the bank. Of several processes only the first measures; the others get None.

    Raises:
        as `train` and `evaluate`.
    """
    result = train(config, log=log)
    return result, measure_result(result)


def measure_result(result: TrainResult) -> Evaluation | None:
    """Measure what training left behind, unless that has been done; of several processes only the first measures.

    Raises:
        as `evaluate`.
    """
    config = result.run.config
    if int(os.environ.get("RANK", "0")) != 0:
        return None
    if result.reused and (records := _measured(config)):
        return Evaluation(records, [])
    encoded = None if result.encoded is None else result.encoded.evaluation
    tasks = measured_tasks(config.evaluation, result.tasks, config.seed)
    return measure(config, result.model, result.tokenizer, tasks, config.training.max_length, encoded=encoded)


def evaluate_bank(
    path: str | Path,
    *,
    base: str | None = None,
    tasks: Sequence[Task] | None = None,
    overrides: dict[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a bank on the tasks of its run, and append the records to the run's `records.jsonl`.

    Args:
        path: folder of a run, or of its bank.
        base: another place of the same base model.
        tasks: instead of those of the run; where their examples have no template, they get the bank's prompts.
        overrides: fields of `EvaluationSpec` that replace those of the run.

    Raises:
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
    if tasks is None:
        tasks = read_run_tasks(config, run)
        check_same_tasks(run, task_manifest(tasks))
    configure_threads(config.training.threads)
    dtype, device = DTYPES[config.training.base_dtype], training_device(config.training.device)
    model, tokenizer, info = load_bank(folder, base, dtype=dtype, device=device)
    config.output = str(run)
    tasks = measured_tasks(config.evaluation, tasks, config.seed)
    return measure(config, model, tokenizer, info.prompted(tasks), info.max_length, progress)


def measure(
    config: RunConfig,
    model: PeftModel,
    tokenizer: Tokenizer,
    tasks: list[Task],
    max_length: int,
    progress: bool = True,
    encoded: EncodedTasks | None = None,
) -> Evaluation:
    """Measure a bank in memory as the run's `evaluation` says, and append the records to the run's folder.

    Args:
        encoded: what is measured of these tasks, in tokens, if it has been encoded.
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
    result = evaluate(model, tokenizer, kept, settings, index, progress, encoded if len(kept) == len(tasks) else None)
    result.skipped.update({task.name: "not in the bank (any more)" for task in tasks if task not in kept})
    append_records(run / "records.jsonl", result.records)
    write_json(run / "environment.json", environment())
    return result


def _method(config: RunConfig) -> str:
    """The method's name in records; a part of the split is told apart from the whole."""
    limit, tasks = config.evaluation.limit, config.evaluation.tasks
    told = [*([] if limit is None else [f"first {limit}"]), *([] if tasks is None else [f"{tasks} tasks"])]
    return ", ".join(["colora", *told])


def _measured(config: RunConfig) -> list[Record]:
    """The run's records of the split it measures, or none if a metric is missing."""
    file, spec = Path(config.output) / "records.jsonl", config.evaluation
    known = read_records(file) if file.is_file() else []
    records = [one for one in known if (one.split, one.method) == (spec.split, _method(config))]
    wanted = {metric_options()[option].name for option in spec.metrics}
    return records if wanted <= {one.metric for one in records} else []
