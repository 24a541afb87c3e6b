"""The verdict on a user's tasks: what to use and what speaks for it. `verdict.json` holds it for programs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from colora.experiments.own.contenders import Contender, Setting
from colora.experiments.own.plan import Plan
from colora.experiments.own.verdict.measure import NATS, Measure
from colora.experiments.report.statistics import Sample, paired_difference
from colora.experiments.trial import TrialRecord

__all__ = ["CurvePoint", "Gain", "Judged", "Outcome", "TaskGain", "Verdict", "judge"]

ALONE, SHARED = "local", ("pooled", "colora")
LEAST_ANSWERS = 6
"""Of five answers all are better on one side by chance alone in one case of sixteen: no interval of so few can leave
zero out at 95 %, whatever a bootstrap of them gives."""
BYTES = {"fp32": 4, "bf16": 4, "fp64": 8}  # of a number of an adapter, by the base's dtype


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gain(_Model):
    """A difference of means in the measure's unit, with its 95 % interval; above zero is better for the first."""

    mean: float
    low: float
    high: float
    answers: int = Field(description="Test answers that it is a difference of; an interval of few says nothing.")

    @property
    def has_interval(self) -> bool:
        """Whether there are enough answers for the interval to say something."""
        return self.answers >= LEAST_ANSWERS

    @property
    def is_better(self) -> bool:
        """Whether the first is better beyond noise."""
        return self.has_interval and self.low > 0

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.has_interval and (self.low > 0 or self.high < 0)


class TaskGain(_Model):
    """What a task gains by a LoRA of its own over the better of what is shared."""

    task: str
    gain: Gain


class CurvePoint(_Model):
    """The score of a method with so many training examples of each task."""

    method: str
    examples: int
    score: float


class Outcome(_Model):
    """What one contender came to; the means over tasks and seeds."""

    method: str
    title: str
    setting: str | None = Field(description="The setting that was chosen; null if there are none.")
    score: float = Field(description="In the measure.")
    exact_match: float = Field(description="In per cent.")
    nats: float = Field(description="Nats a token of the right answers.")
    tasks: dict[str, float] = Field(description="The score on each task.")
    behind: Gain | None = Field(None, description="The best method minus this one, in the measure.")
    behind_nats: Gain | None = Field(None, description="The same in nats a token; above zero the best is likelier.")
    seeds: int
    shared_bytes: int = Field(description="Kept once for all tasks.")
    task_bytes: int = Field(description="Kept for each task.")
    seconds: float = Field(description="Of a training and its measurement.")


class Verdict(_Model):
    """What to use for these tasks, and why."""

    version: int = 1
    recommended: str = Field(description="The method to use.")
    best: str = Field(description="The method with the highest score.")
    as_good: list[str] = Field(description="Methods whose difference to the best is within noise, simplest first.")
    runner_up: str | None = Field(description="The best of the methods that are not recommended.")
    gain: Gain | None = Field(description="The recommended method minus the runner-up.")
    gain_nats: Gain | None = Field(None, description="The same in nats a token; above zero it is likelier.")
    gain_over_base: Gain | None = Field(description="The recommended method minus the base model as it is.")
    measure: str
    alone: list[TaskGain] = Field(description="Tasks that a LoRA of their own serves better, beyond noise.")
    outcomes: list[Outcome] = Field(description="All contenders, best first.")
    curve: list[CurvePoint] = []
    more_examples: Gain | None = Field(None, description="The most examples minus the next fewer, recommended method.")
    failed: dict[str, str] = {}
    missing: list[str] = []
    tasks: list[str]
    examples: list[int] = Field(description="Training examples of each task.")
    test_answers: int = Field(description="Answers that were measured, over all tasks.")
    seen_elsewhere: dict[str, int] = Field(
        {}, description="Test answers of a task whose input is a training or validation example of another task."
    )
    prompt: str = Field(description="The prompt of all contenders.")
    plan: Plan
    given_up: list[str] = Field(description="What was cut to keep the budget of time.")
    why_cut: str = Field("", description="How long everything would have taken, and why no more fitted.")
    adapters: str | None = Field(None, description="Folder of the recommended method's adapters, beside this file.")
    sentences: list[str] = Field([], description="The verdict in words.")


@dataclass(frozen=True)
class Judged:
    """What is judged.

    Attributes:
        contenders: all of them, the simplest first.
        records: of the final trials on all examples, and of those of the curve.
        chosen: the setting of each contender.
        measure: what tasks are judged by.
        examples: training examples of each task.
    """

    contenders: Sequence[Contender]
    records: Sequence[TrialRecord]
    chosen: Mapping[str, Setting | None]
    measure: Measure
    examples: Sequence[int]

    def of(self, method: str, examples: int | None = None) -> list[TrialRecord]:
        """The records of a method; with all examples by default."""
        number = max(self.examples) if examples is None else examples
        return [one for one in self.records if one.trial.method == method and one.trial.examples == number]

    def gain(self, left: Sequence[TrialRecord], right: Sequence[TrialRecord], measure: Measure) -> Gain | None:
        """The mean difference, above zero if the left side is better."""
        # What is not trained has one seed, which stands for all.
        seeds = {one.trial.seed for one in left} | {one.trial.seed for one in right}
        untrained = {one.method for one in self.contenders if not one.trained}
        ours, theirs = (Sample(_for_seeds(side, seeds, untrained)) for side in (left, right))
        counts = _answer_counts(left[0]) if left else [0]
        # A single answer has no spread within its task: the spread over tasks stands for it.
        found = paired_difference(ours, theirs, measure.metric, over_tasks=min(counts) == 1)
        if found is None:
            return None
        low, high = sorted((measure.sign * found.low, measure.sign * found.high))
        return Gain(mean=measure.sign * found.mean, low=low, high=high, answers=sum(counts))


