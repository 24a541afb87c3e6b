"""Federated CoLoRA against pooled training and against FedIT, on the demo's tasks at equal local steps.

    python -m benchmarks.federated.federation [--seeds 0 1 2] [--only NAME] [--output runs/federation] [--threads 1]
    python -m benchmarks.federated.federation --choices [--only NAME]  # the settings from which defaults were chosen
    python -m benchmarks.federated.federation --table

Every client makes as many local steps as the demo's bank, each with as many rows of its task. Rows without the word
"recipe" have rank 8, cores that start at the identity, and the rates 2e-3 and 6e-2. A finished run is never run again,
and one that was stopped goes on; several processes may share the work by --only. The records go to federation.jsonl and
federation_choices.jsonl in benchmarks/federated/records; the rows "in one place" and "alone" are those of
`python -m benchmarks.demo.demo` and, for the choices, of `python -m benchmarks.demo.demo_rates`.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev

from colora.common.files import write_json
from colora.common.locks import waiting_lock
from colora.common.provenance import environment
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import Record, append_records, read_records
from colora.experiments.demo import write_tasks
from colora.federated.simulate import simulate
from colora.models.base import DEFAULT_BASE
from colora.training.config import AdapterSpec, EvaluationSpec, FederationSpec, RunConfig, TaskSpec, TrainingSpec
from colora.training.rates import CORE_LR, LR
from colora.training.run import train_and_evaluate

HERE = Path(__file__).parent
RECORD = HERE / "records" / "federation.jsonl"
STEPS, ROWS = 90, 2
LOCAL = 3
COMMON = {"rounds": STEPS // LOCAL, "core_steps": 1, "local_steps": LOCAL - 1, "rows": ROWS}
SHORT = {"compression": "int8", "download": "fp16"}
KEPT: dict[str, object] = {"factor_moments": "kept"}
TURNS: dict[str, object] = {"schedule": "alternating"}
MOMENTUM = {"server": "momentum", "server_lr": 0.3, "server_momentum": 0.8}
BRIEF = {"rounds": 45, "core_steps": 1, "local_steps": 1}  # two local steps a round
EARLIER = {"lr": 2e-3, "core_lr": 6e-2}  # the rates of rank 8 and cores at the identity, which most rows have
TWICE = {"lr": 4e-3, "core_lr": 6e-2}
BANK = "in one place, four rows"  # no federation: what more rows a step are worth there
METHODS: dict[str, dict[str, object]] = {
    BANK: {"rows": 4},
    "simultaneous": COMMON,
    "simultaneous, 8 bits up, 16 down": COMMON | SHORT,
    "simultaneous, 8 bits up, 16 down, four rows": COMMON | SHORT | {"rows": 4},
    "alternating": COMMON | TURNS,
    "FedIT": COMMON | {"core_steps": 0, "local_steps": LOCAL, "finish_steps": 0},
}
CHOICES: dict[str, dict[str, object]] = {
    "30 × 3, both": COMMON,
    "30 × 3, both, core rate 0.12": COMMON,
    "30 × 3, both, moments kept": COMMON | KEPT,
    "30 × 3, both, four rows": COMMON | {"rows": 4},
    "30 × 3, both, four rows, moments kept": COMMON | {"rows": 4} | KEPT,
    "45 × 2, both, momentum": COMMON | BRIEF | MOMENTUM,
    "30 × 3, in turns": COMMON | TURNS,
    "45 × 2, in turns, momentum": COMMON | BRIEF | TURNS | MOMENTUM,
    "45 × 2, in turns, twice the rate": COMMON | BRIEF | TURNS,
    "45 × 2, in turns, core first": COMMON | BRIEF | TURNS | {"order": "core_first"},
    "30 × 3, both, recipe": COMMON,
    "30 × 3, both, recipe, rates 0.001 and 0.06": COMMON,
    "30 × 3, both, recipe, rates 0.002 and 0.06": COMMON,
}
RATES_OF = {
    "30 × 3, both, recipe": {"lr": LR, "core_lr": CORE_LR},
    "30 × 3, both, recipe, rates 0.001 and 0.06": {"lr": 1e-3, "core_lr": 6e-2},
    "30 × 3, both, recipe, rates 0.002 and 0.06": EARLIER,
    "alternating": TWICE,  # each factor moves half as often
    "45 × 2, in turns, twice the rate": TWICE,
    "30 × 3, both, core rate 0.12": {"lr": 2e-3, "core_lr": 0.12},
}
CHOICES_SEED = 3
CHOICES_RECORD = HERE / "records" / "federation_choices.jsonl"
ELSEWHERE = {"together": "in one place (no federation)", "alone": "a LoRA for each client"}
CHOSEN = {"together, lr 0.002, core_lr 0.06": "in one place (no federation)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choices", action="store_true", help="the settings tried, on the dates of seed 3")
    parser.add_argument("--only", choices=[*METHODS, *CHOICES], action="append")
    parser.add_argument("--output", type=Path, default=Path("runs/federation"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    methods, seeds, record = METHODS, args.seeds, RECORD
    if args.choices:
        methods, seeds, record = CHOICES, [CHOICES_SEED], CHOICES_RECORD
    for seed in [] if args.table else seeds:
        folders = write_tasks(args.output / "tasks" / f"seed-{seed}", seed)
        for method in args.only or methods:
            measure(method, methods[method], seed, folders, record, args)
    print(choices_table() if args.choices else table())


def measure(
    method: str, spec: dict[str, object], seed: int, folders: dict[str, Path], record: Path, args: argparse.Namespace
) -> None:
    """Run one federation, or train one bank, unless its records exist."""
    existing = read_records(record) if record.is_file() else []
    if any((row.method, row.seed) == (method, seed) for row in existing):
        print(f"{method}, seed {seed}: measured before, reused")
        return
    output = args.output / f"{re.sub(r'[^A-Za-z0-9.]+', '-', method)}-seed-{seed}"
    rates = RATES_OF.get(method, EARLIER)
    recipe = AdapterSpec() if "recipe" in method else AdapterSpec(r=8, init_rotation=0)
    federation = FederationSpec.model_validate(spec)
    config = RunConfig(
        base=DEFAULT_BASE,
        chat_template=False,
        output=str(output),
        seed=seed,
        tasks=[TaskSpec(name=name, path=str(folder.resolve()), val=0) for name, folder in folders.items()],
        adapter=recipe,
        training=TrainingSpec(
            steps=STEPS,
            rows=federation.rows * len(folders),
            max_length=64,
            threads=args.threads,
            weight_decay=0,
            **rates,
        ),
        evaluation=EvaluationSpec(max_new_tokens=32, rows=48),
        federation=federation,
    )
    evaluation = train_and_evaluate(config, log=print)[1] if method == BANK else simulate(config, log=print)
    assert evaluation is not None  # one process, which measures
    rounds = output / "rounds.jsonl"
    sent = [row for row in read_records(rounds) if row.metric.startswith("bytes")] if rounds.is_file() else []
    records = [replace(row, run="federation", method=method) for row in (*evaluation.records, *sent)]
    with waiting_lock(record.with_suffix(".lock")):
        append_records(record, records)
        write_json(record.with_suffix(".environment.json"), environment())


def table() -> str:
    """Markdown: a row for each method, mean over tasks and mean ± standard deviation over seeds."""
    return _table(
        read_records(HERE.parent / "demo" / "records" / "demo.jsonl"), ELSEWHERE, read_records(RECORD), METHODS
    )


def choices_table() -> str:
    """The same for the settings that were tried; one seed, so without deviations."""
    pooled = read_records(HERE.parent / "demo" / "records" / "demo_rates.jsonl")
    return _table(pooled, CHOSEN, read_records(CHOICES_RECORD), CHOICES)


def _table(pooled: list[Record], elsewhere: dict[str, str], records: list[Record], methods: Iterable[str]) -> str:
    names = " | ".join(metric.title for metric in METRICS.values())
    lines = [f"| method | {names} | kB a client and round, up | down |", "|---|---:|---:|---:|---:|---:|"]
    for method, title in elsewhere.items():
        lines.append(f"| {title} | {_quality([row for row in pooled if row.method == method])} | – | – |")
    for method in methods:
        rows = [row for row in records if row.method == method]
        if rows:
            lines.append(f"| {method} | {_quality(rows)} | {_bytes(rows, 'bytes_up')} | {_bytes(rows, 'bytes_down')} |")
    return "\n".join(lines)


def _quality(records: list[Record]) -> str:
    cells = []
    for metric, shown in METRICS.items():
        seeds = sorted({row.seed for row in records})
        means = [fmean(row.value for row in records if (row.metric, row.seed) == (metric, seed)) for seed in seeds]
        digits = shown.digits
        spread = f" ± {stdev(means):.{digits}f}" if len(means) > 1 else ""
        cells.append(f"{fmean(means):.{digits}f}{spread}")
    return " | ".join(cells)


def _bytes(records: list[Record], metric: str) -> str:
    """kB a client and round: the median over rounds, or a dash where nothing was sent."""
    clients = len({row.task for row in records if row.metric == "rougeL"})
    sent = [row.value for row in records if row.metric == metric]
    return f"{median(sent) / clients / 1000:,.0f}" if sent else "–"


if __name__ == "__main__":
    main()
