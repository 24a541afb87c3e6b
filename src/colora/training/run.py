"""From a run file to a trained bank: read, check, train, resume, evaluate. What the command line calls.

OUTPUT/run.yaml             the run as it was resolved
OUTPUT/tasks.json           where each task's examples came from, the seed of drawn splits, a digest of each split
OUTPUT/checkpoints/         checkpoint-STEP, whole or not there
OUTPUT/bank/                the trained bank
OUTPUT/records.jsonl        what was measured; environment.json beside it says where
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from colora.adapter.model import bank_tuner
from colora.bank.layout import BankInfo, find_bank
from colora.bank.load import attach_adapter, load_bank, save_bank
from colora.common.device import DTYPES, training_device
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.errors import ConfigError, InterruptedRunError
from colora.evaluation.evaluate import Evaluation, evaluate
from colora.evaluation.records import Record, append_records, read_records
from colora.models.base import load_base
from colora.tasks.encode import EncodedTasks, EncodingReport, encode_tasks
from colora.tasks.mixing import TaskMixture
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task, TaskSource
from colora.tasks.tokenizer import Tokenizer
from colora.training.adapter_config import bank_config
from colora.training.config import RunConfig
from colora.training.config_file import parse_config
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.run_folder import check_free, check_same_tasks, claim, run_config, task_manifest
from colora.training.starts.from_bank import resolve_start, start_bank
from colora.training.starts.spectral import check_spectral, start_run

__all__ = [
    "TrainResult",
    "encode_run",
    "evaluate_bank",
    "measure",
    "read_run_tasks",
    "train",
    "train_and_evaluate",
]


@dataclass
class TrainResult:
    """What a training run left behind.

    Attributes:
        bank: folder of the trained bank.
        model, tokenizer: in memory, on the device they were trained on.
        tasks: the tasks as they were read.
        steps: optimiser steps done, over all starts of the run.
        reports: what encoding came to, for each task.
        reused: whether the run had ended before, and nothing was trained.
    """

    bank: Path
    model: PeftModel
    tokenizer: Tokenizer
    tasks: list[Task]
    steps: int
    reports: list[EncodingReport] = field(default_factory=list)
    reused: bool = False


def read_run_tasks(config: RunConfig) -> list[Task]:
    """The tasks of a run. Raises TaskFileError with the faults of all files at once."""
    return read_tasks([TaskSource(**spec.model_dump()) for spec in config.tasks], seed=config.seed)


def train(
    config: RunConfig,
    tasks: list[Task] | None = None,
    make_model: Callable[[Any, list[str]], PeftModel] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train the bank of a run, or go on where an earlier start stopped; a run that has ended is not run again.

    Args:
        config: the run.
        tasks: instead of those that the config names.
        make_model: instead of a bank, puts something else on the base (a plain LoRA without task ids, for a baseline).
        log: takes lines for the user.

    Raises:
        ConfigError: the output folder holds another run, the tasks have no training examples, both a bank to start
            from and a spectral start are asked for, or a bank for each of several groups.
        TaskFileError: listing all faults of the task files; nothing is trained.
        BankFileError, BaseMismatchError: the bank to start from is none, or of another base.
        InterruptedRunError: after Ctrl-C; a checkpoint has been saved.
        TrainingDivergedError, CheckpointError: see `CoLoRATrainer`.
    """
    configure_threads(config.training.threads)
    device_rows(config)
    check_spectral(config)
    if config.grouping != "none":
        raise ConfigError(
            "grouping: this trains one bank; a bank for each group is `colora.transfer.grouping.train_groups`"
        )
    config = resolve_start(config)
    tasks = read_run_tasks(config) if tasks is None else tasks
    output = Path(config.output)
    rank = int(os.environ.get("RANK", "0"))
    names = [task.name for task in tasks]
    if rank == 0:  # the others would look while this one writes
        check_free(output, config, tasks)
    model, tokenizer = load_base(
        config.base, dtype=DTYPES[config.training.base_dtype], chat_template=config.chat_template
    )
    if (output / "bank" / "adapter_config.json").is_file():
        log(f"{output} has ended before; nothing to train")
        device = training_device(config.training.device)
        loaded = attach_adapter(model if device is None else model.to(device), output / "bank")
        return TrainResult(output / "bank", loaded, tokenizer, tasks, config.training.steps, reused=True)

    train_data, eval_data = encode_run(config, tasks, tokenizer, model)
    set_seed(config.seed)
    checkpoint = get_last_checkpoint(str(output / "checkpoints")) if (output / "checkpoints").is_dir() else None
    if make_model:
        bank = make_model(model, names)
    elif config.start_from is not None:  # also where a checkpoint is about to replace its tensors
        bank = start_bank(config, names, model, log if rank == 0 else lambda line: None)
    else:
        bank = get_peft_model(model, bank_config(config.adapter, names, model))
        if checkpoint is None:  # else it has what training made of the start
            start_run(config, bank, train_data, names, tokenizer.pad_token_id, log if rank == 0 else lambda line: None)
    mixture = TaskMixture(
        train_data.sizes, batch_size=config.training.rows, steps=config.training.steps,
        policy=config.training.mixing, temperature=config.training.temperature, seed=config.seed,
    )  # fmt: skip
    if rank == 0:
        claim(output, config, tasks)
    trainer = make_trainer(config, bank, tokenizer, names, train_data, eval_data, mixture, routed=make_model is None)
    if checkpoint is not None:
        log(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    steps = trainer.state.global_step
    if trainer.interrupt.interrupted:
        raise InterruptedRunError(f"interrupted at step {steps}; run the same command again to go on from there")
    if rank == 0:
        save_bank(bank, output / "bank", _info(config, tasks, train_data, mixture, steps))
    trainer.accelerator.wait_for_everyone()
    return TrainResult(output / "bank", bank, tokenizer, tasks, steps, train_data.report)


def encode_run(
    config: RunConfig, tasks: list[Task], tokenizer: Tokenizer, model: Any
) -> tuple[EncodedTasks, EncodedTasks | None]:
    """The training examples in tokens, and the validation examples if the run wants them.

    Raises:
        TaskFileError: listing every example that is too long.
        ConfigError: if validation examples are wanted and there are none, or the model is too short for `max_length`.
    """
    limit, seq2seq = config.training.max_length, bool(model.config.is_encoder_decoder)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and limit > positions:
        raise ConfigError(f"training.max_length is {limit}, but {config.base} has {positions} positions: lower it")
    if "nll" in config.evaluation.metrics and config.evaluation.split != "train":
        encode_tasks(tasks, tokenizer, config.evaluation.split, limit, seq2seq)  # its faults must not wait
    train_data = encode_tasks(tasks, tokenizer, "train", limit, seq2seq)
    if config.training.eval_every is None:
        return train_data, None
    eval_data = encode_tasks(tasks, tokenizer, "val", limit, seq2seq)
    if not len(eval_data):
        raise ConfigError("training.eval_every needs validation examples, but no task has any (tasks.N.val)")
    return train_data, eval_data


def device_rows(config: RunConfig) -> int:
    """Rows of a micro-batch. Raises ConfigError if the rows of a step cannot be spread over the processes."""
    spec, world = config.training, int(os.environ.get("WORLD_SIZE", "1"))
    if spec.rows % (spec.accumulation * world):
        raise ConfigError(
            f"training.rows ({spec.rows}) must be a multiple of accumulation × processes "
            f"({spec.accumulation} × {world})"
        )
    return spec.rows // (spec.accumulation * world)


def make_trainer(
    config: RunConfig, model: PeftModel, tokenizer: Tokenizer, names: list[str], train_data: EncodedTasks,
    eval_data: EncodedTasks | None, mixture: TaskMixture, routed: bool = True,
) -> CoLoRATrainer:  # fmt: skip
    """The trainer of a run, its rows spread over the processes that torchrun started, if any."""
    spec, output = config.training, Path(config.output)
    if spec.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "logs")
    args = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=spec.steps,
        per_device_train_batch_size=device_rows(config),
        per_device_eval_batch_size=config.evaluation.rows,
        gradient_accumulation_steps=spec.accumulation,
        learning_rate=spec.lr,
        weight_decay=spec.weight_decay,
        lr_scheduler_type=spec.scheduler if not (spec.scheduler == "constant" and spec.warmup_steps)
        else "constant_with_warmup",
        warmup_steps=spec.warmup_steps,
        max_grad_norm=spec.max_grad_norm,
        bf16=spec.precision == "bf16",
        fp16=spec.precision == "fp16",
        gradient_checkpointing=spec.gradient_checkpointing,
        eval_strategy="steps" if eval_data is not None else "no",
        eval_steps=spec.eval_every,
        save_strategy="steps",
        save_steps=spec.save_every,
        save_total_limit=spec.keep,
        logging_strategy="steps",
        logging_steps=spec.log_every,
        report_to=["tensorboard"] if spec.tensorboard else [],
        seed=config.seed,
        use_cpu=spec.device == "cpu" or not torch.accelerator.is_available(),  # bf16 wants to be told
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    return CoLoRATrainer(
        model, args, train_data, names, mixture, tokenizer.pad_token_id, eval_data=eval_data, core_lr=spec.core_lr,
        core_weight_decay=spec.core_weight_decay, weighting=spec.weighting, schedule=spec.schedule, turn=spec.turn,
        patience=spec.patience, routed=routed,
    )  # fmt: skip


