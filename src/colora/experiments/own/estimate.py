"""How long a comparison takes on this machine: a few steps of this very base on these tasks, timed and added up."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from colora.common.text import readable_time
from colora.errors import ConfigError
from colora.experiments.own.plan import Plan, Stage, Trials, smaller_plans
from colora.experiments.trial import Trial, TrialRecord
from colora.tasks.schema import Task

__all__ = ["Fitted", "Timings", "fit_plan", "measure_timings", "total_seconds"]

PROBE_STEPS, PROBE_ANSWERS = 3, 8
ADAPTED = 1.3  # times what the base takes for an answer
OVERHEAD = 20.0  # seconds for the verdict, the page and the adapters
MARGIN = 1.1

Run = Callable[[Trial, list[Task]], TrialRecord]


class Timings(BaseModel):
    """Seconds, by method.

    Attributes:
        step: of an optimiser step.
        answer: to read and to generate one answer of every task.
        fixed: of a trial besides.
        factor: by how much trials have taken longer than these numbers say; below 1 if less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: dict[str, float]
    answer: dict[str, float]
    fixed: float = Field(ge=0)
    factor: float = Field(1.0, gt=0)

    def seconds(self, trial: Trial) -> float:
        """How long a trial will take."""
        trained = self.step.get(trial.method, 0.0) * trial.steps
        return self.factor * (trained + self.answer[trial.method] * trial.test + self.fixed)

    def corrected(self, records: Iterable[TrialRecord]) -> "Timings":
        """The same, by what these trials took."""
        plain = self.model_copy(update={"factor": 1.0})
        pairs = [(plain.seconds(one.trial), sum(one.seconds.values()) + self.fixed) for one in records]
        expected = sum(first for first, _ in pairs)
        return self.model_copy(update={"factor": sum(second for _, second in pairs) / expected}) if expected else self


def measure_timings(run: Run, trials: Trials, log: Callable[[str], None] = lambda line: None) -> Timings:
    """Time a few steps of every contender that is trained, and a few answers of the others.

    One that fails counts as taking no time: its trials will fail at once too, and say why.

    Args:
        run: runs a trial on tasks.
        trials: what will be run.
        log: takes a line for each contender, before it is timed.
    """
    step: dict[str, float] = {}
    answer: dict[str, float] = {}
    fixed = []
    tasks, first = trials.data.of(trials.template), trials.contenders[0]
    number = min(PROBE_ANSWERS, trials.template.test)
    for place, one in enumerate((first, *trials.contenders)):  # the first one twice: what runs first takes longer
        if place:
            log(f"timing a few steps, {place} of {len(trials.contenders)}: {one.title}")
        setting = one.settings[0] if one.settings else None
        # Answers are timed where nothing is trained: an adapter adds little to them.
        size = {"test": 1, "generate": 0} if one.trained else {"test": number, "generate": number}
        probe = trials.of(one, setting, PROBE_STEPS, seed=0).model_copy(update=size)
        begun = time.perf_counter()
        try:
            record = run(probe, tasks)
        except Exception:
            if one is first:  # without the base there is nothing to compare with
                raise
            step[one.method] = answer[one.method] = 0.0
            continue
        took = time.perf_counter() - begun
        train, evaluate = record.seconds.get("train", 0.0), record.seconds.get("evaluate", 0.0)
        step[one.method] = train / PROBE_STEPS if one.trained else 0.0
        answer[one.method] = ADAPTED * answer[first.method] if one.trained else (train + evaluate) / number
        fixed.append(max(0.0, took - train - evaluate))
    return Timings(step=step, answer=answer, fixed=sorted(fixed)[len(fixed) // 2])


def total_seconds(stages: Sequence[Stage], timings: Timings) -> float:
    """How long these stages will take."""
    return sum(timings.seconds(trial) for stage in stages for trial in stage.trials)


class Fitted(NamedTuple):
    """The largest plan that fits into the time.

    Attributes:
        plan: what is run.
        given_up: what was cut for it.
        seconds: how long it will take.
        whole: how long everything would take.
        larger: how long the next larger plan would take; that of the plan itself if it is everything.
    """

    plan: Plan
    given_up: list[str]
    seconds: float
    whole: float
    larger: float


def fit_plan(plan: Plan, trials: Trials, timings: Timings, minutes: float, spent: float = 0.0) -> Fitted:
    """The largest plan that fits into the time.

    Args:
        plan: what is run if there is time for it.
        trials: of the plans.
        timings: what was measured.
        minutes: the budget.
        spent: seconds of it that are over: for loading the base, and for the timing itself.

    Raises:
        ConfigError: not even the smallest plan fits; it says how many minutes that takes.
    """

    def needed(one: Plan) -> float:
        return MARGIN * total_seconds(trials.expected(one), timings) + OVERHEAD

    whole = seconds = larger_takes = needed(plan)
    given_up: list[str] = []
    if seconds <= 60 * minutes - spent:
        return Fitted(plan, [], seconds, whole, whole)
    for smaller, what in smaller_plans(plan):
        larger_takes, seconds = seconds, needed(smaller)
        given_up.append(what)
        if seconds > 60 * minutes - spent:
            continue
        # What was given up later may have left time for seeds again.
        for seeds in range(smaller.seeds + 1, plan.seeds + 1):
            larger = smaller.model_copy(update={"seeds": seeds})
            if needed(larger) > 60 * minutes - spent:
                larger_takes = min(larger_takes, needed(larger))
                break
            smaller, seconds = larger, needed(larger)
            given_up.append(f"seeds: {seeds}")
        cut = [one for one in _last_of_each(given_up) if one != f"seeds: {plan.seeds}"]
        return Fitted(smaller, cut, seconds, whole, larger_takes)
    least = math.ceil((seconds + spent) / 60)
    raise ConfigError(
        f"--minutes {minutes:g}: the smallest comparison of these tasks takes about {readable_time(seconds)} on this "
        f"machine; give it --minutes {least} or more, fewer test examples (tasks.N.test, evaluation.limit), or fewer "
        "steps (training.steps)"
    )


def _last_of_each(given_up: Sequence[str]) -> list[str]:
    """Of "seeds: 2", "seeds: 1" the last alone."""
    return list({one.partition(":")[0]: one for one in given_up}.values())
