"""The figures of the README and of docs/decisions, from the committed records of the comparison.

    python -m benchmarks.compare.figures

docs/figures/cost.svg: of each method the bytes that a further user costs, and the quality in the mean of the groups of
real tasks, with prompts that do not say whose task it is and with prompts that do. A line reaches from the lowest seed
to the highest.

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

from benchmarks.compare.summary import PLAIN_NAMES, against, answer, bytes_text, quality_and_bytes
from colora.evaluation.metrics import METRICS
from colora.experiments.report.regret import Regret, regret
from colora.experiments.trial import TrialRecord, read_trial_records

HERE = Path(__file__).parent
RECORDS = HERE / "records"
LOOKS = {"local": ("#0072b2", "s", "--"), "pooled": ("#009e73", "^", ":"), "colora": ("#d55e00", "o", "-")}
OURS, THEIRS = LOOKS["colora"][0], "0.45"
NOTHING = 1e4
"""Where the axis of bytes begins: what costs less has no bar."""
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
    """A row for each method: left the bytes of a further user, right the mean over groups with each kind of prompt."""
    figure, (costs, quality) = plt.subplots(1, 2, figsize=(6.6, 3.7), sharey=True, width_ratios=(2, 3))
    regimes = {
        regime: [one for one, _ in answer("real").pairs if one.place.regime == regime]
        for regime in ("implicit", "explicit")
    }
    found = {
        method: {regime: quality_and_bytes(comparisons, method) for regime, comparisons in regimes.items()}
        for method in PLAIN_NAMES
    }
    sizes = {method: max(one[1] for one in of.values() if one) for method, of in found.items()}
    methods = sorted(PLAIN_NAMES, key=lambda method: sizes[method])
    for row, method in enumerate(methods):
        colour = OURS if method == "colora" else THEIRS
        costs.barh(row, max(sizes[method] - NOTHING, 0), left=NOTHING, color=colour, height=0.55)
        costs.annotate(f" {bytes_text(sizes[method])}", (max(sizes[method], NOTHING), row), fontsize=9, va="center")
        for place, (regime, filled) in enumerate((("implicit", True), ("explicit", False))):
            if (one := found[method][regime]) is not None:
                seeds = one[0]
                mean = fmean(seeds)
                reach, height = [[mean - min(seeds)], [max(seeds) - mean]], row + 0.17 * (2 * place - 1)
                ground = colour if filled else "white"
                quality.errorbar([mean], [height], xerr=reach, fmt="o", color=colour, mfc=ground, markersize=6)
    for filled, label in ((True, "the prompt does not name the task"), (False, "the prompt names it")):
        quality.plot([], [], "o", color=THEIRS, mfc=THEIRS if filled else "white", label=label)
    costs.set_xscale("log")
    costs.set_xlim(NOTHING, 2e9)
    costs.set_xticks([1e5, 1e7], ["100 kB", "10 MB"], fontsize=9)
    costs.tick_params(axis="y", length=0)
    costs.minorticks_off()
    costs.set_yticks(range(len(methods)), [PLAIN_NAMES[method] for method in methods], fontsize=9.5)
    costs.get_yticklabels()[methods.index("colora")].set(color=OURS, fontweight="bold")
    costs.invert_yaxis()
    costs.set_title("a further user costs", fontsize=9.5)
    quality.set_title("quality, %, mean of groups", fontsize=9.5)
    quality.set_xlim(15, 60)
    quality.tick_params(axis="x", labelsize=9)
    quality.tick_params(axis="y", length=0)
    quality.grid(alpha=0.3)
    figure.legend(fontsize=9, frameon=False, ncols=2, loc="lower center")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
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
