"""New tasks by the hundred: trained in the same passes, and the bank is written as they come."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from colora.bank.growing import GrowingBank, start_tasks
from colora.bank.layout import CONFIG_FILE
from colora.bank.tensors import SavedBank
from colora.common.progress import progress_bar
from colora.common.threads import configure_threads
from colora.errors import ConfigError, TaskFileError
from colora.models.batching import device_of
from colora.models.likelihood import is_encoder_decoder
from colora.tasks.encode import encode_tasks
from colora.tasks.prompting.templates import PromptTemplate, template_of
from colora.tasks.read import read_tasks
from colora.tasks.schema import Task, TaskSource, prompted
from colora.tasks.tokenizer import Tokenizer
from colora.training.prompts import check_chat, unplaced_text
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import Onboarding, TaskFit, note_task, source_of, target_folder
from colora.transfer.onboarding.start import Start
from colora.transfer.onboarding.together.cohort import Trained, train_together
from colora.transfer.onboarding.together.load import load_for_training, most_tokens_of
from colora.transfer.onboarding.together.newcomer import Newcomer, rows_of

__all__ = ["Onboardings", "onboard_many"]

SAVE_SECONDS = 60.0


@dataclass
class Onboardings:
    """What became of several new tasks.

    Attributes:
        bank: folder of the bank that has them.
        done: those that were added, in the order of the examples; their starts without the cores.
        skipped: names of those that the bank had already.
        failed: why others were not added, by name.
    """

    bank: Path
    done: list[Onboarding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> list[dict[str, Any]]:
        """What became of each task, a row for each: "outcome" is "added", "was there" or "left out"."""
        rows = [one.as_json() for one in self.done]
        rows += [{"task": name, "outcome": "was there"} for name in self.skipped]
        return rows + [{"task": name, "outcome": "left out", "why": why} for name, why in self.failed.items()]


def onboard_many(
    bank: str | Path,
    examples: Sequence[str | Path | TaskSource],
    *,
    output: str | Path | None = None,
    base: str | None = None,
    settings: Settings | None = None,
    log: Callable[[str], None] = lambda line: None,
    prompt: str | None = None,
    dtype: str | None = None,
) -> Onboardings:
    """Add tasks to a saved bank, trained in the same passes. None of them looks at the others: each gets the core that
    `onboard` would give it, within rounding, whatever is beside it.

    The bank is written after a cohort, once a minute has gone by, and at the end; at once and whole. A task that it has
    already is passed over, so that the same command goes on after a crash. One that cannot be trained is left out, and
    touches no other.

    Args:
        bank: folder of a bank or of a run.
        examples: for each task a file, or a folder of train, val and test files, with the task's name.
        output: folder for the new bank; it may hold what an earlier start has written there. By default it takes the
            old one's place.
        base, settings, log, prompt: as for `onboard`; `extend` cannot be, and `rank` in a bank of several sizes alone.
        dtype: of what rests, "float32" or "bfloat16"; by default bfloat16 on a CPU that multiplies it.

    Raises:
        BankFileError, BaseMismatchError: see `load_bank`.
        TaskFileError: listing all faults of all files, names that stand twice among them; nothing is trained.
        ConfigError: a prompt that has no place for an instruction, another bank at `output`, `extend`, or `rank`.
        CheckpointError: the bank cannot be written; what was there still is.
    """
    configure_threads()
    settings = settings or Settings()
    if settings.extend:
        raise ConfigError("extend: onboard one new task at a time, because A and B grow with each task")
    saved, found = _opened(bank, output)
    rank = _rank(saved, settings)
    tasks = read_tasks([source_of(one) for one in examples], seed=settings.seed)
    names = {task.name for task in tasks}
    others = start_tasks(saved) or saved.tasks
    known = [name for name in others if name not in names] or others
    found.skipped = [task.name for task in tasks if task.name in saved.index]
    if found.skipped:
        log(f"{len(found.skipped)} of {len(tasks)} tasks are in {saved.folder} already")
    template = saved.info.template() if prompt is None else template_of(prompt)
    new = _prompted([task for task in tasks if task.name not in saved.index], template)
    if new:
        model, tokenizer, _ = load_for_training(saved, base, dtype, start_tasks(saved))
        check_chat([prompt], model, tokenizer)
        files = GrowingBank(saved, saved.info, found.bank)
        _Run(files, new, template, settings, rank, log, found).train(model, tokenizer, known)
    return found


def _rank(saved: SavedBank, settings: Settings) -> int:
    """Of the new cores. Raises ConfigError if the bank cannot have such."""
    r, rank = saved.config.r, settings.rank or saved.config.rank_of_new
    if saved.rows is None and rank != r:
        raise ConfigError(
            f"rank: {saved.folder} has cores of one size, {r} × {r}; onboard one task of another rank first, by itself"
        )
    if rank > r:
        raise ConfigError(f"rank: expected 1 to {r}, found {rank}: {saved.folder} has no more directions")
    return rank


def _opened(bank: str | Path, output: str | Path | None) -> tuple[SavedBank, Onboardings]:
    """The bank that tasks are added to, which an earlier start may have begun, and where it goes."""
    saved = SavedBank(bank)
    if output is None or not (Path(output) / CONFIG_FILE).is_file():
        return saved, Onboardings(target_folder(saved, output))
    begun = SavedBank(output)
    if begun.shared_sha256 != saved.shared_sha256:
        raise ConfigError(f"{output} holds another bank than {bank}, with other A and B: choose another output")
    return begun, Onboardings(begun.folder)


class _Run:
    """Adding tasks to a bank, which is written as they come."""

    def __init__(
        self,
        files: GrowingBank,
        new: Sequence[Task],
        template: PromptTemplate | None,
        settings: Settings,
        rank: int,
        log: Callable[[str], None],
        found: Onboardings,
    ) -> None:
        self.files, self.template, self.settings, self.log, self.found = files, template, settings, log, found
        self.rank = rank
        self.tasks = {task.name: task for task in new}
        self.order = {name: number for number, name in enumerate(self.tasks)}
        assert files.info is not None
        self.info = files.info
        self._began = self._written = time.monotonic()
        self._unsaved = 0

    def train(self, model: PeftModel, tokenizer: Tokenizer, known: Sequence[str]) -> None:
        """Train the tasks and write the bank; what is done when Ctrl-C comes is written as well."""
        try:
            for added in self._cohorts(model, tokenizer, known):
                self._unsaved += added
                if time.monotonic() - self._written > SAVE_SECONDS:
                    self._write()
        except KeyboardInterrupt:
            self._write()
            raise
        self._write()
        self.found.done.sort(key=lambda one: self.order[one.task])

    def _cohorts(self, model: PeftModel, tokenizer: Tokenizer, known: Sequence[str]) -> Iterator[int]:
        """How many tasks have been added, cohort by cohort."""
        newcomers = [one for task in self.tasks.values() if (one := self._encoded(task, model, tokenizer))]
        settings, tokens = self.settings, most_tokens_of(device_of(model))
        with progress_bar() as bar:
            counter = bar.add_task("onboarding", total=len(newcomers) * settings.steps)
            advance = partial(bar.advance, counter)
            pad = tokenizer.pad_token_id
            steps = train_together(model, newcomers, pad, settings, tokens, known, advance, self.rank)
            for cohort in steps:
                yield self._add(sorted(cohort, key=lambda pair: self.order[pair[0].name]))

    def _write(self) -> None:
        if self._unsaved:
            self.files.write()
        self._unsaved, self._written = 0, time.monotonic()

    def _encoded(self, task: Task, model: PeftModel, tokenizer: Tokenizer) -> Newcomer | None:
        """A task in tokens; None, and its reason told, if it cannot be."""
        try:
            rows, held_out = (
                rows_of(
                    encode_tasks(
                        [task], tokenizer, split, self.info.max_length, is_encoder_decoder(model), {task.name: 0}
                    )
                )
                for split in ("train", "val")
            )
        except TaskFileError as error:
            self._leave_out(task.name, str(error))
            return None
        return Newcomer(task.name, rows, held_out)

    def _add(self, cohort: Sequence[Trained]) -> int:
        """Add the tasks of a cohort to the bank in memory; how many they are."""
        seconds = self._seconds(len(cohort))
        cores = [(one.name, core) for one, core in cohort if one.fault is None]
        self.files.add_all(cores)
        for one, _ in cohort:
            if one.fault is not None:
                self._leave_out(one.name, one.fault)
                continue
            assert one.coverage is not None
            start = Start(one.start, {}, one.start_nll)
            fit = TaskFit(start, one.coverage, one.before, one.at_start, one.after, one.validation)
            self._note(self.tasks[one.name], fit, seconds)
            self.log(
                f"{one.name}: {one.before:.3f} nats per token without adapter, {one.at_start:.3f} from "
                f"{start.name}, {one.after:.3f} trained ({len(self.found.done)} of {len(self.tasks)})"
            )
        return len(cores)

    def _note(self, task: Task, fit: TaskFit, seconds: float) -> None:
        note_task(self.info, task, self.settings, self.template)
        count = len(task.splits["train"])
        self.found.done.append(
            Onboarding(**vars(fit), task=task.name, bank=self.found.bank, seconds=seconds, examples=count)
        )

    def _seconds(self, tasks: int) -> float:
        """What each of these tasks took, since those before them."""
        began, self._began = self._began, time.monotonic()
        return (self._began - began) / tasks

    def _leave_out(self, name: str, why: str) -> None:
        self.log(f"{name} is left out: {why}")
        self.found.failed[name] = why


def _prompted(tasks: Sequence[Task], template: PromptTemplate | None) -> list[Task]:
    for task in tasks:
        if fault := unplaced_text(task, template):
            raise ConfigError(f"prompt (--prompt): task {task.name!r}, {fault}")
    return [prompted(task, template) for task in tasks]
