"""Onboarding: a new task in a trained bank. r × r parameters per layer are trained, all that was there stays."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from colora.adapter.lookup import bank_router
from colora.adapter.model import bank_layers, bank_tuner
from colora.adapter.stored.access import ROOM, held_tasks, store_cores, stored_cores
from colora.bank.growing import start_tasks
from colora.bank.hub import check_changeable
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank
from colora.bank.tensors import SavedBank
from colora.common.device import training_device
from colora.common.threads import configure_threads
from colora.errors import ConfigError
from colora.models.likelihood import is_encoder_decoder
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks, encode_tasks
from colora.tasks.hub import VAL_NAMES
from colora.tasks.prompting.templates import PromptTemplate, template_of
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task, TaskSource, prompted
from colora.tasks.tokenizer import Tokenizer
from colora.training.prompts import check_chat, unplaced_text
from colora.training.task_gradients import TaskGradients, task_gradients
from colora.transfer.onboarding.coverage import Coverage, coverage
from colora.transfer.onboarding.extend import extend_rank
from colora.transfer.onboarding.fit import Settings, fit_core
from colora.transfer.onboarding.start import Start, choose_start, evenly, gradient_at_zero, mean_nll
from colora.transfer.onboarding.write import write_new_task

__all__ = [
    "Onboarding",
    "Settings",
    "TaskFit",
    "add_new_task",
    "batches_of",
    "note_task",
    "onboard",
    "read_one_task",
    "source_of",
    "target_folder",
]

ENOUGH = 0.005
"""Relative coverage that tasks like the bank's own exceed, and others do not (benchmarks/transfer/coverage.py)."""
GRADIENT_EXAMPLES = 16
MOST_KNOWN = 256
"""Tasks of a bank in a store that a new one looks at for its start, evenly spread."""


@dataclass(frozen=True)
class TaskFit:
    """What training the core of a new task came to.

    Attributes:
        start: where the core started, and the token NLL of other starts.
        coverage: how much of the task's gradient the shared subspace holds.
        before, at_start, after: nats per token of its training examples without any adapter, with the core where it
            starts, and with the trained core.
        validation: nats per token of its validation examples, or None if it has none.
    """

    start: Start
    coverage: Coverage
    before: float
    at_start: float
    after: float
    validation: float | None


@dataclass(frozen=True)
class Onboarding(TaskFit):
    """A `TaskFit` in a saved bank.

    Attributes:
        task: the new task's name.
        bank: folder of the bank that has it.
        seconds: for all of it, loading the base model included; of several tasks trained together, its share.
        examples: how many it was trained on.
    """

    task: str
    bank: Path
    seconds: float
    examples: int

    def as_json(self) -> dict[str, Any]:
        """A row of a report; "coverage" is a share of 1."""
        return {
            "task": self.task,
            "outcome": "added",
            "examples": self.examples,
            "start": self.start.name,
            "coverage": self.coverage.relative,
            "enough": self.coverage.relative >= ENOUGH,
            "before": self.before,
            "at_start": self.at_start,
            "after": self.after,
            "validation": self.validation,
            "seconds": self.seconds,
            "advice": self.advice,
        }

    @property
    def advice(self) -> str:
        """Whether the training helped, and whether the shared subspace is enough."""
        lost, change = "", f"{self.at_start:.3f} to {self.after:.3f} nats per token"
        if self.after > self.at_start:
            lost = f"training made the task's own examples less likely ({change}): try another --lr. "
        reached = f"{self.coverage.relative:.2%} of its gradient, relative to directions made for this task"
        share = f"{lost}coverage: A and B reach {reached}"
        if self.coverage.relative >= ENOUGH:
            return f"{share}. That is usual for tasks like the bank's own ({ENOUGH:.1%} and more)"
        return (
            f"{share}. That is little (tasks like the bank's own have {ENOUGH:.1%} and more): --extend 16 gives it "
            "further directions without changing the other tasks' models"
        )