def judge(judged: Judged, facts: Mapping[str, object]) -> Verdict:
    """The verdict, without sentences.

    Recommended is the simplest of the methods whose difference to the best is within noise, both in the measure and in
    nats: no method is called as good as another that finds the right answers likelier beyond noise. All intervals are
    for these tasks: seeds and test answers within tasks are drawn, tasks are not.

    Args:
        judged: the records; at least one contender has some.
        facts: the fields of the verdict that are known already.
    """
    measure = judged.measure
    there = [one for one in judged.contenders if judged.of(one.method)]
    outcomes = sorted((_outcome(one, judged) for one in there), key=lambda one: (-measure.sign * one.score, one.nats))
    best = outcomes[0].method
    outcomes = [_beside_best(judged, best, one) for one in outcomes]
    level = {one.method for one in outcomes if one.method == best or _within_noise(one)}
    as_good = [one.method for one in there if one.method in level]
    recommended = as_good[0]
    others = [one.method for one in outcomes if one.method != recommended]
    records = judged.of(recommended)
    curve, more = _curve(judged, recommended)
    over_base = judged.gain(records, judged.of("base"), measure) if recommended != "base" else None
    found: dict[str, object] = {
        "recommended": recommended,
        "best": best,
        "as_good": as_good,
        "runner_up": others[0] if others else None,
        "gain": judged.gain(records, judged.of(others[0]), measure) if others else None,
        "gain_nats": judged.gain(records, judged.of(others[0]), NATS) if others else None,
        "gain_over_base": over_base,
        "measure": measure.title,
        "alone": _better_alone(judged, outcomes),
        "outcomes": outcomes,
        "curve": curve,
        "more_examples": more,
        "examples": list(judged.examples),
        "test_answers": sum(_answer_counts(records[0])),
    }
    return Verdict.model_validate(found | dict(facts))


def _outcome(one: Contender, judged: Judged) -> Outcome:
    records = judged.of(one.method)
    sample, first, measure = Sample(records), records[0], judged.measure
    number, setting = BYTES[first.trial.dtype], judged.chosen.get(one.method)
    scores = {
        task: sum(record.scores[task].value(measure.metric) or 0.0 for record in records) / len(records)
        for task in first.scores
    }
    return Outcome(
        method=one.method,
        title=one.title,
        setting=None if setting is None else str(setting),
        score=sample.mean(measure.metric) or 0.0,
        exact_match=sample.mean("exact_match") or 0.0,
        nats=sample.mean(NATS.metric) or 0.0,
        tasks={task: round(value, 2) for task, value in scores.items()},
        seeds=len(records),
        shared_bytes=number * first.shared_numbers,
        task_bytes=number * first.task_numbers,
        seconds=round(sum(sum(record.seconds.values()) for record in records) / len(records), 1),
    )


def _beside_best(judged: Judged, best: str, one: Outcome) -> Outcome:
    if one.method == best:
        return one
    records, others = judged.of(best), judged.of(one.method)
    behind, nats = (judged.gain(records, others, measure) for measure in (judged.measure, NATS))
    return one.model_copy(update={"behind": behind, "behind_nats": nats})


def _within_noise(one: Outcome) -> bool:
    """Whether a method is as good as the best. Nats decide only where their interval says something."""
    if one.behind is None or one.behind_nats is None:
        return False
    return one.behind.low <= 0 and not one.behind_nats.is_better


def _better_alone(judged: Judged, outcomes: Sequence[Outcome]) -> list[TaskGain]:
    """Tasks whose own LoRA is better than the better of one LoRA for all and CoLoRA, beyond noise."""
    shared = next((one.method for one in outcomes if one.method in SHARED), None)
    if shared is None or not judged.of(ALONE):
        return []
    found = []
    for task in outcomes[0].tasks:
        left, right = (_only(judged.of(method), task) for method in (ALONE, shared))
        gain = judged.gain(left, right, judged.measure)
        if gain is not None and gain.is_better:
            found.append(TaskGain(task=task, gain=gain))
    return found


def _curve(judged: Judged, recommended: str) -> tuple[list[CurvePoint], Gain | None]:
    numbers = sorted({one.trial.examples for one in judged.records})
    points = []
    for one in judged.contenders:
        for number in numbers:
            score = Sample(judged.of(one.method, number)).mean(judged.measure.metric)
            if score is not None:
                points.append(CurvePoint(method=one.method, examples=number, score=round(score, 3)))
    measured = [number for number in numbers if judged.of(recommended, number)]
    if len(measured) < 2:
        return (points if len(numbers) > 1 else []), None
    more, fewer = (judged.of(recommended, number) for number in (measured[-1], measured[-2]))
    seeds = {one.trial.seed for one in fewer}  # the seeds of both
    return points, judged.gain([one for one in more if one.trial.seed in seeds], fewer, judged.measure)


def _only(records: Sequence[TrialRecord], task: str) -> list[TrialRecord]:
    return [record.model_copy(update={"scores": {task: record.scores[task]}}) for record in records]


def _answer_counts(record: TrialRecord) -> list[int]:
    """Of each task."""
    return [len(scores.nll) for scores in record.scores.values()]


def _for_seeds(records: Sequence[TrialRecord], seeds: set[int], untrained: Collection[str]) -> list[TrialRecord]:
    if len(records) != 1 or records[0].trial.method not in untrained:
        return list(records)
    (only,) = records
    return [only.model_copy(update={"trial": only.trial.model_copy(update={"seed": seed})}) for seed in sorted(seeds)]
