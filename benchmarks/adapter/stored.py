"""What a training step costs as tasks grow, with the cores on the device, in memory, or on disk.

    python -m benchmarks.adapter.stored [--tasks 8 1024 16384 131072 1000000] [--rounds 5] [--threads 1]
    python -m benchmarks.adapter.stored --table           # the table of the record, and nothing is run

SmolLM2, all linear layers, rank 4: a core is 13 kB, with the moments of Adam 41 kB. A step has eight rows of eight
tasks, drawn anew for each step; forward, backward, clipping, optimiser. "warm": the tasks of a step have been trained
a moment ago. "cold": they were trained, and the kernel has been told to forget the file since. A core that was never
trained takes no room, so the store is as large as what the steps have touched. All settings take turns in each round;
the ratio is to the first one, cores of eight tasks on the device, within a round.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from peft import get_peft_model

from colora import CoLoRAConfig, TaskAdamW, parameter_groups, store_cores, tasks_at_hand
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.models.base import load_base

RECORD = Path(__file__).parent / "records" / "stored.json"
ROWS, TOKENS, RANK, STEPS, AT_ONCE = 8, 32, 4, 3, 100_000
FEW = 10_000
"""Up to so many tasks the process's own noise is larger than what they add."""
ON_DEVICE = 16384
"""The most tasks that are tried with all cores on the device: their gradients and moments would fill the memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 1024, 16384, 131072, 1_000_000])
    parser.add_argument("--places", nargs="+", default=["device", "memory", "disk"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the cores on disk")
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    parser.add_argument("--weigh", action="store_true", help="print the bytes a task of one place and number alone")
    args = parser.parse_args()
    if args.weigh:
        print(Candidate(args.base, args.places[0], args.tasks[0], args.folder).bytes_a_task)
        return
    if not args.table:
        threads = configure_threads(args.threads)
        setting = {"base": args.base, "rank": RANK, "rows": ROWS, "tokens": TOKENS, "threads": threads}
        found = {"setting": setting, "rows": run(args)}
        write_json(RECORD, found | {"environment": environment()})
    print(table())


class Candidate:
    """A bank of so many tasks in one place.

    Attributes:
        place: "device", "memory" or "disk".
        bytes_a_task: by which the process has grown for each task, before any was trained.
    """

    def __init__(self, base: str, place: str, tasks: int, folder: Path) -> None:
        self.place, self.tasks = place, tasks
        before = memory()
        first = min(tasks, ROWS) if place != "device" else tasks
        config = CoLoRAConfig(r=RANK, tasks=[f"user-{number}" for number in range(first)], init_rotation=0.0)
        self.model = get_peft_model(load_base(base)[0], config).train()
        self.stored = None
        if place != "device":
            self.stored = store_cores(self.model, ROWS, folder if place == "disk" else None)
            alone = memory()
            for begin in range(first, tasks, AT_ONCE):  # a list of all their names would be counted too
                end = min(begin + AT_ONCE, tasks)
                self.model.add_tasks([f"user-{number}" for number in range(begin, end)])
        else:
            alone = before
        self.optimizer = TaskAdamW(parameter_groups(self.model, lr=1e-4, core_lr=1e-3))
        self.bytes_a_task = (memory() - alone) / tasks
        self.random = random.Random(tasks)

    def draw(self) -> list[list[int]]:
        """The tasks of a few steps."""
        return [self.random.sample(range(self.tasks), ROWS) for _ in range(STEPS)]

    def seconds(self, steps: Sequence[Sequence[int]]) -> float:
        """Of a step, the median."""
        found = []
        for tasks in steps:
            ids = torch.randint(1000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(tasks[0]))
            began = time.perf_counter()
            with tasks_at_hand(self.model, torch.tensor(tasks), self.optimizer):
                self.model(input_ids=ids, labels=ids, task_ids=torch.tensor(tasks)).loss.backward()
                torch.nn.utils.clip_grad_norm_([one for one in self.model.parameters() if one.requires_grad], 1.0)
                self.optimizer.expect(self.places(tasks))
                self.optimizer.step()
                self.optimizer.zero_grad()
            found.append(time.perf_counter() - began)
        return median(found)

    def places(self, tasks: Sequence[int]) -> torch.Tensor:
        """Where these tasks are in the stacks."""
        ids = torch.tensor(sorted(tasks))
        return ids if self.stored is None else self.stored.positions(ids)

    def forget(self) -> None:
        """Make the kernel forget the pages of the store's file; where it cannot be told, nothing."""
        if self.place == "disk" and self.stored is not None and hasattr(os, "posix_fadvise"):
            self.stored.put_back()
            descriptor = self.stored.table.file_descriptor
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> int:
    """Of this process, without what it has freed and keeps for later."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All candidates in turn, round after round."""
    wanted = [
        (place, tasks) for place in args.places for tasks in args.tasks if place != "device" or tasks <= ON_DEVICE
    ]
    weights = {(place, tasks): weight(args, place, tasks) for place, tasks in wanted if tasks > FEW}
    candidates = [Candidate(args.base, place, tasks, args.folder) for place, tasks in wanted]
    rows = []
    for number in range(-1, args.rounds):  # the first warms up and does not count
        for one in candidates:
            steps = one.draw()
            one.seconds(steps)  # now they have been trained
            found = {"round": number, "place": one.place, "tasks": one.tasks, "warm": one.seconds(steps)}
            if one.place == "disk":
                one.seconds(one.draw())
                one.forget()
                found["cold"] = one.seconds(steps)
            rows += [found | {"bytes_a_task": weights.get((one.place, one.tasks))}] if number >= 0 else []
            print(found, flush=True)
    return rows


def weight(args: argparse.Namespace, place: str, tasks: int) -> float:
    """Bytes a task, seen in a process of its own: what others have freed would be taken first."""
    command = [sys.executable, "-m", "benchmarks.adapter.stored", "--weigh", "--base", args.base]
    command += ["--places", place, "--tasks", str(tasks), "--folder", str(args.folder)]
    found = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
    print(place, tasks, f"{found:.0f} bytes a task", flush=True)
    return found


def table() -> str:
    """Markdown of what has been recorded."""
    if not RECORD.is_file():
        return ""
    rows = json.loads(RECORD.read_text("utf-8"))["rows"]
    first = rows[0]["place"], rows[0]["tasks"]
    base = {row["round"]: row["warm"] for row in rows if (row["place"], row["tasks"]) == first}
    lines = [
        f"| tasks | cores | s a step, warm | to {first[1]} on the {first[0]} | cold | bytes a task, untrained |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for tasks in dict.fromkeys(row["tasks"] for row in rows):
        for place in dict.fromkeys(row["place"] for row in rows if row["tasks"] == tasks):
            own = [row for row in rows if (row["place"], row["tasks"]) == (place, tasks)]
            cells = [f"{tasks:,}".replace(",", " "), place, f"{median(row['warm'] for row in own):.2f}"]
            cells += [_ratios([row["warm"] / base[row["round"]] for row in own])]
            cells += [_ratios([row["cold"] / base[row["round"]] for row in own if "cold" in row])]
            size = own[0]["bytes_a_task"]
            cells += ["" if size is None else f"{size:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


if __name__ == "__main__":
    main()
