"""The figures of the README and of docs/decisions, from the committed records of the comparison.

    python -m benchmarks.compare.figures

docs/figures/cost.svg: quality against the bytes that a further user costs, in the mean of the groups of real tasks;
left with prompts that do not say whose task it is, right with prompts that do. A bar reaches from the lowest seed to
the highest.

docs/figures/real.svg: by how much CoLoRA leads the best rival of each group of real tasks, and a LoRA for each task; in
points and by likelihood, with 95 % intervals over seeds, tasks and examples.

docs/figures/compare.svg: left, quality against examples, alone and together. Middle and right, alone, pooled and
together, from similar to different tasks, with prompts that do not and that do say whose task it is.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from benchmarks.compare.summary import PLAIN_NAMES, against, answer, quality_and_bytes
from colora.evaluation.metrics import METRICS
from colora.experiments.report.regret import Regret, regret
from colora.experiments.trial import TrialRecord, read_trial_records

HERE = Path(__file__).parent
RECORDS = HERE / "records"
LOOKS = {"local": ("#0072b2", "s", "--"), "pooled": ("#009e73", "^", ":"), "colora": ("#d55e00", "o", "-")}
OFFSETS = {
    "colora": (0, -17),
    "local": (9, -10),
    "pooled-and-own": (-30, 10),
    "oppu": (9, -1),
    "alora": (-40, -15),
}
"""How far the name of a method is from its point in the figure of costs, in points of print."""
TITLES = {"local": "one LoRA each", "pooled": "one LoRA for all", "colora": "CoLoRA"}
GROUPS = {"similar-8": "similar", "half-8": "half", "different-8": "different"}


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "colora"  # the same figure from the same records, byte for byte
    from matplotlib import pyplot as plt

    for name, draw in (("cost", draw_cost), ("real", draw_real), ("compare", draw_compare)):
        file = HERE.parents[1] / "docs" / "figures" / f"{name}.svg"
        draw(plt).savefig(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        print(f"written: {file.relative_to(HERE.parents[1])}")


def draw_cost(plt: ModuleType) -> Any:
    """The mean over groups against the bytes of a further user, a panel for each kind of prompt."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
    for axis, regime, title in zip(axes, ("implicit", "explicit"), ("does not name", "names"), strict=True):
        comparisons = [one for one, _ in answer("real").pairs if one.place.regime == regime]
        for method, label in PLAIN_NAMES.items():
            found = quality_and_bytes(comparisons, method)
            if found is None:
                continue
            seeds, size = found
            mean, colour = fmean(seeds), LOOKS.get(method, ("0.45", "o", ""))[0]
            reach = [[mean - min(seeds)], [max(seeds) - mean]]
            axis.errorbar(
                [max(size, 1e3)], [mean], yerr=reach, fmt="o", color=colour, markersize=8 if method == "colora" else 5
            )
            axis.annotate(
                label,
                (max(size, 1e3), mean),
                OFFSETS.get(method, (9, -3)),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
        axis.set_xscale("log")
        axis.set_xlim(5e2, 1e9)
        axis.set_ylim(15, 60)
        axis.set_xticks([1e3, 1e5, 1e6, 1e7], ["nothing", "100 kB", "1 MB", "10 MB"])
        axis.set_xlabel("bytes that a further user costs")
        axis.set_title(f"the prompt {title} the task", fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("quality, %, mean of groups")
    figure.tight_layout()
    return figure


def draw_real(plt: ModuleType) -> Any:
    """A row for each group; left in points, right in nats; right of zero CoLoRA is ahead in both."""
    comparisons = [one for one, _ in answer("real").pairs if one.place.regime == "implicit"]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
    for number, comparison in enumerate(comparisons):
        alone = against(comparison, next(row for row in comparison.rows if row.method == "local"))
        for axis, metric in zip(axes, (comparison.measure, comparison.nats), strict=True):
            if metric is not None:
                interval(axis, "local", number - 0.15, regret(alone, metric))
                interval(axis, "colora", number + 0.15, regret(comparison, metric))
    axes[0].set_yticks(range(len(comparisons)), [comparison.place.group for comparison in comparisons])
    axes[0].invert_yaxis()
    for axis, label in zip(axes, ("points", "nats, of an answer of a closed set or of a token"), strict=True):
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    handles, _ = axes[0].get_legend_handles_labels()
    figure.suptitle("the lead of CoLoRA", fontsize=9, x=0.2)
    labels = ("over a LoRA each", "over the best rival")
    figure.legend(handles[:2], labels, fontsize=8, frameon=False, ncol=2, loc="upper right")
    figure.tight_layout()
    return figure


def interval(axis: Any, method: str, height: float, lead: Regret | None) -> None:
    """A lead with its 95 % interval."""
    if lead is not None:
        colour, marker, _ = LOOKS[method]
        apart = lead.difference
        reach = [[apart.mean - apart.low], [apart.high - apart.mean]]
        axis.errorbar([apart.mean], [height], xerr=reach, fmt=marker, color=colour, label=method, markersize=5)


def draw_compare(plt: ModuleType) -> Any:
    """Quality against examples, and from similar to different tasks."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 3), sharey=False)
    samples = finished("samples")
    sizes = sorted({one.trial.examples for one in samples})
    for method in ("local", "colora"):
        line(left, method, sizes, [values(samples, method=method, examples=size) for size in sizes])
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, map(str, sizes))
    left.set_xlabel("examples a task")
    left.set_ylabel(METRICS["rougeL"].title)
    left.set_title("eight similar tasks, implicit", fontsize=9)

    similarity = finished("similarity")
    for axis, regime in ((middle, "implicit"), (right, "explicit")):
        for method in LOOKS:
            found = [values(similarity, method=method, group=group, regime=regime) for group in GROUPS]
            line(axis, method, range(len(GROUPS)), found)
        axis.set_xticks(range(len(GROUPS)), GROUPS.values())
        axis.set_xlabel("tasks")
        axis.set_title(f"16 examples a task, {regime}", fontsize=9)
    right.legend(fontsize=8, frameon=False)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def finished(name: str) -> list[TrialRecord]:
    """The records of an experiment that ended well."""
    return [record for record in read_trial_records(RECORDS / f"{name}.jsonl") if record.error is None]


def values(records: Sequence[TrialRecord], **wanted: Any) -> list[float]:
    """The mean ROUGE-L over tasks, of each seed of the trials with these settings."""
    chosen = [one for one in records if all(getattr(one.trial, key) == value for key, value in wanted.items())]
    return [mean for one in chosen if (mean := one.mean("rougeL")) is not None]


def line(axis: Any, method: str, places: Sequence[float], found: Sequence[list[float]]) -> None:
    """Means joined by a line, and every seed as a dot; places without a value are left out."""
    colour, marker, dashes = LOOKS[method]
    known = [(place, one) for place, one in zip(places, found, strict=True) if one]
    means = [fmean(one) for _, one in known]
    axis.plot([place for place, _ in known], means, color=colour, marker=marker, linestyle=dashes, label=TITLES[method])
    for place, one in known:
        axis.plot([place] * len(one), one, ".", color=colour, alpha=0.45, markersize=4)


if __name__ == "__main__":
    main()
