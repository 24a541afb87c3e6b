"""The tables of the README and of docs/decisions, from the committed records of the comparison.

python -m benchmarks.compare.summary
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev

from colora.evaluation.metrics import METRICS
from colora.experiments.methods.registry import METHODS
from colora.experiments.report.answer.standings import Standings, standings
from colora.experiments.report.answer.tables import method_table, regret_table
from colora.experiments.report.efficiency import multiplier_tables
from colora.experiments.report.gather import Experiment, Row, read_experiments
from colora.experiments.report.markdown import main_table_markdown, table_markdown
from colora.experiments.report.regret import Comparison, mean_regret, regret
from colora.experiments.report.statistics import Difference, paired_difference
from colora.experiments.report.tables import count_text, interval_text
from colora.experiments.trial import Trial, TrialRecord, read_trial_records

RECORDS = Path(__file__).parent / "records"
CORES_ONLY = ("lora-xs", "fed-sb")  # their rate is that of the cores
TITLES = [metric.title for metric in METRICS.values()]
COLUMNS = ("method", *TITLES, f"{METRICS['rougeL'].title} − colora", "parameters per task")
REGIMES = ("implicit", "explicit")
PLAIN_NAMES = {
    "colora": "CoLoRA",
    "local": "one LoRA each",
    "pooled": "one LoRA for all",
    "oppu": "one LoRA for all, then one each",
    "pooled-and-own": "one LoRA for all and one each",
    "alora": "one B for all, an A each",
    "in-context": "examples in the prompt",
    "base": "the base model, untrained",
}
"""Methods by what a user would call them."""


def main() -> None:
    comparison = (main_markdown, methods_markdown, regret_markdown, groups_markdown, multiplier_markdown)
    real = (means_markdown, leads_markdown, federated_real_markdown, costs_markdown)
    for table in (*comparison, *real, rounding_markdown, tuning_markdown):
        print(table(), end="\n\n")


def main_markdown() -> str:
    """The similar tasks, implicit: a row a method."""
    records = read_trial_records(RECORDS / "similarity.jsonl")
    return main_table_markdown(records, "similar-8", "implicit", columns=COLUMNS).strip()


def methods_markdown(*names: str, reference: str | None = None, regime: str | None = None) -> str:
    """Method by group, the best of each marked, of the experiments named; by default of the widest one."""
    found = answer(*names, reference=reference)
    if regime is not None:
        found = replace(found, pairs=tuple(pair for pair in found.pairs if pair[0].place.regime == regime))
    return table_markdown(method_table(found), title=False, notes=False).strip()


def regret_markdown(*names: str, reference: str | None = None) -> str:
    """CoLoRA, or another reference, against the best rival of each group, and in the mean over groups."""
    return table_markdown(regret_table(answer(*names, reference=reference)), title=False, notes=False).strip()


def means_markdown() -> str:
    """The mean lead of CoLoRA over the groups of the real tasks, and what picking the best rival is worth."""
    lines = ["| prompts | rival | mean lead in points | worth of the picking |", "|---|---|---|---:|"]
    for regime in ("implicit", "explicit"):
        pairs = [pair for pair in answer("real").pairs if pair[0].place.regime == regime]
        leads = [lead for _, lead in pairs]
        favour = f"{fmean(lead.favour for lead in leads):.1f}"
        lines.append(f"| {regime} | the best of each group | {interval_text(mean_regret(leads), 1)} | {favour} |")
    pooled = leads_over("pooled", [one for one, _ in pairs])
    lines.append(f"| explicit | one LoRA for all | {interval_text(pooled.points, 1)} | |")
    return "\n".join(lines)


def quality_and_bytes_markdown() -> str:
    """In the mean of the groups of real tasks, what the plainly named methods reach and what a further user costs."""
    lines = [
        "| | the prompt does not name the task | the prompt names it | a further user costs |",
        "|---|---:|---:|---:|",
    ]
    regimes = [[one for one, _ in answer("real").pairs if one.place.regime == regime] for regime in REGIMES]
    for method, name in PLAIN_NAMES.items():
        found = [quality_and_bytes(comparisons, method) for comparisons in regimes]
        cells = [f"{fmean(one[0]):.1f} ({min(one[0]):.1f} to {max(one[0]):.1f})" if one else "–" for one in found]
        size = max(one[1] for one in found if one)
        lines.append(f"| {name} | {' | '.join(cells)} | {bytes_text(size)} |")
    return "\n".join(lines)


def bytes_text(size: int) -> str:
    """A number of bytes, to read."""
    return "nothing" if not size else f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def quality_and_bytes(comparisons: Sequence[Comparison], method: str) -> tuple[list[float], int] | None:
    """Of each seed the mean over groups of a method's main measure, and what a further task costs; None: not run."""
    rows = [next((row for row in one.entrants(one.measure) if row.method == method), None) for one in comparisons]
    if None in rows:
        return None
    means: dict[int, list[float]] = {}
    for one, row in zip(comparisons, rows, strict=True):
        for record in row.records:
            means.setdefault(record.trial.seed, []).append(record.mean(one.measure.name))
    size = 4 * max(row.records[0].task_numbers for row in rows)
    return [fmean(groups) for groups in means.values() if len(groups) == len(rows)], size


