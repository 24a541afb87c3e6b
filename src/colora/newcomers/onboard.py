"""A new task in a trained bank: A and B stay as they are, and r × r numbers a layer are trained on its examples."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import get_cosine_schedule_with_warmup

from colora.adapter.model import bank_layers, bank_tuner
from colora.bank import find_bank, load_bank, save_bank
from colora.base import configure_threads
from colora.errors import ConfigError, TrainingDivergedError
from colora.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.newcomers.coverage import Coverage, coverage
from colora.newcomers.extend import extend_rank
from colora.newcomers.start import Start, choose_start, mean_nll
from colora.placement import training_device
from colora.similarity.gradients import task_gradients
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks, encode_tasks
from colora.tasks.mixing import TaskMixture
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task, TaskSource
from colora.training.optimizer import TaskAdamW, parameter_groups

__all__ = ["Onboarding", "Settings", "add_newcomer", "onboard"]

BETAS = (0.9, 0.95)  # within few steps a second moment at 0.999 would remember one large gradient throughout
ENOUGH = 0.5  # relative coverage below which a further rank is worth a thought; see docs/decisions.md


@dataclass(frozen=True)
class Settings:
    """How a newcomer's core is trained.

    Attributes:
        steps: optimiser steps. rows: examples of a step. lr: peak learning rate of the core, which falls as a cosine.
        extend: further directions of A and B for the newcomer, see `colora.newcomers.extend`.
        seed: of the order of examples.
    """

    steps: int = 40
    rows: int = 8
    lr: float = 0.03
    extend: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Onboarding:
    """What came of it.

    Attributes:
        task: the new task's name.
        bank: folder of the bank that has it.
        start: where the core started, and what other starts were worth.
        coverage: how much of its gradient the shared subspace holds.
        before, after: nats per token of its training examples without any adapter, and with the trained core.
        validation: nats per token of its validation examples, or None if it has none.
        seconds: for all of it, loading the base model included.
    """

    task: str
    bank: Path
    start: Start
    coverage: Coverage
    before: float
    after: float
    validation: float | None
    seconds: float

    @property
    def advice(self) -> str:
        """A sentence on whether the shared subspace is enough."""
        share = f"the shared subspace holds {self.coverage.relative:.0%} of what one of its own would of its gradient"
        if self.coverage.relative >= ENOUGH:
            return share
        return f"{share}: little. --extend 4 gives it further directions without changing the other tasks' models"


def onboard(
    bank: str | Path,
    examples: str | Path,
    *,
    name: str | None = None,
    output: str | Path | None = None,
    base: str | None = None,
    settings: Settings | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Onboarding:
    """Add a task to a saved bank and train its core on its examples.

    Args:
        bank: folder of a bank or of a run.
        examples: a task file, all of which is trained on, or a folder of train, val and test files.
        name: the task's name; by default the file's.
        output: folder for the new bank; by default it takes the old one's place, at once and whole.
        base: another place of the same base model.
        log: takes lines for the user.

    Raises:
        BankFileError, BaseMismatchError: see `load_bank`.
        TaskFileError: listing all faults of the examples.
        ConfigError: the name is taken, there are no examples, or there is no room for `extend`.
        TrainingDivergedError: a loss became NaN or infinite; nothing is written.
        CheckpointError: the bank cannot be written; what was there still is.
    """
    began = time.monotonic()
    configure_threads()
    settings = settings or Settings()
    folder = find_bank(bank)
    source = Path(examples)
    aside = None if source.is_dir() else 0  # of a single file nothing is set aside
    (task,) = read_tasks([TaskSource(name=name, path=str(source), val=aside, test=aside)], seed=settings.seed)
    if not task.splits["train"]:
        raise ConfigError(f"{source}: no training examples")
    model, tokenizer, info = load_bank(folder, base, device=training_device("auto"), trainable=True)
    model, found = add_newcomer(model, tokenizer, task, info.max_length, settings, log)
    info.examples[task.name] = len(task.splits["train"])
    info.seen[task.name] = settings.steps * settings.rows
    info.sources[task.name] = {"source": task.source, "onboarded": True}
    target = Path(output) if output is not None else folder
    save_bank(model, target, info)
    return Onboarding(task.name, target, *found, time.monotonic() - began)


def add_newcomer(
    model: PeftModel,
    tokenizer: Any,
    task: Task,
    max_length: int,
    settings: Settings,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[PeftModel, tuple[Start, Coverage, float, float, float | None]]:
    """Add a task to a bank in memory and train its core; no other number of the bank changes.

    Returns:
        the model, another one than before if its rank was extended; start, coverage, nats per token before, after, and
        of the validation examples.
    """
    encoder_decoder = is_encoder_decoder(model)
    data = encode_tasks([task], tokenizer, "train", max_length, encoder_decoder, {task.name: 0})
    held_out = encode_tasks([task], tokenizer, "val", max_length, encoder_decoder, {task.name: 0})
    collate = TaskCollator(tokenizer.pad_token_id)
    batches, validation = _batches(data, collate), _batches(held_out, collate)
    tuner = bank_tuner(model)
    tuner.add_tasks([task.name])
    with _only_cores(model):
        layers = bank_layers(model, tuner.active_adapters[0])
        cores = tuner.core(task.name)
        tuner.set_core(task.name, {layer: torch.zeros_like(core) for layer, core in cores.items()})
        own = tuner.tasks.index(task.name)
        gradients = task_gradients(model, data, [task.name], tokenizer.pad_token_id, task_index=[own], progress=False)
        before = float(gradients.loss[0])
        bank = tuner.active_adapters[0]
        factors = {n: (layer.colora_A[bank].detach().cpu(), layer.colora_B[bank].detach().cpu())
                   for n, layer in layers.items()}  # fmt: skip
        found = coverage(gradients, 0, factors)
        start = choose_start(model, task.name, batches)
        log(f"{task.name}: {before:.3f} nats per token without adapter, {start.nll[start.name]:.3f} from {start.name}")
    if settings.extend:
        model = extend_rank(model, settings.extend, gradients)
    with _only_cores(model):
        _train(model, own, data, collate, settings)
        after = mean_nll(model, batches, own)
        late = mean_nll(model, validation, own) if validation else None
    return model, (start, found, before, after, late)


def _train(model: PeftModel, own: int, data: EncodedTasks, collate: TaskCollator, settings: Settings) -> None:
    optimizer = TaskAdamW(parameter_groups(model, settings.lr, settings.lr), betas=BETAS)
    warmup = min(5, settings.steps // 4)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, settings.steps)
    order = iter(TaskMixture([len(data)], batch_size=settings.rows, steps=settings.steps, seed=settings.seed))
    device = next(model.parameters()).device
    model.train()
    with _bar(settings.steps) as bar:
        for step in range(settings.steps):
            batch = collate([data[next(order)] for _ in range(settings.rows)])
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            inputs["task_ids"] = torch.full_like(inputs["task_ids"], own)
            labels = inputs.pop("labels")
            loss = row_nll(model, inputs, labels).sum() / label_tokens(labels, is_encoder_decoder(model)).sum()
            if not torch.isfinite(loss):
                raise TrainingDivergedError(
                    f"the loss became {float(loss)} in step {step + 1}: lower the learning rate"
                )
            loss.backward()
            optimizer.expect(torch.tensor([own]))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            bar.advance(bar.task_ids[0])
    model.eval()


@contextmanager
def _only_cores(model: PeftModel) -> Iterator[None]:
    """Inside, nothing but cores asks for gradients."""
    resting = [one for name, one in model.named_parameters() if one.requires_grad and "colora_core" not in name]
    for one in resting:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in resting:
            one.requires_grad_(True)


def _batches(data: EncodedTasks, collate: TaskCollator, rows: int = 16) -> list[dict[str, torch.Tensor]]:
    items = [data[place] for place in range(len(data))]
    return [collate(items[at : at + rows]) for at in range(0, len(items), rows)]


def _bar(steps: int) -> Progress:
    columns = (TextColumn("onboarding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=steps)
    return bar
