"""What more tasks cost: adding 1000 of them, and an optimiser step with 8 tasks present of K in the bank.

    python -m benchmarks.adapter.growth [--output benchmarks/adapter/records/growth.json]

"step" is told which tasks to expect, as the trainer does, and touches nothing else. "unaided" reads the gradients of
all cores once to see who is present. "dense AdamW" is torch's own on the same gradients: it computes on all K.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from colora import CoLoRAConfig
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.models.base import load_base
from colora.training.loop.optimizer import TaskAdamW, parameter_groups

PRESENT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/adapter/records/growth.json"))
    args = parser.parse_args()
    threads = configure_threads(args.threads)
    rows = [optimiser_row(args.base, count, args.repeats) for count in args.tasks]
    report = {
        "setting": {"base": args.base, "rank": 8, "tasks_present": PRESENT, "threads": threads},
        "add_1000_tasks_seconds": adding(args.base, args.repeats),
        "optimiser_step": rows,
        "environment": environment(),
    }
    write_json(args.output, report)
    print(json.dumps({key: report[key] for key in ("add_1000_tasks_seconds", "optimiser_step")}, indent=2))


def bank(base: str, count: int) -> Any:
    names = [f"task-{task}" for task in range(count)]
    return get_peft_model(load_base(base)[0], CoLoRAConfig(r=8, tasks=names, task_type="CAUSAL_LM"))


def adding(base: str, repeats: int) -> dict[str, float]:
    model = bank(base, 8)
    return timed(lambda number: model.add_tasks([f"new-{number}-{task}" for task in range(1000)]), min(repeats, 3))


def optimiser_row(base: str, count: int, repeats: int) -> dict[str, Any]:
    model = bank(base, count)
    cores = [parameter for name, parameter in model.named_parameters() if "colora_core" in name]
    present = torch.arange(PRESENT) * (count // PRESENT)
    for core in cores:
        core.grad = torch.zeros_like(core)
        core.grad[present] = 1e-3
    groups = [group for group in parameter_groups(model, lr=1e-5, core_lr=1e-5) if group["role"] == "core"]
    ours, dense = TaskAdamW(groups), torch.optim.AdamW(cores, lr=1e-5)

    def step(_: int) -> None:
        ours.expect(present)
        ours.step()

    row = {
        "tasks": count,
        "step_seconds": timed(step, repeats),
        "unaided_step_seconds": timed(lambda _: ours.step(), repeats),
        "dense_adamw_seconds": timed(lambda _: dense.step(), repeats),
    }
    print(row, flush=True)
    return row


def timed(function: Callable[[int], Any], repeats: int) -> dict[str, float]:
    function(-1)
    seconds = []
    for number in range(repeats):
        start = time.perf_counter()
        function(number)
        seconds.append(time.perf_counter() - start)
    summary = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {key: round(value, 5) for key, value in summary.items()}


if __name__ == "__main__":
    main()