def leads_markdown() -> str:
    """CoLoRA against one rival at a time on the real tasks, implicit: the mean over groups, and what a task costs."""
    comparisons = [one for one, _ in answer("real").pairs if one.place.regime == "implicit"]
    groups = f"groups of {len(comparisons)} ahead in"
    lines = [
        f"| rival of CoLoRA | lead in points, mean of groups | {groups} points | in nats | numbers a further task |",
        "|---|---|---:|---:|---:|",
    ]
    leads = [leads_over(rival, comparisons) for rival in everywhere(comparisons)]
    for lead in sorted(leads, key=lambda one: one.points.mean):
        ahead = f"{lead.groups_in_points} | {lead.groups_in_nats}"
        lines.append(f"| {lead.rival} | {interval_text(lead.points, 1)} | {ahead} | {count_text(lead.task_numbers)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Leads:
    """CoLoRA against one rival: the mean over groups, the number of groups in which it is ahead, a task's numbers."""

    rival: str
    points: Difference
    groups_in_points: int
    groups_in_nats: int
    task_numbers: int


def everywhere(comparisons: Sequence[Comparison]) -> list[str]:
    """The rivals that were run on every group, the untouched base apart."""
    run = [{row.method for row in one.rivals(one.measure)} - {"base"} for one in comparisons]
    return sorted(set.intersection(*run))


def leads_over(rival: str, comparisons: Sequence[Comparison]) -> Leads:
    rows = [next(row for row in one.rows if row.method == rival) for one in comparisons]
    alone = [against(one, row) for one, row in zip(comparisons, rows, strict=True)]
    points = [lead for one in alone if (lead := regret(one, one.measure))]
    nats = [lead for one in alone if one.nats and (lead := regret(one, one.nats))]
    ahead = [sum(lead.difference.mean > 0 for lead in leads) for leads in (points, nats)]
    return Leads(rival, mean_regret(points), *ahead, rows[0].records[0].task_numbers)


def against(comparison: Comparison, row: Row) -> Comparison:
    """The comparison with one rival alone."""
    return replace(comparison, rows=(comparison.reference, row))


def answer(*names: str, reference: str | None = None) -> Standings:
    """The standings of the experiments named, as the first screen of the report has them."""
    found = standings(read_experiments(RECORDS), names, reference)
    if found is None:
        raise ValueError(f"{', '.join(names) or RECORDS}: expected trials of a reference and a rival, found none")
    return found


def federated_real_markdown() -> str:
    """Flan's clients, federated: a row a method."""
    columns = ("method", *TITLES, "parameters per task", "bytes up")
    records = read_trial_records(RECORDS / "real_federated.jsonl")
    return main_table_markdown(records, "flan-8", "implicit", columns=columns).strip()


def groups_markdown() -> str:
    """ROUGE-L from similar to different tasks, in both regimes: CoLoRA, and the better of what does not collaborate."""
    lines = [
        "| tasks | prompts | one LoRA each | one for all | CoLoRA | CoLoRA − the better |",
        "|---|---|---|---|---|---|",
    ]
    experiment = read("similarity")
    for group in ("similar-8", "half-8", "different-8"):
        for regime in ("implicit", "explicit"):
            rows = {
                row.method: row.sample
                for place, rows in experiment.places.items()
                if (place.group, place.regime) == (group, regime)
                for row in rows
            }
            if not rows:
                continue
            means = {name: sample.mean("rougeL") or 0.0 for name, sample in rows.items()}
            better = max((name for name in means if name.split("-")[0] in ("local", "pooled")), key=means.__getitem__)
            apart = paired_difference(rows["colora"], rows[better], "rougeL")
            shown = f"{apart.mean:+.1f} [{apart.low:+.1f}, {apart.high:+.1f}]" if apart else "–"
            cells = [f"{means[name]:.1f}" if name in means else "–" for name in ("local", "pooled", "colora")]
            lines.append(f"| {group.removesuffix('-8')} | {regime} | {' | '.join(cells)} | {shown} ({better}) |")
    return "\n".join(lines)


def multiplier_markdown() -> str:
    """How many times its examples local LoRA needs to equal CoLoRA."""
    (table,) = multiplier_tables(read("samples"))
    return table_markdown(table, title=False, notes=False).strip()


def costs_markdown() -> str:
    """What a trial of the real tasks takes, a row a group: seconds of training and of measuring."""
    methods = ("colora", "local")
    named = " | ".join(f"{METHODS[name].title}, training | measuring" for name in methods)
    lines = [f"| group | steps | rows of a step | {named} |", "|---|---:|---:|---:|---:|---:|---:|"]
    records = [one for one in read_trial_records(RECORDS / "real.jsonl") if one.trial.regime == "implicit"]
    for group in dict.fromkeys(one.trial.group for one in records):
        trial = next(one.trial for one in records if one.trial.group == group)
        cells = [group, str(trial.steps), str(trial.rows * len(trial.tasks))]
        for name in methods:
            taken = [one.seconds for one in records if (one.trial.group, one.trial.method) == (group, name)]
            cells += [f"{median(seconds[part] for seconds in taken):.0f} s" for part in ("train", "evaluate")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rounding_markdown() -> str:
    """The same trials with one thread and with two: sums in another order, and nothing else."""
    once, again = (read_trial_records(RECORDS / f"{name}.jsonl") for name in ("similarity", "stability"))
    lines = ["| method | one thread | two threads | differences, seed by seed |", "|---|---|---|---|"]
    for method in dict.fromkeys(record.trial.method for record in again):
        pairs = [
            (rouge(first), rouge(second))
            for second in again
            for first in once
            if second.trial.method == method and first.trial == second.trial
        ]
        means = [f"{fmean(values):.1f} ± {stdev(values):.1f}" for values in zip(*pairs, strict=True)]
        lines.append(f"| {method} | {' | '.join(means)} | {', '.join(f'{b - a:+.1f}' for a, b in pairs)} |")
    return "\n".join(lines)


def tuning_markdown() -> str:
    """What was tried of each method, and the nats per token that each try came to on validation data."""
    lines = ["| method | rate: nats per token |", "|---|---|"]
    for name, note in (("tuning", ""), ("tuning_explicit", ", explicit")):
        for method, found in tries(name).items():
            best = min(nats for _, nats in found)
            shown = [f"{rate:g}: {f'**{nats:.3f}**' if nats == best else f'{nats:.3f}'}" for rate, nats in found]
            lines.append(f"| {method}{note} | {' · '.join(shown)} |")
    return "\n".join(lines)


def tries(name: str) -> dict[str, list[tuple[float, float]]]:
    """Of each method of a tuning, the rates that were tried in rising order, each with its nats per token."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in read_trial_records(RECORDS / f"{name}.jsonl"):
        rate, nats = tuned_rate(record.trial), record.mean("token_nll")
        if rate is None or nats is None:
            raise ValueError(f"{record.trial.key}: expected a rate and its nats per token, found {rate} and {nats}")
        found.setdefault(record.trial.method, []).append((rate, nats))
    return {method: sorted(several) for method, several in found.items()}


def tuned_rate(trial: Trial) -> float | None:
    """The rate that tuning varies: that of the factors, or of the cores where only these are trained."""
    return trial.core_lr if trial.method in CORES_ONLY else trial.lr


def rouge(record: TrialRecord) -> float:
    """Mean ROUGE-L over tasks."""
    mean = record.mean("rougeL")
    if mean is None:
        raise ValueError(f"{record.trial.key}: expected answers, found none")
    return mean


def read(name: str) -> Experiment:
    """The records of an experiment."""
    (experiment,) = read_experiments(RECORDS / f"{name}.jsonl")
    return experiment


if __name__ == "__main__":
    main()
