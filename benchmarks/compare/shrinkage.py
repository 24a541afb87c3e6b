"""How far should each core go from the mean core towards itself? Tried after training, at no further step.

    python -m benchmarks.compare.shrinkage [--threads 1] [--data FOLDER]
    python -m benchmarks.compare.shrinkage --table

CoLoRA with its recipe on the groups on which the recipe is chosen, seed 100, validation examples, as in `recipe.yaml`.
Each trained core Λ_k is replaced by mean + share · (Λ_k − mean): 1 is what was trained. "Best of each task" takes for
each task the share that is best on the very examples that are measured: more than any rule that chooses a share could
give. What has been measured is reused. The records go to benchmarks/compare/records/shrinkage.json.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.compare.chosen import RECORDS, main_measure
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.experiments.load import load_experiment
from colora.experiments.methods.layer import ConstrainedLinear, distinct_parts
from colora.experiments.methods.runner import Runner
from colora.experiments.plan import planned_trials
from colora.experiments.trial import Trial
from colora.experiments.worker import TaskCache
from colora.tasks.families.make import make_tasks

EXPERIMENT = Path(__file__).parent / "recipe.yaml"
RECORD = RECORDS / "shrinkage.json"
SHARES = (0.5, 0.75, 1.0, 1.25)

TaskMeans = dict[str, tuple[float, float]]
"""Points and nats per token of each task."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", type=Path, help="folder of the published task files")
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    if not args.table:
        configure_threads(args.threads)
        measure(args.data)
    print(table())


def measure(data: Path | None) -> None:
    """Train anew for each group and share, shrink and measure."""
    record = json.loads(RECORD.read_bytes()) if RECORD.exists() else {"environment": environment(), "groups": {}}
    tasks = TaskCache(make_tasks, data)
    runner: Runner | None = None
    for trial in planned_trials(load_experiment(EXPERIMENT)):
        if (trial.method, trial.lr, trial.core_lr, trial.options) != ("colora", 1e-3, 2e-2, {"rotated": 0.5}):
            continue
        measured = record["groups"].setdefault(trial.group, {})
        for share in SHARES:
            if str(share) not in measured:
                runner = runner or Runner(trial.base, trial.dtype)
                measured[str(share)] = task_means(runner, trial, tasks, share)
                write_json(RECORD, record)


def task_means(runner: Runner, trial: Trial, tasks: TaskCache, share: float) -> TaskMeans:
    """The trial's tasks, with this share of each core's way from the mean."""
    runner.on_trained = lambda trial, layers: shrink(layers, share)
    record = runner.run(trial, tasks.of(trial))
    found: TaskMeans = {}
    for name, scores in record.scores.items():
        points, nats = scores.value(main_measure(trial)), scores.value("token_nll")
        assert points is not None
        assert nats is not None
        found[name] = (points, nats)
    return found


@torch.no_grad()
def shrink(layers: dict[str, ConstrainedLinear], share: float) -> None:
    """Λ_k ← mean + share · (Λ_k − mean), in every layer."""
    for _, name, core in distinct_parts(layers.values()):
        if name == "core":
            core.copy_(torch.lerp(core.mean(0, keepdim=True), core, share))


def table() -> str:
    """Markdown: a row for each group, points and in brackets nats per token, means over tasks."""
    groups: dict[str, dict[str, TaskMeans]] = json.loads(RECORD.read_bytes())["groups"]
    lines = [f"| group | {' | '.join(map(str, SHARES))} | best of each task |", f"|---|{'---:|' * (len(SHARES) + 1)}"]
    for group, measured in sorted(groups.items()):
        at = [measured[str(share)] for share in SHARES]
        best = {task: (max(one[task][0] for one in at), min(one[task][1] for one in at)) for task in at[0]}
        cells = [
            f"{fmean(points for points, _ in one.values()):.1f} ({fmean(nats for _, nats in one.values()):.3f})"
            for one in (*at, best)
        ]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
