"""The settings that the tuning on real tasks chose, and what each setting gave.

    python -m benchmarks.compare.chosen

A method's setting is the one with the best mean over the groups of the group's main measure; of those within a point of
it, the one with the least nats per token.
"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from colora.experiments.trial import TrialRecord, read_trial_records

RECORDS = Path(__file__).parent / "records"
FILES = ("real_tuning", "real_tuning_lists")
LEVEL = 1.0
"""Points of the mean that count as level."""

Setting = tuple[float, float | None]


def main() -> None:
    print(choices_markdown())


def tuning_records() -> dict[str, dict[Setting, list[TrialRecord]]]:
    """The records of each method and setting (rates of A and B, and of the cores), one a group."""
    found: dict[str, dict[Setting, list[TrialRecord]]] = defaultdict(lambda: defaultdict(list))
    for name in FILES:
        for record in read_trial_records(RECORDS / f"{name}.jsonl"):
            found[record.trial.method][record.trial.lr, record.trial.core_lr].append(record)
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
    groups = sorted({one.trial.group for settings in tuned.values() for records in settings.values() for one in records})
    lines = [
        f"| method | rate | {' | '.join(groups)} | mean | nats per token | chosen |",
        f"|---|---:|{'---:|' * len(groups)}---:|---:|---|",
    ]
    for method, settings in tuned.items():
        best = chosen(settings)
        for setting in sorted(settings, key=lambda one: one[0]):
            records = {one.trial.group: one for one in settings[setting]}
            cells = [f"{points(records[group]):.1f}" if group in records else "–" for group in groups]
            mean, token = fmean(map(points, records.values())), fmean(map(nats, records.values()))
            mark = "yes" if setting == best else ""
            lines.append(f"| {method} | {setting[0]:g} | {' | '.join(cells)} | {mean:.1f} | {token:.3f} | {mark} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
