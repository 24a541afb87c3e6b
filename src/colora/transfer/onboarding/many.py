"""New tasks by the hundred: the base model is loaded once, and the bank is written as they come."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel

from colora.adapter.model import bank_tuner
from colora.bank.growing import GrowingBank, start_tasks
from colora.bank.layout import CONFIG_FILE
from colora.bank.load import load_bank
from colora.bank.tensors import SavedBank
from colora.common.device import training_device
from colora.common.threads import configure_threads
from colora.errors import ConfigError, TaskFileError, TrainingDivergedError
from colora.tasks.prompting.templates import PromptTemplate, template_of
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task, prompted
from colora.tasks.tokenizer import Tokenizer
from colora.training.prompts import check_chat, unplaced_text
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import Onboarding, add_new_task, note_task, source_of, target_folder

__all__ = ["Onboardings", "onboard_many"]

SAVE_SECONDS = 60.0


@dataclass
class Onboardings:
    """What became of several new tasks.

    Attributes:
        bank: folder of the bank that has them.
        done: those that were added.
        skipped: names of those that the bank had already.
        failed: why others were not added, by name.
    """

    bank: Path
    done: list[Onboarding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def onboard_many(
    bank: str | Path,
    examples: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    base: str | None = None,
    settings: Settings | None = None,
    log: Callable[[str], None] = lambda line: None,
    prompt: str | None = None,
) -> Onboardings:
    """Add tasks to a saved bank, each as `onboard` would: none of them looks at the others.

    The bank is written every minute and at the end, at once and whole. A task that it has already is passed over, so
    that the same command goes on after a crash.

    Args:
        bank: folder of a bank or of a run.
        examples: for each task a file, or a folder of train, val and test files, with the task's name.
        output: folder for the new bank; it may hold what an earlier start has written there. By default it takes the
            old one's place.
        base, settings, log, prompt: as for `onboard`; `extend` cannot be, and `rank` in a bank of several sizes alone.

    Raises:
        BankFileError, BaseMismatchError: see `load_bank`.
        TaskFileError: listing all faults of all files, names that stand twice among them; nothing is trained.
        ConfigError: a prompt that has no place for an instruction, another bank at `output`, `extend`, or `rank`.
        CheckpointError: the bank cannot be written; what was there still is.
    """
    configure_threads()
    settings = settings or Settings()
    if settings.extend:
        raise ConfigError("extend: with one new task at a time, for A and B grow with each of them")
    goes_on = output is not None and (Path(output) / CONFIG_FILE).is_file()
    saved = SavedBank(bank)
    if goes_on and output is not None:
        begun = SavedBank(output)
        if begun.shared_sha256 != saved.shared_sha256:
            raise ConfigError(f"{output} holds another bank than {bank}, with other A and B: choose another output")
        saved = begun
    _check_rank(settings, saved)
    found = Onboardings(saved.folder if goes_on else target_folder(saved, output))
    tasks = read_tasks([source_of(Path(one)) for one in examples], seed=settings.seed)
    names = {task.name for task in tasks}
    others = start_tasks(saved) or saved.tasks
    known = [name for name in others if name not in names] or others
    found.skipped = [task.name for task in tasks if task.name in saved.index]
    if found.skipped:
        log(f"{len(found.skipped)} of {len(tasks)} tasks are in {saved.folder} already")
    template = saved.info.template() if prompt is None else template_of(prompt)
    new = _prompted([task for task in tasks if task.name not in saved.index], template)
    if new:
        model, tokenizer, _ = load_bank(saved, base, device=training_device("auto"), tasks=start_tasks(saved))
        check_chat([prompt], model, tokenizer)
        _add_all(
            GrowingBank(saved, saved.info, found.bank), new, (model, tokenizer), template, known, settings, log, found
        )
    return found


def _check_rank(settings: Settings, saved: SavedBank) -> None:
    """Raises ConfigError where the bank cannot take tasks of this rank as it is."""
    if saved.rows is None and (settings.rank or saved.config.rank_of_new) != saved.config.r:
        raise ConfigError(
            f"rank: {saved.folder} has cores of one size, {saved.config.r} × {saved.config.r}; onboard one task of "
            "another rank first, by itself"
        )


def _add_all(
    files: GrowingBank,
    new: Sequence[Task],
    loaded: tuple[PeftModel, Tokenizer],
    template: PromptTemplate | None,
    known: Sequence[str],
    settings: Settings,
    log: Callable[[str], None],
    found: Onboardings,
) -> None:
    (model, tokenizer), info = loaded, files.info
    assert info is not None
    unsaved, last = 0, time.monotonic()
    for number, task in enumerate(new, start=1):
        began = time.monotonic()
        log(f"{number} of {len(new)}: {task.name}")
        try:
            model, fit = add_new_task(model, tokenizer, task, info.max_length, settings, log, known)
        except (TrainingDivergedError, TaskFileError) as error:
            log(f"{task.name} is left out: {error}")
            found.failed[task.name] = str(error)
        else:
            note_task(info, task, settings, template)
            files.add(task.name, bank_tuner(model).core(task.name))
            seconds = time.monotonic() - began
            found.done.append(Onboarding(**vars(fit), task=task.name, bank=found.bank, seconds=seconds))
            unsaved += 1
        if unsaved and (number == len(new) or time.monotonic() - last > SAVE_SECONDS):
            files.write()
            unsaved, last = 0, time.monotonic()


def _prompted(tasks: Sequence[Task], template: PromptTemplate | None) -> list[Task]:
    for task in tasks:
        if fault := unplaced_text(task, template):
            raise ConfigError(f"prompt (--prompt): task {task.name!r}, {fault}")
    return [prompted(task, template) for task in tasks]
