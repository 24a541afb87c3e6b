"""More examples for a task that a bank has: its core goes on from where it is, and everything else stays as it is.

The core is kept if it has become better on validation examples that it was not trained on; else the bank stays as it
was.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_tuner
from colora.bank.keys import tensor_key
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank
from colora.bank.rows.change import replace_core
from colora.bank.tensors import SavedBank, write_bank
from colora.common.device import training_device
from colora.common.threads import configure_threads
from colora.errors import ConfigError, TaskIdError
from colora.models.likelihood import is_encoder_decoder
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import encode_tasks
from colora.tasks.schema import Task, TaskSource, prompted
from colora.tasks.tokenizer import Tokenizer
from colora.training.prompts import unplaced_text
from colora.transfer.onboarding.fit import Settings, fit_core
from colora.transfer.onboarding.onboard import batches_of, read_one_task, target_folder
from colora.transfer.onboarding.start import mean_nll

__all__ = ["LR", "Update", "update"]

LR = 0.03
"""A core that has been trained needs shorter steps than one that begins (docs/decisions/onboarding.md)."""
VALIDATION_SHARE = 4


@dataclass(frozen=True)
class Update:
    """What further examples did for a task.

    Attributes:
        task: its name.
        bank: folder of the bank; unchanged where `kept` is false.
        before, after: nats per token of its validation examples, with the core of before and the new one.
        trained, validation: numbers of examples.
        kept: whether the bank has the new core now.
        seconds: for all of it.
    """

    task: str
    bank: Path
    before: float
    after: float
    trained: int
    validation: int
    kept: bool
    seconds: float


def update(
    bank: str | Path,
    examples: str | Path | TaskSource,
    *,
    name: str | None = None,
    output: str | Path | None = None,
    base: str | None = None,
    settings: Settings | None = None,
    force: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Update:
    """Train a task's core further on examples, with the prompt that it has.

    Args:
        bank: folder of a bank or of a run.
        examples: a task file, a quarter of which is set aside for validation, or a folder with a val file.
        name: the task's name; by default the file's.
        output: folder for the changed bank, must not hold anything; by default it takes the old one's place.
        base: another place of the same base model.
        settings: as for a new task; its rate is `LR` unless given, and `extend` cannot be.
        force: keep the new core even if it is no better.
        log: takes lines for the user.

    Raises:
        BankFileError, BaseMismatchError: see `load_bank`.
        TaskFileError: listing all faults of the examples.
        TaskIdError: the bank has no such task.
        ConfigError: the output is there already, there is no example to validate on, or `extend` is asked for.
        TrainingDivergedError: a loss became NaN or infinite; nothing is written.
        CheckpointError: the bank cannot be written; what was there still is.
    """
    began = time.monotonic()
    configure_threads()
    settings = settings or Settings()
    if settings.extend:
        raise ConfigError("extend: an existing task keeps its rank; to extend it, remove the task and onboard it again")
    settings = replace(settings, lr=LR if settings.lr is None else settings.lr)
    saved = SavedBank(bank)
    target = target_folder(saved, output)
    task = _read(examples, name, settings.seed)
    if task.name not in saved.index:
        raise TaskIdError(f"{saved.folder} has no task {task.name!r} (--name); `colora onboard` adds one")
    template = saved.info.template(task.name)
    if fault := unplaced_text(task, template):
        raise ConfigError(f"task {task.name!r}, {fault}")
    only = None if saved.rows is None else [task.name]
    model, tokenizer, _ = load_bank(saved, base, device=training_device("auto"), tasks=only)
    info = saved.info
    before, after = _trained(model, tokenizer, prompted(task, template), info.max_length, settings, log)
    kept = after < before or force
    if kept:
        info.examples[task.name] = info.examples.get(task.name, 0) + len(task.splits["train"])
        info.seen[task.name] = info.seen.get(task.name, 0) + settings.steps * settings.rows
        _write(saved, task.name, bank_tuner(model).core(task.name), info, target)
    sizes = len(task.splits["train"]), len(task.splits["val"])
    target = target if kept else saved.folder
    return Update(task.name, target, before, after, *sizes, kept, time.monotonic() - began)


def _write(saved: SavedBank, task: str, core: Mapping[str, Tensor], info: BankInfo, target: Path) -> None:
    """The bank with this core of the task."""
    if saved.rows is not None:
        replace_core(saved, task, core, info, target)
        return
    files = saved.load()
    files.info = info
    for layer, one in core.items():
        stack = files.tensors[tensor_key(layer, "core")]
        stack[saved.index[task]] = one.to(stack)
    write_bank(files, target)


def _trained(
    model: PeftModel,
    tokenizer: Tokenizer,
    task: Task,
    max_length: int,
    settings: Settings,
    log: Callable[[str], None],
) -> tuple[float, float]:
    """Train the task's core; nats per token of its validation examples before and after."""
    index, collate = bank_tuner(model).tasks.index(task.name), TaskCollator(tokenizer.pad_token_id)
    data, held_out = (
        encode_tasks([task], tokenizer, split, max_length, is_encoder_decoder(model), {task.name: 0})
        for split in ("train", "val")
    )
    validation = batches_of(held_out, collate)
    before = mean_nll(model, validation, index)
    log(f"{task.name}: {before:.3f} nats per token of its {len(held_out)} validation examples before")
    fit_core(model, index, data, collate, settings)
    return before, mean_nll(model, validation, index)


def _read(source: str | Path | TaskSource, name: str | None, seed: int) -> Task:
    """The task, with examples to validate on."""
    task = read_one_task(source, name, seed)
    if not task.splits["val"] and (count := len(task.splits["train"])) >= 2:
        task = read_one_task(source, name, seed, validation=max(1, count // VALIDATION_SHARE))
    if not task.splits["val"]:
        raise ConfigError(
            f"{task.source}: expected at least two examples, because one of them is set aside for validation"
        )
    return task
