"""What keeps a short training from being lost to one large gradient: warm-up, and a second moment that forgets.

    python -m benchmarks.training.steadiness [--threads 1]

CoLoRA on the eight similar tasks at twice its tuned rate, where the trouble is frequent, with and without five steps of
warm-up, with Adam's β2 at its usual 0.999 and at the comparison's 0.95. Twelve trainings, each 40 to 60 seconds on a
core; what has been measured is reused. The records go to benchmarks/training/records/steadiness.jsonl.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch

from colora.common.jsonl import read_jsonl, write_jsonl
from colora.common.provenance import environment
from colora.experiments.methods.runner import Runner
from colora.experiments.trial import Trial
from colora.tasks.families.make import make_tasks
from colora.tasks.families.named import GROUPS
from colora.training.rates import CORE_LR

RECORD = Path(__file__).parent / "records" / "steadiness.jsonl"
GROUP, EXAMPLES, LR = "similar-8", 16, 8e-3
WARMUPS, BETAS2, SEEDS = (0, 5), (0.999, 0.95), (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--threads", type=int, help="torch's; its own choice by default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    records = read(args.record)
    known = {(one["warmup_steps"], one["beta2"], one["seed"]) for one in records}
    runner = None
    for seed, warmup, beta2 in product(SEEDS, WARMUPS, BETAS2):
        if (warmup, beta2, seed) in known:
            continue
        runner = runner or Runner("smollm2", "bf16")
        records.append(measure(runner, warmup, beta2, seed))
        write_jsonl(args.record, map(json.dumps, records))
        print(f"seed {seed}, warm-up {warmup}, β2 {beta2}: {records[-1]['token_nll']:.3f} nats", flush=True)
    print(table_markdown(records))


def measure(runner: Runner, warmup: int, beta2: float, seed: int) -> dict[str, Any]:
    """One training: nats per token of the test examples, and the training loss that it ended with."""
    tasks = make_tasks(GROUPS[GROUP], examples=EXAMPLES, val=24, test=24, seed=seed, regime="implicit")
    trial = Trial(
        method="colora", group=GROUP, tasks=GROUPS[GROUP], regime="implicit", examples=EXAMPLES, seed=seed,
        base="smollm2", dtype="bf16", steps=50, warmup_steps=warmup, rows=1, lr=LR, core_lr=CORE_LR, generate=0,
    )  # fmt: skip
    with patch("colora.experiments.methods.train.BETAS", (0.9, beta2)):
        record = runner.run(trial, tasks)
    return {
        "warmup_steps": warmup, "beta2": beta2, "seed": seed, "lr": LR, "token_nll": record.mean("token_nll"),
        "losses": record.losses, "environment": environment(),
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none if there is no file."""
    return read_jsonl(path, json.loads) if path.is_file() else []


def table_markdown(records: list[dict[str, Any]]) -> str:
    """Nats per token seed by seed, a row a setting."""
    lines = ["| warm-up, steps | β2 | nats per token, seed by seed | mean |", "|---|---|---|---|"]
    for warmup, beta2 in product(WARMUPS, BETAS2):
        nats = [one["token_nll"] for one in records if (one["warmup_steps"], one["beta2"]) == (warmup, beta2)]
        if nats:
            lines.append(f"| {warmup} | {beta2} | {', '.join(f'{one:.3f}' for one in nats)} | {fmean(nats):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
