"""How a simulated federation grows with its clients: three rounds on a tiny random model, the time of each client.

    python -m benchmarks.federated.federation_scale [--clients 125 250 500] [--output runs/federation-scale]

The record goes to benchmarks/federated/records/federation_scale.json.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from statistics import median

import psutil

from colora.common.files import write_json, write_text
from colora.common.provenance import environment
from colora.evaluation.records import read_records
from colora.federated.simulate import simulate
from colora.training.config import AdapterSpec, EvaluationSpec, FederationSpec, RunConfig, TaskSpec, TrainingSpec

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, nargs="+", default=[125, 250, 500])
    parser.add_argument("--output", type=Path, default=Path("runs/federation-scale"))
    parser.add_argument("--record", type=Path, default=HERE / "records" / "federation_scale.json")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    base = _base(args.output / "base")
    found = {}
    for count in args.clients:
        began = time.monotonic()
        config = _config(args.output, base, count)
        simulate(config)
        rounds = [one.value for one in read_records(Path(config.output) / "rounds.jsonl") if one.metric == "seconds"]
        found[str(count)] = {
            "seconds in all": round(time.monotonic() - began, 1),
            "seconds a round": round(median(rounds), 2),
            "milliseconds a client and round": round(1000 * median(rounds) / count, 2),
            "MB of memory": round(psutil.Process().memory_info().rss / 1e6),
        }
        print(count, found[str(count)], flush=True)
    first, last = args.clients[0], args.clients[-1]
    growth = math.log(found[str(last)]["seconds a round"] / found[str(first)]["seconds a round"]) / math.log(
        last / first
    )
    record = {
        "clients": found,
        "seconds a round grow as clients to the": round(growth, 3),
        "environment": environment(),
    }
    write_json(args.record, record)
    print(json.dumps(record, indent=2))


def _base(folder: Path) -> str:
    """The tests' tiny random model, with its tokenizer."""
    from tests.helpers.run_files import save_base

    return save_base(folder)


def _config(output: Path, base: str, count: int) -> RunConfig:
    tasks = []
    for number in range(count):
        path = output / "tasks" / f"client-{number}.jsonl"
        lines = [json.dumps({"input": f"{number} {row}", "output": f"{(number + row) % 7}"}) for row in range(8)]
        write_text(path, "\n".join(lines) + "\n")
        tasks.append(TaskSpec(path=str(path.resolve()), val=0, test=1))
    return RunConfig(
        base=base,
        output=str(output / f"{count}"),
        tasks=tasks,
        adapter=AdapterSpec(r=4, lora_alpha=4),
        training=TrainingSpec(max_length=96, threads=1),
        evaluation=EvaluationSpec(metrics=["nll"], rows=64),
        federation=FederationSpec(rounds=3, rows=4),
    )


if __name__ == "__main__":
    main()