def onboard(
    bank: str | Path,
    examples: str | Path | TaskSource,
    *,
    name: str | None = None,
    output: str | Path | None = None,
    base: str | None = None,
    settings: Settings | None = None,
    log: Callable[[str], None] = lambda line: None,
    prompt: str | None = None,
) -> Onboarding:
    """Add a task to a saved bank and train its core on its examples.

    Of a bank in rows only some cores are read, evenly spread (`START_TASKS`): the new one may start from these.

    Args:
        bank: folder of a bank or of a run.
        examples: a task file, or a folder of train, val and test files; what is not there is not drawn either. A
            `TaskSource` with a path may name the file's columns too.
        name: the task's name; by default the file's.
        output: folder for the new bank, must not hold anything; by default it takes the old one's place, at once and
            whole.
        base: another place of the same base model.
        log: takes lines for the user.
        prompt: of the task, a template, its name, or "chat"; by default the bank's, see `BankInfo.prompt`.

    Raises:
        BankFileError, BaseMismatchError: see `load_bank`.
        TaskFileError: listing all faults of the examples.
        ConfigError: the name is taken, the output is there already, there is no room for `extend`, or the prompt is
            none or has no place for the examples' instruction.
        TrainingDivergedError: a loss became NaN or infinite; nothing is written.
        CheckpointError: the bank cannot be written; what was there still is.
    """
    began = time.monotonic()
    configure_threads()
    settings = settings or Settings()
    saved = SavedBank(bank)
    target = target_folder(saved, output)
    task = read_one_task(examples, name, settings.seed)
    if task.name in saved.index:
        raise ConfigError(f"{task.name!r} is already a task of {saved.folder}; choose another name (--name)")
    template = saved.info.template() if prompt is None else template_of(prompt)
    if fault := unplaced_text(task, template):
        raise ConfigError(f"prompt (--prompt): task {task.name!r}, {fault}")
    task = prompted(task, template)
    model, tokenizer, _ = load_bank(saved, base, device=training_device("auto"), tasks=start_tasks(saved))
    info = saved.info
    check_chat([prompt], model, tokenizer)
    model, fit = add_new_task(model, tokenizer, task, info.max_length, settings, log)
    note_task(info, task, settings, template)
    write_new_task(saved, model, task.name, info, target)
    seconds, count = time.monotonic() - began, len(task.splits["train"])
    return Onboarding(**vars(fit), task=task.name, bank=target, seconds=seconds, examples=count)


def target_folder(saved: SavedBank, output: str | Path | None) -> Path:
    """Where a changed bank goes: in the place of the old one, or where it is asked for.

    Raises:
        ConfigError: something is there already, or the bank is a copy of one on the hub.
    """
    if output is None:
        check_changeable(saved.folder)
        return saved.folder
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already; choose another output, or leave --output out to change the bank")
    return target


def note_task(info: BankInfo, task: Task, settings: Settings, template: PromptTemplate | None) -> None:
    """Keep what is known of a new task."""
    info.examples[task.name] = len(task.splits["train"])
    info.seen[task.name] = settings.steps * settings.rows
    info.sources[task.name] = {"split_seed": task.split_seed, "onboarded": True}
    info.set_template(task.name, template)


