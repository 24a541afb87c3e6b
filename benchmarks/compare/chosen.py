"""What was chosen for the comparison on real tasks, and from what: settings, starts of cores, prompts.

    python -m benchmarks.compare.chosen

A method's setting is the one with the best mean over the groups of the group's main measure; of those within a point of
it, the one with the least nats per token.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from colora.experiments.trial import Trial, TrialRecord, read_trial_records
from colora.training.rates import CORE_LR, LR

RECORDS = Path(__file__).parent / "records"
CENTRAL = ("real_tuning", "real_tuning_lists", "real_tuning_decay", "real_tuning_options", "real_tuning_rivals")
FEDERATED = ("real_federated_tuning_short",)
LEVEL = 1.0
"""Points of the mean that count as level."""


class Setting(NamedTuple):
    """Peak rates of the factors and of the cores, the decay of the factors, and the method's own options."""

    lr: float
    core_lr: float | None
    weight_decay: float
    options: tuple[tuple[str, float], ...]

    @staticmethod
    def of(trial: Trial) -> "Setting":
        return Setting(trial.lr, trial.core_lr, trial.weight_decay, tuple(sorted(trial.options.items())))


def main() -> None:
    for table in (
        choices_markdown,
        federated_choices_markdown,
        recipe_markdown,
        rotation_markdown,
        federated_markdown,
        prompts_markdown,
    ):
        print(table(), end="\n\n")


def tuning_records(names: Sequence[str] = CENTRAL) -> dict[str, dict[Setting, list[TrialRecord]]]:
    """The records of each method and setting of these experiments, one a group."""
    found: dict[str, dict[Setting, list[TrialRecord]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        for record in read_trial_records(RECORDS / f"{name}.jsonl"):
            found[record.trial.method][Setting.of(record.trial)].append(record)
    return found


def main_measure(trial: Trial) -> str:
    """ROUGE-L of dates, whose answers are long; exact match elsewhere."""
    return "rougeL" if trial.group.startswith("dates") else "exact_match"


def points(record: TrialRecord) -> float:
    """The main measure of the group, mean over tasks."""
    value = record.mean(main_measure(record.trial))
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


def choices_markdown(names: Sequence[str] = CENTRAL) -> str:
    """A row a setting: the main measure of each group, the means, and a mark at the chosen one."""
    tuned = tuning_records(names)
    everything = [one for settings in tuned.values() for records in settings.values() for one in records]
    groups = sorted({one.trial.group for one in everything})
    lines = [
        f"| method | rate | decay | options | {' | '.join(groups)} | mean | nats per token | chosen |",
        f"|---|---:|---:|---|{'---:|' * len(groups)}---:|---:|---|",
    ]
    for method, settings in tuned.items():
        best = chosen(settings)
        several_core_rates = len({setting.core_lr for setting in settings}) > 1
        for setting in sorted(settings, key=lambda one: (one.weight_decay, one.options, one.core_lr or 0, one.lr)):
            records = {one.trial.group: one for one in settings[setting]}
            cells = [f"{points(records[group]):.1f}" if group in records else "–" for group in groups]
            mean, token = fmean(map(points, records.values())), fmean(map(nats, records.values()))
            mark = "yes" if setting == best else ""
            core = [("cores at", setting.core_lr)] if setting.core_lr is not None and several_core_rates else []
            options = ", ".join(f"{name} {value:g}" for name, value in [*core, *setting.options])
            tried = f"{setting.lr:g} | {setting.weight_decay:g} | {options}"
            lines.append(f"| {method} | {tried} | {' | '.join(cells)} | {mean:.1f} | {token:.3f} | {mark} |")
    return "\n".join(lines)


def federated_choices_markdown() -> str:
    """The same of the methods of `real_federated`."""
    return choices_markdown(FEDERATED)


def rotation_markdown() -> str:
    """A row for each rank, and share of the directions in which cores start turned."""
    return _sweep_markdown(
        "rotation", "rank, turned", lambda trial: f"{trial.rank}, {trial.options.get('rotated', 0.0):g}"
    )


def recipe_markdown() -> str:
    """A row for each departure from the recipe that was tried."""
    return _sweep_markdown("recipe", "departure", _departure)


def _departure(trial: Trial) -> str:
    told = [trial.method] * (trial.method != "colora")
    told += [f"{name} {value:g}" for name, value in trial.options.items() if name != "rotated"]
    told += ["not turned"] * (not trial.options.get("rotated"))
    told += [f"cores at {trial.core_lr:g}"] * (trial.core_lr != CORE_LR)
    told += [f"factors at {trial.lr:g}"] * (trial.lr != LR)
    return ", ".join(told) or "none"


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
