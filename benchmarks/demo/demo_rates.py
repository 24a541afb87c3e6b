"""Which learning rates suit the demo's methods, on dates and examples that no demo measures (seed 3).

    python -m benchmarks.demo.demo_rates [--output runs/demo-rates]

Both methods get the same number of tries. What has been measured is reused. The records go to
benchmarks/demo/records/demo_rates.jsonl.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.demo.demo import summary_markdown
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.evaluation.records import append_records, read_records
from colora.experiments.demo import measure_alone, measure_together, write_tasks

HERE = Path(__file__).parent
SEED, STEPS = 3, 90
GRID = {
    "alone": [{"lr": lr} for lr in (1e-3, 2e-3, 4e-3, 8e-3)],
    "together": [{"lr": 2e-3, "core_lr": core_lr} for core_lr in (2e-3, 2e-2, 6e-2, 1.2e-1)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/demo-rates"))
    parser.add_argument("--record", type=Path, default=HERE / "records" / "demo_rates.jsonl")
    args = parser.parse_args()
    folders = write_tasks(args.output / "tasks", SEED)
    for method, measure in {"alone": measure_alone, "together": measure_together}.items():
        for rates in GRID[method]:
            label = f"{method}, " + ", ".join(f"{name} {value:g}" for name, value in rates.items())
            known = read_records(args.record) if args.record.is_file() else []
            if any(record.method == label for record in known):
                print(f"{label}: measured before, reused")
                continue
            records = measure(args.output / label.replace(", ", "_").replace(" ", "-"), folders, SEED, STEPS, rates)
            append_records(args.record, [replace(record, method=label) for record in records])
            write_json(args.record.with_suffix(".environment.json"), environment())
            print(f"{label}: measured", flush=True)
    records = read_records(args.record)
    print(summary_markdown(records, list(dict.fromkeys(record.method for record in records))))


if __name__ == "__main__":
    main()
