"""The demo's comparison over several seeds: untrained, in the prompt, alone (a LoRA each), together (one bank).

    python -m benchmarks.demo.demo [--seeds 0 1 2] [--output runs/demo]

What has been trained and measured is reused. The records go to benchmarks/demo/records/demo.jsonl, the table to
standard output.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from colora.common.files import write_json
from colora.common.provenance import environment
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import Record, append_records, read_records
from colora.evaluation.table import comparison_markdown
from colora.experiments.demo import METHODS, run_demo

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--record", type=Path, default=HERE / "records" / "demo.jsonl")
    args = parser.parse_args()
    for seed in args.seeds:
        run_demo(args.output, seed=seed, log=lambda line: print(line, flush=True))
    records = [one for one in read_records(args.output / "records.jsonl") if one.seed in args.seeds]
    args.record.unlink(missing_ok=True)
    append_records(args.record, records)
    write_json(args.record.with_suffix(".environment.json"), environment())
    print(comparison_markdown(records))
    print(summary_markdown(records))
    for metric in METRICS:
        gains = [mean(records, "together", metric, seed) - mean(records, "alone", metric, seed) for seed in args.seeds]
        spread = f" ± {statistics.stdev(gains):.2f}" if len(gains) > 1 else ""
        shown = ", ".join(f"{gain:+.2f}" for gain in gains)
        print(f"{metric}: together − alone = {statistics.mean(gains):+.2f}{spread} over seeds ({shown})")


def summary_markdown(records: list[Record], methods: Sequence[str] = METHODS) -> str:
    """A row a method: the mean over tasks, its mean over seeds and standard deviation between seeds."""
    seeds = sorted({record.seed for record in records})
    titles = " | ".join(metric.title for metric in METRICS.values())
    lines = [f"| method | {titles} |", f"|---|{'---|' * len(METRICS)}"]
    for method in methods:
        cells = []
        for metric in METRICS.values():
            digits = metric.digits
            values = [mean(records, method, metric.name, seed) for seed in seeds]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(records: list[Record], method: str, metric: str, seed: int) -> float:
    """The mean over tasks."""
    return statistics.mean(r.value for r in records if (r.method, r.metric, r.seed) == (method, metric, seed))


if __name__ == "__main__":
    main()
