"""What was chosen for the comparison on real tasks, and from what: settings, starts of cores, prompts.

    python -m benchmarks.compare.chosen

A method's setting is the one with the best mean over the groups of the group's main measure; of those within a point of
it, the one with the least nats per token.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from colora.experiments.trial import Trial, TrialRecord, read_trial_records

RECORDS = Path(__file__).parent / "records"
FILES = ("real_tuning", "real_tuning_lists", "real_tuning_decay")
LEVEL = 1.0
"""Points of the mean that count as level."""


class Setting(NamedTuple):
    """Peak rates of the factors and of the cores, and the decay of the factors."""

    lr: float
    core_lr: float | None
    weight_decay: float


def main() -> None:
    for table in (choices_markdown, rotation_markdown, federated_markdown, prompts_markdown):
        print(table(), end="\n\n")


def tuning_records() -> dict[str, dict[Setting, list[TrialRecord]]]:
    """The records of each method and setting, one a group."""
    found: dict[str, dict[Setting, list[TrialRecord]]] = defaultdict(lambda: defaultdict(list))
    for name in FILES:
        for record in read_trial_records(RECORDS / f"{name}.jsonl"):
            trial = record.trial
            found[trial.method][Setting(trial.lr, trial.core_lr, trial.weight_decay)].append(record)
    return found


def points(record: TrialRecord) -> float:
    """ROUGE-L of dates, whose answers are long; exact match elsewhere."""
    value = record.mean("rougeL" if record.trial.group.startswith("dates") else "exact_match")
    assert value is not None
    return value


def nats(record: TrialRecord) -> float:
    """Nats per token."""
    value = record.mean("token_nll")
    assert value is not None
    return value


def chosen(settings: dict[Setting, list[TrialRecord]]) -> Setting:
    """The setting of a method."""
    means = {setting: fmean(map(points, records)) for setting, records in settings.items()}
    level = [setting for setting, mean in means.items() if mean >= max(means.values()) - LEVEL]
    return min(level, key=lambda setting: fmean(map(nats, settings[setting])))


def choices_markdown() -> str:
    """A row a setting: the main measure of each group, the means, and a mark at the chosen one."""
    tuned = tuning_records()
    everything = [one for settings in tuned.values() for records in settings.values() for one in records]
    groups = sorted({one.trial.group for one in everything})
    lines = [
        f"| method | rate | decay | {' | '.join(groups)} | mean | nats per token | chosen |",
        f"|---|---:|---:|{'---:|' * len(groups)}---:|---:|---|",
    ]
    for method, settings in tuned.items():
        best = chosen(settings)
        for setting in sorted(settings, key=lambda one: (one.weight_decay, one.lr)):
            records = {one.trial.group: one for one in settings[setting]}
            cells = [f"{points(records[group]):.1f}" if group in records else "–" for group in groups]
            mean, token = fmean(map(points, records.values())), fmean(map(nats, records.values()))
            mark = "yes" if setting == best else ""
            tried = f"{setting.lr:g} | {setting.weight_decay:g}"
            lines.append(f"| {method} | {tried} | {' | '.join(cells)} | {mean:.1f} | {token:.3f} | {mark} |")
    return "\n".join(lines)


def rotation_markdown() -> str:
    """A row for each rank, and share of the directions in which cores start turned."""
    return _sweep_markdown(
        "rotation", "rank, turned", lambda trial: f"{trial.rank}, {trial.options.get('rotated', 0.0):g}"
    )


def federated_markdown() -> str:
    """A row for each rate, and share of the directions in which the cores of a federation's clients start turned."""
    return _sweep_markdown(
        "real_federated_tuning",
        "rate, turned",
        lambda trial: f"{trial.lr:g}, {trial.options.get('rotated', 0.0):g}",
        "fed-colora",
    )


def prompts_markdown() -> str:
    """A row for each prompt, with a LoRA for each task."""
    return _sweep_markdown("prompts", "prompt", lambda trial: str(trial.prompt))


def _sweep_markdown(name: str, title: str, label: Callable[[Trial], str], method: str | None = None) -> str:
    """Means over tasks and seeds of the main measure, and of nats per token in brackets, of each group.

    Args:
        method: the only one to show.
    """
    records = [one for one in read_trial_records(RECORDS / f"{name}.jsonl") if method in (None, one.trial.method)]
    groups = sorted({record.trial.group for record in records})
    lines = [f"| {title} | {' | '.join(groups)} |", f"|---|{'---:|' * len(groups)}"]
    for value in dict.fromkeys(label(record.trial) for record in records):
        cells = []
        for group in groups:
            found = [one for one in records if label(one.trial) == value and one.trial.group == group]
            cells.append(f"{fmean(map(points, found)):.1f} ({fmean(map(nats, found)):.3f})")
        lines.append(f"| {value} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
