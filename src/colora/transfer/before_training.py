"""Similarity of a run's tasks before training, by their gradients at the base model."""

import warnings
from collections.abc import Callable

from peft import get_peft_model

from colora.common.device import DTYPES, training_device
from colora.common.threads import configure_threads
from colora.errors import ConfigError
from colora.models.base import load_base
from colora.models.positions import check_positions
from colora.tasks.encode import encode_tasks
from colora.training.adapter_config import bank_config
from colora.training.config import RunConfig
from colora.training.resolve import resolve_run, settle_prompt, tasks_in_memory
from colora.training.task_gradients import TaskGradients, task_gradients
from colora.transfer.similarity import Similarity, gradient_similarity

__all__ = ["run_gradients", "run_similarity"]


def run_similarity(config: RunConfig, rows: int = 16, log: Callable[[str], None] = lambda line: None) -> Similarity:
    """How alike the tasks' gradients are at the base model's weights, in the layers that the run adapts.

    Args:
        rows: examples of each task, the first of its training split.
        log: takes lines for the user.

    Raises:
        TaskFileError: listing all faults of the task files.
        ConfigError: one task only, or a task without training examples.
    """
    return gradient_similarity(run_gradients(config, rows, log))


def run_gradients(config: RunConfig, rows: int = 16, log: Callable[[str], None] = lambda line: None) -> TaskGradients:
    """The gradients of a run's tasks; see `run_similarity`."""
    configure_threads(config.training.threads)
    run = resolve_run(config)
    tasks_in_memory(run.tasks, "colora similarity")
    config, names = run.config, list(run.names)
    if len(names) < 2:
        raise ConfigError(f"similarity needs two tasks at least, found one: {', '.join(names)}")
    device = training_device(config.training.device)
    model, tokenizer = load_base(
        config.base, DTYPES[config.training.base_dtype], device, chat_template=config.chat_template
    )
    check_positions(model, config.training.max_length)
    tasks = settle_prompt(run, model, tokenizer, log).tasks
    adapter = config.adapter.model_copy(update={"lora_dropout": 0.0})
    peft = get_peft_model(model, bank_config(adapter, names, model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # training warns of inputs that are cut
        data = encode_tasks(tasks, tokenizer, "train", config.training.max_length, model.config.is_encoder_decoder)
    return task_gradients(peft, data, names, tokenizer.pad_token_id, rows=rows)
