"""The section `training` of a run file as transformers' `TrainingArguments`."""

import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from colora.errors import ConfigError
from colora.training.config import RunConfig
from colora.training.rates import default_weight_decay

__all__ = ["device_rows", "training_arguments", "weight_decay"]


def device_rows(config: RunConfig) -> int:
    """Rows of a micro-batch. Raises ConfigError if the rows of a step cannot be spread over the processes."""
    spec, world = config.training, int(os.environ.get("WORLD_SIZE", "1"))
    if spec.rows % (spec.accumulation * world):
        raise ConfigError(
            f"training.rows ({spec.rows}) must be a multiple of accumulation × processes "
            f"({spec.accumulation} × {world})"
        )
    return spec.rows // (spec.accumulation * world)


def weight_decay(config: RunConfig) -> float:
    """Of A and B. What a bank has learnt that the run starts from does not decay unless the run file says so."""
    spec = config.training
    if spec.weight_decay is not None:
        return spec.weight_decay
    return 0.0 if config.start_from is not None else default_weight_decay(spec.lr, spec.steps)


def training_arguments(config: RunConfig) -> TrainingArguments:
    """The arguments of a run's trainer, its rows spread over the processes that torchrun started, if any.

    Raises:
        ConfigError: as `device_rows`.
    """
    spec, output = config.training, Path(config.output)
    if spec.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "logs")
    warms_up = spec.scheduler == "constant" and spec.warmup
    return TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=spec.steps,
        per_device_train_batch_size=device_rows(config),
        per_device_eval_batch_size=config.evaluation.rows,
        gradient_accumulation_steps=spec.accumulation,
        learning_rate=spec.lr,
        weight_decay=weight_decay(config),
        lr_scheduler_type="constant_with_warmup" if warms_up else spec.scheduler,
        warmup_steps=spec.warmup,
        adam_beta2=spec.beta2,
        max_grad_norm=spec.max_grad_norm,
        bf16=spec.precision == "bf16",
        fp16=spec.precision == "fp16",
        gradient_checkpointing=spec.gradient_checkpointing,
        eval_strategy="no" if spec.eval_every is None else "steps",
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
    )
