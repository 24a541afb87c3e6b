"""The verdict in plain words."""

from collections.abc import Sequence

from colora.common.text import shortened
from colora.experiments.own.contenders import IN_CONTEXT
from colora.experiments.own.verdict.judge import LEAST_ANSWERS, Gain, Outcome, Verdict
from colora.experiments.own.verdict.measure import NATS, Measure
from colora.experiments.report.tables import bytes_text
from colora.tasks.prompting.templates import CHAT
from colora.tasks.splits.shared import seen_words

__all__ = ["gain_text", "outcome_lines", "verdict_sentences"]

MOST_NAMED = 8
FEW_ANSWERS = 50
ONE_SEED = "Each method was trained once: the intervals do not count how much another training would differ."
PLAIN_EXAMPLES = "Examples in the prompt were given as plain text: a chat template has no place for them."


def verdict_sentences(verdict: Verdict, measure: Measure) -> list[str]:
    """What to use, what it gains, who is better off alone, what it costs, and what else a user should know."""
    outcomes = {one.method: one for one in verdict.outcomes}
    used = outcomes[verdict.recommended]
    return [
        f"Use {used.title}: {measure.title} {measure.show(used.score)}, {NATS.title} {NATS.show(used.nats)}, on "
        f"{_count(verdict.test_answers, 'test answer')} of {_count(len(verdict.tasks), 'task')}.",
        *_gains(verdict, outcomes, measure),
        *([_alone(verdict, outcomes, measure)] if len(verdict.tasks) > 1 else []),
        _cost(used),
        *([_few(verdict)] if LEAST_ANSWERS <= verdict.test_answers < FEW_ANSWERS else []),
        *([ONE_SEED] if verdict.plan.seeds == 1 else []),
        *_curve(verdict, measure),
        *_seen(verdict),
        *([PLAIN_EXAMPLES] if verdict.prompt == CHAT and IN_CONTEXT in outcomes else []),
        *_given_up(verdict),
        *(f"Not compared: {line}." for line in verdict.missing),
        *(f"Failed, and so not compared: {name}: {reason}" for name, reason in verdict.failed.items()),
    ]


def outcome_lines(verdict: Verdict, measure: Measure) -> list[str]:
    """A line for each method, best first: its score, its likelihood, and what a task costs."""
    return [
        f"{one.title}: {measure.title} {measure.show(one.score)}, {NATS.title} {NATS.show(one.nats)}, a task costs "
        f"{bytes_text(one.task_bytes) if one.task_bytes else 'nothing'}"
        f"{' but a longer prompt' if one.method == IN_CONTEXT else ''}"
        for one in verdict.outcomes
    ]


def _few(verdict: Verdict) -> str:
    return (
        f"{_count(verdict.test_answers, 'test answer')} tell only large differences from noise: with {FEW_ANSWERS} or "
        "more, smaller ones could be told."
    )


def _gains(verdict: Verdict, outcomes: dict[str, Outcome], measure: Measure) -> list[str]:
    found = []
    if verdict.best != verdict.recommended:
        best = outcomes[verdict.best]
        names = " and ".join(outcomes[one].title for one in verdict.as_good[1:])
        found.append(
            f"It is the simplest of those that do as well as the best within noise: {names}. The highest score is that "
            f"of {best.title}, {measure.show(best.score)}."
        )
    if verdict.gain is not None and verdict.runner_up is not None:
        next_best, gain = outcomes[verdict.runner_up], verdict.gain
        if gain.is_certain:
            found.append(
                f"It gains {gain_text(gain, measure)} in {measure.title} over the next best, {next_best.title}."
            )
        else:
            told = f"Against {next_best.title} the difference in {measure.title} is {gain_text(gain, measure)}"
            nats = verdict.gain_nats
            likelier = verdict.best == verdict.recommended and verdict.runner_up not in verdict.as_good
            if not gain.has_interval:
                found.append(f"{told}. With {LEAST_ANSWERS} test answers or more, noise could be told from gain.")
            elif likelier and nats is not None:
                found.append(
                    f"{told}: within noise. It finds the right answers likelier, which decides: its {NATS.title} is "
                    f"lower by {gain_text(nats, NATS)}."
                )
            else:
                found.append(f"{told}: within noise.")
    if verdict.gain_over_base is not None and verdict.runner_up != "base":
        found.append(f"Over the base model as it is it gains {gain_text(verdict.gain_over_base, measure)}.")
    return found


def _alone(verdict: Verdict, outcomes: dict[str, Outcome], measure: Measure) -> str:
    if "local" not in outcomes or not {"pooled", "colora"} & outcomes.keys():
        return "Which tasks would be better off alone was not measured."
    if not verdict.alone and verdict.recommended == "local":
        return (
            f"This rests on all tasks together: for none of them alone is the gain in {measure.title} more than noise."
        )
    if not verdict.alone:
        return "No task is better off with a LoRA of its own alone, as far as this test can tell."
    names = [f"{one.task} (by {gain_text(one.gain, measure)})" for one in verdict.alone]
    return f"Better off with a LoRA of their own: {', '.join(shortened(names, MOST_NAMED))}."


def _cost(used: Outcome) -> str:
    if used.method == "base":
        return "A task costs nothing: there is nothing to keep, and nothing to serve but the base model."
    if used.method == IN_CONTEXT:
        return "A task costs no weights; but every request reads the examples as well."
    shared = f", and all tasks together {bytes_text(used.shared_bytes)}" if used.shared_bytes else ""
    return f"A task costs {bytes_text(used.task_bytes)}{shared}."


def _curve(verdict: Verdict, measure: Measure) -> list[str]:
    numbers = sorted({one.examples for one in verdict.curve if one.method == verdict.recommended})
    if verdict.more_examples is None:
        return []
    gain, fewer, more = verdict.more_examples, numbers[-2], numbers[-1]
    told = f"From {fewer} to {more} examples a task it gains {gain_text(gain, measure)}"
    if gain.is_better:
        return [f"{told}: more examples would probably do more."]
    if not gain.has_interval:
        return [f"{told}."]
    return [f"{told}: within noise, so more examples of this kind may not do more."]


def _given_up(verdict: Verdict) -> list[str]:
    if not verdict.given_up:
        return []
    told = f"To keep the time, less was run: {'; '.join(verdict.given_up)}."
    return [told, *([f"{verdict.why_cut[0].upper()}{verdict.why_cut[1:]}."] if verdict.why_cut else [])]


def _seen(verdict: Verdict) -> list[str]:
    number = sum(verdict.seen_elsewhere.values())
    return [f"Beware: {seen_words(number, verdict.test_answers)}."] if number else []


def gain_text(gain: Gain, measure: Measure) -> str:
    """A difference with its interval, if there are enough answers for one."""
    numbers: Sequence[float] = (gain.mean, gain.low, gain.high)
    mean, low, high = (f"{value:.{measure.digits}f}".replace("-", "−") for value in numbers)
    if not gain.has_interval:
        return f"{mean} (of {_count(gain.answers, 'test answer')}: too few for an interval)"
    return f"{mean} (95 % interval {low} to {high})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
