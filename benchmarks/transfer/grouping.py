"""One bank for twelve tasks of four families, against a bank a group as `grouping: auto` finds them, and each alone.

    python -m benchmarks.transfer.grouping [--seeds 0] [--only NAME] [--output runs/grouping] [--threads 1]
    python -m benchmarks.transfer.grouping --table

A task has 40 steps with two rows of its own in each of them, whoever it shares a bank with. Natural Instructions and
TweetEval are found by $COLORA_DATA, or in ../shared/data beside the checkout. A finished run is never run again, and
one that was stopped goes on; several processes may share the work by --only and --seeds. The records go to
benchmarks/transfer/records/grouping.jsonl, the groups found to grouping_groups.json.
"""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from colora.common.files import write_json, write_text
from colora.common.locks import waiting_lock
from colora.common.provenance import environment
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import append_records, read_records
from colora.experiments.demo import RANK, RATES
from colora.models.base import DEFAULT_BASE
from colora.tasks.families.make import make_tasks
from colora.training.config import AdapterSpec, EvaluationSpec, RunConfig, TaskSpec, TrainingSpec
from colora.transfer.grouping import train_groups

HERE = Path(__file__).parent
RECORD = HERE / "records" / "grouping.jsonl"
GROUPS = HERE / "records" / "grouping_groups.json"
FAMILIES = {
    "dates": ("date-es", "date-pt", "date-it", "date-ca"),
    "odd one out": ("odd-man-out-141", "odd-man-out-142", "odd-man-out-143"),
    "stances": ("tweet-stance_abortion", "tweet-stance_atheism", "tweet-stance_climate"),
    "commands to actions": ("scan-126", "scan-128"),
}
TASKS = [name for names in FAMILIES.values() for name in names]
SIZES = {"examples": 16, "val": 8, "test": 24}
STEPS, ROWS, WARMUP, MAX_LENGTH = 40, 2, 5, 128
METHODS: dict[str, Any] = {
    "one bank": [TASKS],
    "groups by auto": "auto",
    "each alone": [[name] for name in TASKS],
    "groups by family": [list(names) for names in FAMILIES.values()],
}
DEFAULT = ("one bank", "groups by auto", "each alone")  # the families only by --only: auto may find the same
SHOWN = ("token_nll", "rougeL")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=METHODS, action="append")
    parser.add_argument("--output", type=Path, default=Path("runs/grouping"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    for seed in [] if args.table else args.seeds:
        folders = write_tasks(args.output / "tasks" / f"seed-{seed}", seed)
        for method in args.only or DEFAULT:
            measure(method, seed, folders, args)
    print(table())


def write_tasks(folder: Path, seed: int) -> dict[str, Path]:
    """Write the tasks as folders of JSONL files; returns the folder of each."""
    for task in make_tasks(TASKS, **SIZES, seed=seed, regime="implicit"):
        for split, examples in task.splits.items():
            rows = [{"input": one.input, "output": list(one.outputs)} for one in examples]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(folder / task.name / f"{split}.jsonl", text)
    return {name: folder / name for name in TASKS}


def measure(method: str, seed: int, folders: dict[str, Path], args: argparse.Namespace) -> None:
    """Train and measure the banks of one method, unless its records are there."""
    known = read_records(RECORD) if RECORD.is_file() else []
    if any((one.method, one.seed) == (method, seed) for one in known):
        print(f"{method}, seed {seed}: measured before, reused")
        return
    print(f"{method}, seed {seed}", flush=True)
    output = args.output / f"{re.sub(r'[^a-z]+', '-', method)}-seed-{seed}"
    config = RunConfig(
        base=DEFAULT_BASE, chat_template=False, output=str(output), seed=seed, grouping=METHODS[method],
        tasks=[TaskSpec(name=name, path=str(folder.resolve())) for name, folder in folders.items()],
        adapter=AdapterSpec(r=RANK, lora_alpha=RANK),
        training=TrainingSpec(
            steps=STEPS, rows=ROWS * len(folders), warmup_steps=WARMUP, max_length=MAX_LENGTH, save_every=20, keep=1,
            log_every=20, threads=args.threads, **RATES["together"],
        ),
        evaluation=EvaluationSpec(metrics=["rougeL", "nll"], max_new_tokens=32, rows=24),
    )  # fmt: skip
    done = train_groups(config, log=lambda line: print(line, flush=True))
    with waiting_lock(RECORD.with_suffix(".lock")):
        if method == "groups by auto":
            groups = json.loads(GROUPS.read_text("utf-8")) if GROUPS.is_file() else {}
            write_json(GROUPS, groups | {str(seed): json.loads((output / "grouping.json").read_text("utf-8"))})
        append_records(RECORD, [replace(one, run="grouping", method=method) for one in done.evaluation.records])
        write_json(RECORD.with_suffix(".environment.json"), environment())


def table() -> str:
    """Markdown: for each method and metric the mean over the tasks of each family, over seeds with their deviation."""
    records = read_records(RECORD) if RECORD.is_file() else []
    columns = FAMILIES | {"all": tuple(TASKS)}
    lines = [f"| banks | measure | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for metric in SHOWN:
        for method in METHODS:
            values = {
                (one.task, one.seed): one.value for one in records if (one.method, one.metric) == (method, metric)
            }
            if values:
                cells = [_cell(values, names, METRICS[metric].digits) for names in columns.values()]
                lines.append(f"| {method} | {METRICS[metric].title} | {' | '.join(cells)} |")
    if GROUPS.is_file():
        lines.append("")
        for seed, found in sorted(json.loads(GROUPS.read_text("utf-8")).items()):
            lines.append(
                f"Groups by auto, seed {seed}: {'; '.join(', '.join(one) for one in found['groups'].values())}."
            )
    return "\n".join(lines)


def _cell(values: dict[tuple[str, int], float], names: tuple[str, ...], digits: int) -> str:
    means = [fmean(values[name, seed] for name in names) for seed in sorted({seed for _, seed in values})]
    return f"{fmean(means):.{digits}f}" + (f" ± {stdev(means):.{digits}f}" if len(means) > 1 else "")


if __name__ == "__main__":
    main()
