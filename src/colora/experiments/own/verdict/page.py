"""The page of a comparison of a user's tasks: the verdict, how to go on, and the numbers that the verdict rests on.

A report asks how far CoLoRA is ahead on tasks like these, and draws tasks too. Here the tasks are the user's own, and
the question is what to use for them. So every difference and interval on this page is one of the verdict's.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from colora.common.files import write_text
from colora.experiments.own.contenders import IN_CONTEXT
from colora.experiments.own.verdict.judge import Gain, Outcome, Verdict
from colora.experiments.own.verdict.measure import NATS, Measure
from colora.experiments.own.verdict.sentences import gain_text
from colora.experiments.report.appendix import appendix
from colora.experiments.report.blocks import Block, Command, Folded, Lead, Section
from colora.experiments.report.gather import Experiment
from colora.experiments.report.overview import methods_table
from colora.experiments.report.page import page
from colora.experiments.report.panels import styles
from colora.experiments.report.sections import curves, mixed_warnings
from colora.experiments.report.tables import LEVEL, NOTHING, Entry, Table, bytes_text, listed, plural, table
from colora.experiments.trial import TrialRecord

__all__ = ["verdict_sections", "write_page"]

MOST_NAMED = 3  # tasks in the title
GROUP = "your tasks"  # instead of the digest that tells their trials from others


def write_page(
    verdict: Verdict, measure: Measure, records: Sequence[TrialRecord], ways: Sequence[tuple[str, str]], out: Path
) -> None:
    """Write the page. Raises CheckpointError if it cannot be written.

    Args:
        verdict: with its sentences.
        measure: what tasks are judged by.
        records: on the test split.
        ways: how to go on, as pairs of a purpose and a command.
        out: the page.
    """
    names = listed(verdict.tasks) if len(verdict.tasks) <= MOST_NAMED else plural(len(verdict.tasks), "task")
    sections = verdict_sections(verdict, measure, records, ways)
    write_text(out, page(sections, f"What to use for {names}"))


def verdict_sections(
    verdict: Verdict, measure: Measure, records: Sequence[TrialRecord], ways: Sequence[tuple[str, str]]
) -> list[Section]:
    """All sections of the page; see `write_page`."""
    known = replace(Experiment.of("comparison", [_named(one) for one in records]), judged_by=measure.metric)
    looks = styles([known])
    steps: list[Block] = [block for purpose, command in ways for block in (f"{purpose}:", Command(command))]
    first: list[Block] = [Lead(verdict.sentences[0]), *verdict.sentences[1:], *mixed_warnings([known])]
    compared: list[Block] = [_compared(verdict, measure)]
    if len(verdict.tasks) > 1:
        compared.append(Folded("Task by task", (_by_task(verdict, measure),)))
    return [
        Section("The verdict", tuple(first)),
        *([Section("How to go on", tuple(steps))] if ways else []),
        Section("The methods compared", tuple(compared)),
        *curves([known], looks),
        Section("Methods", (methods_table([known]),)),
        appendix([known], looks, quality=False),
    ]


def _named(record: TrialRecord) -> TrialRecord:
    return record.model_copy(update={"trial": record.trial.model_copy(update={"group": GROUP})})


def _compared(verdict: Verdict, measure: Measure) -> Table:
    """A row for each method, best first: the means, and how far it is behind the best, as the verdict has it."""
    rows: list[list[str | Entry]] = [
        [
            Entry(f"{one.title} ({one.method})", strong=one.method == verdict.recommended),
            Entry(
                measure.show(one.score),
                level=one.method in verdict.as_good and one.method != verdict.best,
                bold=one.method == verdict.best,
            ),
            _behind(one.behind, measure),
            NATS.show(one.nats),
            _behind(one.behind_nats, NATS),
            _cost(one),
        ]
        for one in verdict.outcomes
    ]
    behind = [f"behind the best\nin {one.title}" for one in (measure, NATS)]
    headers = ["method", measure.title, behind[0], NATS.title, behind[1], "a task costs"]
    best = next(one.title for one in verdict.outcomes if one.method == verdict.best)
    return table("The methods compared", headers, rows, [_note(best)])


def _note(best: str) -> str:
    return (
        f"Means over tasks, then seeds. The best has the highest score: {best}, in bold. {LEVEL} marks what is as "
        "good: neither interval lies above zero. Of these the simplest is recommended. Differences are "
        "paired: over the seeds and test answers that both methods have. Intervals come from 2000 bootstrap draws of "
        "seeds, and of test answers within each task (of tasks too where a task has a single answer). They hold for "
        "these tasks, not for others like them."
    )


def _behind(gain: Gain | None, measure: Measure) -> str:
    return NOTHING if gain is None else gain_text(gain, measure)


def _cost(one: Outcome) -> str:
    if one.method == IN_CONTEXT:
        return "a longer prompt"
    return bytes_text(one.task_bytes) if one.task_bytes else "nothing"


def _by_task(verdict: Verdict, measure: Measure) -> Table:
    rows = [[task, *(measure.show(one.tasks[task]) for one in verdict.outcomes)] for task in verdict.tasks]
    headers = ["task", *(f"{one.method}\n{measure.title}" for one in verdict.outcomes)]
    return table("Task by task", headers, rows)