def add_new_task(
    model: PeftModel,
    tokenizer: Tokenizer,
    task: Task,
    max_length: int,
    settings: Settings,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[PeftModel, TaskFit]:
    """Add a task to a bank in memory and train its core; no other number of the bank changes.

    It may start from the core of any task that is there, and of a store of `MOST_KNOWN`.

    If that fails, the bank is without the task again, as it was; but once its rank has been extended, only the model
    that was to be returned has it.

    Returns:
        the model, another one than before if its rank was extended; and what the training came to.

    Raises:
        ConfigError: the name is taken, the bank is merged into the base, there is no room for `extend`, or the bank has
            no cores of the rank that is asked for.
        TaskFileError: listing every example that is too long.
        TrainingDivergedError: a loss became NaN or infinite.
    """
    tuner = bank_tuner(model)
    if any(layer.merged for layer in bank_layers(model, tuner.active_adapters[0]).values()):
        raise ConfigError("the bank is merged into the base weights: call unmerge_adapter() before adding a task")
    encoder_decoder = is_encoder_decoder(model)
    data = encode_tasks([task], tokenizer, "train", max_length, encoder_decoder, {task.name: 0})
    held_out = encode_tasks([task], tokenizer, "val", max_length, encoder_decoder, {task.name: 0})
    known = tuner.tasks
    if stored_cores(model) is not None and len(known) > MOST_KNOWN:  # they are all on the model at once
        known = known[:: -(-len(known) // MOST_KNOWN)]
    config = tuner.peft_config[tuner.active_adapters[0]]
    rank = settings.rank or config.rank_of_new
    if rank != config.r and stored_cores(model) is None:
        store_cores(model, min(ROOM, len(known) + 1))  # of several sizes from now on
    tuner.add_tasks([task.name], rank=rank)
    try:
        return _add(model, tokenizer.pad_token_id, task.name, data, held_out, settings, log, known)
    except BaseException:  # Ctrl-C too
        if bank_router(tuner.model) is not None:  # else it was taken off to be extended
            tuner.remove_task(task.name)
        raise


def _add(
    model: PeftModel,
    pad_token_id: int,
    name: str,
    data: EncodedTasks,
    held_out: EncodedTasks,
    settings: Settings,
    log: Callable[[str], None],
    known: Sequence[str],
) -> tuple[PeftModel, TaskFit]:
    with held_tasks(model, [*known, name]):
        fit, left = _started(model, pad_token_id, name, data, settings, log, known)
    if left is not None:
        model = extend_rank(model, settings.extend, left, name)
    collate, index = TaskCollator(pad_token_id), bank_tuner(model).tasks.index(name)
    fit_core(model, index, data, collate, settings)
    after = mean_nll(model, batches_of(data, collate), index)
    validation = mean_nll(model, batches_of(held_out, collate), index) if len(held_out) else None
    return model, replace(fit, after=after, validation=validation)


def _started(
    model: PeftModel,
    pad_token_id: int,
    name: str,
    data: EncodedTasks,
    settings: Settings,
    log: Callable[[str], None],
    known: Sequence[str],
) -> tuple[TaskFit, TaskGradients | None]:
    """Look at a new task, and write its start; with the gradient there, if its rank is to be extended."""
    collate, tuner = TaskCollator(pad_token_id), bank_tuner(model)
    bank, index = tuner.active_adapters[0], tuner.tasks.index(name)
    tuner.set_core(name, {layer: torch.zeros_like(core) for layer, core in tuner.core(name).items()})
    gradients = task_gradients(model, data, [name], pad_token_id, rows=GRADIENT_EXAMPLES, task_index=[index])
    few = len(data) <= GRADIENT_EXAMPLES
    before = float(gradients.loss[0]) if few else mean_nll(model, batches_of(data, collate), index)
    factors = {
        layer_name: (layer.colora_A[bank].detach().cpu(), layer.colora_B[bank].detach().cpu())
        for layer_name, layer in bank_layers(model, bank).items()
    }
    covered = coverage(gradients, 0, factors)
    some = [collate([data[place] for place in evenly(len(data))])]
    start = choose_start(model, name, some, gradient_at_zero(model, gradients, 0), known)
    at_start = mean_nll(model, batches_of(data, collate), index)
    log(f"{name}: {before:.3f} nats per token without adapter, {at_start:.3f} from {start.name}")
    left = None
    if settings.extend:  # along what is left to learn from there
        left = task_gradients(model, data, [name], pad_token_id, rows=GRADIENT_EXAMPLES, task_index=[index])
    return TaskFit(start, covered, before, at_start, math.nan, None), left


def read_one_task(source: str | Path | TaskSource, name: str | None, seed: int, validation: int = 0) -> Task:
    """One task from a file, or from a folder of splits.

    Args:
        validation: examples that are set aside where there is no val file. A new task has few: of them, none.

    Raises:
        TaskFileError: listing all faults of the files.
    """
    (task,) = read_tasks([source_of(source, name, validation)], seed=seed)
    return task


def source_of(source: str | Path | TaskSource, name: str | None = None, validation: int = 0) -> TaskSource:
    """What `read_tasks` takes for the same."""
    given = source if isinstance(source, TaskSource) else TaskSource(path=str(source))
    folder = Path(given.path or "")
    splits = {path.stem for path in folder.iterdir()} if given.path and folder.is_dir() else set()
    val = None if splits & set(VAL_NAMES) else validation
    test = None if "test" in splits else 0
    return replace(given, name=name or given.name, val=val, test=test)


def batches_of(data: EncodedTasks, collate: TaskCollator, rows: int = 16) -> list[dict[str, torch.Tensor]]:
    """The examples in padded batches, in their order."""
    items = [data[index] for index in range(len(data))]
    return [collate(items[start : start + rows]) for start in range(0, len(items), rows)]
