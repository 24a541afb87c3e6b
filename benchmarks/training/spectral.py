"""Spectral starts against the ordinary one, on the demo's tasks at equal steps.

    python -m benchmarks.training.spectral [--seeds 0 1 2] [--only NAME] [--output runs/spectral] [--threads 1]
    python -m benchmarks.training.spectral --table

Besides what the demo measures on its test dates, the likelihood of 16 validation dates a task, drawn by another seed,
says how far training had come after 15, 30 and 60 steps. A finished run is never run again, and one that was stopped
goes on; several processes may share the work by --only and --seeds. The records go to
benchmarks/training/records/spectral.jsonl.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from colora.common.files import write_json
from colora.common.jsonl import write_jsonl
from colora.common.locks import waiting_lock
from colora.common.provenance import environment
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import Record, append_records, read_records
from colora.experiments.demo import RANK, RATES, ROWS, write_tasks
from colora.models.base import DEFAULT_BASE
from colora.tasks.families.calendar import DEMO_LOCALES, date_tasks
from colora.training.config import AdapterSpec, EvaluationSpec, RunConfig, TaskSpec, TrainingSpec
from colora.training.run import train_and_evaluate

HERE = Path(__file__).parent
RECORD = HERE / "records" / "spectral.jsonl"
STARTS = ("kaiming", "spectral", "spectral_neutral", "spectral_factors")
STEPS, LOOKS = 90, (15, 30, 60)
VAL, VAL_SEED = 16, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=STARTS, action="append")
    parser.add_argument("--output", type=Path, default=Path("runs/spectral"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    for seed in [] if args.table else args.seeds:
        folders = write_tasks(args.output / "tasks" / f"seed-{seed}", seed)
        _write_validation(folders, seed)
        for start in args.only or STARTS:
            measure(start, seed, folders, args)
    print(table())


def measure(start: str, seed: int, folders: dict[str, Path], args: argparse.Namespace) -> None:
    """Train and measure one bank, unless its records are there."""
    known = read_records(RECORD) if RECORD.is_file() else []
    if any((one.method, one.seed) == (start, seed) for one in known):
        print(f"{start}, seed {seed}: measured before, reused")
        return
    print(f"{start}, seed {seed}", flush=True)
    output = args.output / f"{start}-seed-{seed}"
    config = RunConfig(
        base=DEFAULT_BASE, chat_template=False, output=str(output), seed=seed,
        tasks=[TaskSpec(name=name, path=str(folder.resolve())) for name, folder in folders.items()],
        adapter=AdapterSpec.model_validate({"r": RANK, "lora_alpha": RANK, "init_weights": start}),
        training=TrainingSpec(
            steps=STEPS, rows=ROWS * len(folders) // len(DEMO_LOCALES), max_length=64, save_every=30, keep=1,
            log_every=15, eval_every=15, threads=args.threads, **RATES["together"],
        ),
        evaluation=EvaluationSpec(max_new_tokens=32, rows=48),
    )  # fmt: skip
    _, evaluation = train_and_evaluate(config, log=lambda line: print(line, flush=True))
    assert evaluation is not None  # one process, which measures
    found = [replace(one, run="spectral", method=start) for one in evaluation.records]
    found += validation_records(output, start, seed)
    with waiting_lock(RECORD.with_suffix(".lock")):
        append_records(RECORD, found)
        write_json(RECORD.with_suffix(".environment.json"), environment())


def validation_records(output: Path, start: str, seed: int) -> list[Record]:
    """Nats per token of the validation dates of each task after some steps, from the log in the last checkpoint."""
    state = json.loads((output / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text("utf-8"))
    return [
        Record("spectral", start, key.removeprefix("eval_loss/"), "val", f"nll_{entry['step']}", value, VAL, seed)
        for entry in state["log_history"]
        for key, value in entry.items()
        if entry["step"] in LOOKS and key.startswith("eval_loss/")
    ]


def _write_validation(folders: dict[str, Path], seed: int) -> None:
    # From another seed: more days of the demo's own would change which of them are trained on.
    for task in date_tasks(train=VAL, test=0, seed=VAL_SEED + seed):
        rows = [{"input": one.input, "output": one.outputs[0]} for one in task.splits["train"]]
        write_jsonl(folders[task.name] / "val.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))


def table() -> str:
    """Markdown: a row for each start, mean over tasks and mean ± standard deviation over seeds."""
    records = read_records(RECORD) if RECORD.is_file() else []
    metrics = {f"nll_{step}": f"val nats after {step}" for step in LOOKS}
    metrics |= {name: metric.title for name, metric in METRICS.items()}
    lines = [f"| start | {' | '.join(metrics.values())} |", f"|---|{'---:|' * len(metrics)}"]
    for start in STARTS:
        own = [one for one in records if one.method == start]
        if own:
            lines.append(f"| {start} | {' | '.join(_cell(own, metric) for metric in metrics)} |")
    return "\n".join(lines)


def _cell(records: list[Record], metric: str) -> str:
    seeds = sorted({one.seed for one in records})
    means = [fmean(one.value for one in records if (one.metric, one.seed) == (metric, seed)) for seed in seeds]
    digits = METRICS[metric if metric in METRICS else "token_nll"].digits
    return f"{fmean(means):.{digits}f}" + (f" ± {stdev(means):.{digits}f}" if len(means) > 1 else "")


if __name__ == "__main__":
    main()