def train_and_evaluate(
    config: RunConfig, log: Callable[[str], None] = lambda line: None
) -> tuple[TrainResult, Evaluation | None]:
    """`train`, then measure the bank. Of several processes only the first measures; the others get None.

    Raises:
        as `train` and `evaluate`.
    """
    result = train(config, log=log)
    if int(os.environ.get("RANK", "0")) != 0:
        return result, None
    if result.reused and (records := _measured(config)):
        return result, Evaluation(records, [])
    return result, measure(config, result.model, result.tokenizer, result.tasks, config.training.max_length)


def evaluate_bank(
    path: str | Path,
    *,
    base: str | None = None,
    tasks: list[Task] | None = None,
    overrides: dict[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a bank on the tasks of its run, and append the records to the run's `records.jsonl`.

    Args:
        path: folder of a run, or of its bank.
        base: another place of the same base model.
        tasks: instead of those of the run.
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
        tasks = read_run_tasks(config)
        check_same_tasks(run, tasks)
    configure_threads(config.training.threads)
    dtype, device = DTYPES[config.training.base_dtype], training_device(config.training.device)
    model, tokenizer, info = load_bank(folder, base, dtype=dtype, device=device)
    config.output = str(run)
    return measure(config, model, tokenizer, tasks, info.max_length, progress)


def measure(
    config: RunConfig, model: PeftModel, tokenizer: Tokenizer, tasks: list[Task], max_length: int, progress: bool = True
) -> Evaluation:
    """Measure a bank in memory as the run's `evaluation` says, and append the records to the run's folder."""
    run, spec = Path(config.output), config.evaluation
    index = {name: place for place, name in enumerate(bank_tuner(model).tasks)}
    kept = [task for task in tasks if task.name in index] or tasks  # of none at all, evaluate tells what is wrong
    result = evaluate(
        model, tokenizer, kept, split=spec.split, task_index=index, metrics=tuple(spec.metrics),
        max_length=max_length, max_new_tokens=spec.max_new_tokens, batch_rows=spec.rows, limit=spec.limit,
        run=run.resolve().name, method=_method(config), seed=config.seed, progress=progress,
    )  # fmt: skip
    result.skipped.update({task.name: "not in the bank (any more)" for task in tasks if task not in kept})
    append_records(run / "records.jsonl", result.records)
    write_json(run / "environment.json", environment())
    return result


def _method(config: RunConfig) -> str:
    """The method's name in records; a part of the split is told apart from the whole."""
    limit = config.evaluation.limit
    return "colora" if limit is None else f"colora, first {limit}"


def _measured(config: RunConfig) -> list[Record]:
    """The run's records of the split it measures, or none if a metric is missing."""
    file, spec = Path(config.output) / "records.jsonl", config.evaluation
    known = read_records(file) if file.is_file() else []
    records = [one for one in known if (one.split, one.method) == (spec.split, _method(config))]
    wanted = {"token_nll" if metric == "nll" else metric for metric in spec.metrics}
    return records if wanted <= {one.metric for one in records} else []


def _info(config: RunConfig, tasks: list[Task], data: EncodedTasks, mixture: TaskMixture, steps: int) -> BankInfo:
    place = Counter(int(data[index]["task_ids"]) for index in islice(mixture, steps * config.training.rows))
    return BankInfo(
        base=config.base,
        chat_template=config.chat_template,
        max_length=config.training.max_length,
        examples={task.name: len(task.splits["train"]) for task in tasks},
        seen={task.name: place[number] for number, task in enumerate(tasks)},
        sources={name: {"split_seed": one["split_seed"]} for name, one in task_manifest(tasks).items()},
    )
