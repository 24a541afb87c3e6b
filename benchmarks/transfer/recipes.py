"""What becomes of a bank's rank, of how its cores start and of decay, in all that is done with the bank afterwards.

    python -m benchmarks.transfer.recipes [--seeds 0 1] [--only NAME] [--threads 1] [--output runs/recipes]
    python -m benchmarks.transfer.recipes --table

For each seed and recipe a bank of the demo's six languages is trained as in the demo, by the parts of
`benchmarks.transfer.onboarding`, and then

    bank        the six tasks
    small core  three further languages, a core alone with A and B frozen, with the settings of small cores
    large core  the same with those of large cores, to tell from which rank on they serve
    extended    the same with `--extend 16`, whose cores are large

A finished run is never run again; two processes may share the work by --only. The records go to
benchmarks/transfer/records/recipes.jsonl.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from benchmarks.transfer.onboarding import Seed
from colora.common.threads import configure_threads
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import read_records
from colora.training.config import AdapterSpec
from colora.transfer.onboarding.onboard import Settings

RECORD = Path(__file__).parent / "records" / "recipes.jsonl"


@dataclass(frozen=True)
class Recipe:
    """What differs: rank and start of the cores, and the settings of the training."""

    adapter: AdapterSpec
    training: Mapping[str, float] = field(default_factory=lambda: {"weight_decay": 0.0})


def _adapter(r: int, rotation: float) -> AdapterSpec:
    return AdapterSpec(r=r, lora_alpha=r, init_rotation=rotation)


RECIPES = {
    "rank 8": Recipe(_adapter(8, 0)),
    "rank 8, half turned": Recipe(_adapter(8, 0.5)),
    "rank 16": Recipe(_adapter(16, 0)),
    "rank 16, half turned": Recipe(_adapter(16, 0.5)),
    "rank 16, half turned, decay 10": Recipe(_adapter(16, 0.5), {"weight_decay": 10}),
}
STAGES = {
    "bank": None,
    "small core": Settings(lr=0.12, proximal=0),
    "large core": Settings(lr=0.06, proximal=0.1),
    "extended": Settings(extend=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=RECIPES, action="append")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    if not args.table:
        configure_threads(args.threads)
        for seed in args.seeds:
            for name in args.only or RECIPES:
                run(name, seed, args.output, args.threads)
    print(table())


def run(name: str, seed: int, output: Path, threads: int | None) -> None:
    """Train the bank of a recipe, and measure what comes after."""
    folder = output / name.replace(",", "").replace(" ", "-") / f"seed-{seed}"
    one = Seed(folder, seed, threads, RECORD)
    one.adapter, one.training = RECIPES[name].adapter, RECIPES[name].training
    bank = one.bank("bank", one.old)
    for stage, settings in STAGES.items():
        if settings is None:
            one.keep(f"{name}: {stage}", lambda: one.measured(bank, one.old))
        else:
            one.keep(f"{name}: {stage}", lambda settings=settings: one.onboarded(bank, settings))  # type: ignore[misc]


def table() -> str:
    """Markdown: a row for each recipe and stage, means over its tasks and seeds."""
    records = read_records(RECORD)
    lines = [
        f"| recipe | then | {' | '.join(metric.title for metric in METRICS.values())} | seeds |",
        f"|---|---|{'---:|' * len(METRICS)}---:|",
    ]
    for method in dict.fromkeys(one.method for one in records):
        own = [one for one in records if one.method == method]
        recipe, stage = method.split(": ")
        means = [
            f"{fmean(one.value for one in own if one.metric == name):.{metric.digits}f}"
            for name, metric in METRICS.items()
        ]
        lines.append(f"| {recipe} | {stage} | {' | '.join(means)} | {len({one.seed for one in own})} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
