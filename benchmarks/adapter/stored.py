"""What a training step costs as tasks grow, with the cores on the device, in memory, or on disk.

    python -m benchmarks.adapter.stored [--tasks 8 1024 16384 131072 1000000] [--rounds 5] [--threads 1]
    python -m benchmarks.adapter.stored --table           # the table of the record, and nothing is run

SmolLM2, all linear layers, rank 4: a core is 13 kB, with the moments of Adam 41 kB. A step has eight rows of eight
tasks, drawn anew for each step; forward, backward, clipping, optimiser. "warm": the tasks of a step have been trained
a moment ago. "cold": they were trained, and the kernel has been told to forget the file since. "optimiser": its step
alone. "checkpoint": `save_training` alone, the first of a folder, and the next after a few steps, with the bytes that
they write. A core that was never trained takes no room, so the store is as large as what the steps have touched. All
settings take turns in each round; the ratio is to the first one, cores of eight tasks on the device, within a round.

"bytes a task": what a bank of so many grows by for one more that is not trained, counted in the allocations of Python
and numpy while many are added (on the device, in the numbers of its core, gradient and moments), so that few tasks are
measured as exactly as many. "peak memory": of a process of its own that builds the bank, trains and saves.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import get_peft_model

from colora import CoLoRAConfig, TaskAdamW, parameter_groups, save_training, store_cores, tasks_at_hand
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.models.base import load_base

RECORD = Path(__file__).parent / "records" / "stored.json"
ROWS, TOKENS, RANK, STEPS, AT_ONCE = 8, 32, 4, 3, 100_000
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
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    parser.add_argument("--weigh", action="store_true", help="print the memory of one place and number of tasks alone")
    args = parser.parse_args()
    if args.weigh:
        print(json.dumps(Candidate(args.base, args.places[0], args.tasks[0], args.folder).weighed()))
        return
    if not args.table:
        threads = configure_threads(args.threads)
        setting = {"base": args.base, "rank": RANK, "rows": ROWS, "tokens": TOKENS, "threads": threads}
        found = {"setting": setting, "rows": run(args)}
        write_json(args.record, found | {"environment": environment()})
    print(table(args.record))


class Candidate:
    """A bank of so many tasks in one place.

    Attributes:
        place: "device", "memory" or "disk".
    """

    def __init__(self, base: str, place: str, tasks: int, folder: Path) -> None:
        self.place, self.tasks = place, tasks
        first = min(tasks, ROWS) if place != "device" else tasks
        config = CoLoRAConfig(r=RANK, tasks=[f"user-{number}" for number in range(first)], init_rotation=0.0)
        self.model = get_peft_model(load_base(base)[0], config).train()
        self.stored = None
        if place != "device":
            self.stored = store_cores(self.model, ROWS, folder if place == "disk" else None)
            for begin in range(first, tasks, AT_ONCE):
                self.add(begin, min(begin + AT_ONCE, tasks))
        self.optimizer = TaskAdamW(parameter_groups(self.model, lr=1e-4, core_lr=1e-3))
        self.random = random.Random(tasks)
        self.saved = Path(tempfile.mkdtemp(prefix="colora-stored-", dir=folder))
        self.step = 0

    def add(self, begin: int, end: int) -> None:
        """Add the tasks of these numbers."""
        self.model.add_tasks([f"user-{number}" for number in range(begin, end)])

    def weighed(self) -> dict[str, float]:
        """Bytes that one more task takes, and the most that the process had; to be asked once."""
        self.seconds(self.draw())
        self.checkpoint()
        shutil.rmtree(self.saved)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.stored is None:
            cores = sum(one[0].nbytes for name, one in self.model.named_parameters() if "colora_core" in name)
            return {"bytes_a_task": 4 * cores, "peak_bytes": peak}
        tracemalloc.start()
        self.add(self.tasks, self.tasks + 1)  # makes what is made once, and the copies that are traced from now on
        before = tracemalloc.get_traced_memory()[0]
        for begin in range(self.tasks + 1, self.tasks + 1 + AT_ONCE, AT_ONCE // 4):
            self.add(begin, begin + AT_ONCE // 4)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return {"bytes_a_task": grown / AT_ONCE, "peak_bytes": peak}

    def checkpoint(self) -> dict[str, float]:
        """Seconds of a checkpoint, and the bytes it writes."""
        self.step += 1
        known, began = set(self.saved.rglob("*")), time.perf_counter()
        save_training(self.model, self.optimizer, self.saved, self.step)
        seconds = time.perf_counter() - began
        written = sum(file.stat().st_size for file in set(self.saved.rglob("*")) - known if file.is_file())
        return {"seconds": seconds, "bytes": written}

    def end(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.saved, ignore_errors=True)

    def draw(self) -> list[list[int]]:
        """The tasks of a few steps."""
        return [self.random.sample(range(self.tasks), ROWS) for _ in range(STEPS)]

    def seconds(self, steps: Sequence[Sequence[int]]) -> tuple[float, float]:
        """Of a step, and of the optimiser's part of it, the medians."""
        found, alone = [], []
        for tasks in steps:
            most = min(1000, self.model.config.vocab_size)
            ids = torch.randint(most, (ROWS, TOKENS), generator=torch.Generator().manual_seed(tasks[0]))
            began = time.perf_counter()
            with tasks_at_hand(self.model, torch.tensor(tasks), self.optimizer):
                self.model(input_ids=ids, labels=ids, task_ids=torch.tensor(tasks)).loss.backward()
                torch.nn.utils.clip_grad_norm_([one for one in self.model.parameters() if one.requires_grad], 1.0)
                self.optimizer.expect(self.places(tasks))
                stepped = time.perf_counter()
                self.optimizer.step()
                alone.append(time.perf_counter() - stepped)
                self.optimizer.zero_grad()
            found.append(time.perf_counter() - began)
        return median(found), median(alone)

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


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All candidates in turn, round after round."""
    wanted = [
        (place, tasks) for place in args.places for tasks in args.tasks if place != "device" or tasks <= ON_DEVICE
    ]
    weights = {(place, tasks): weight(args, place, tasks) for place, tasks in wanted}
    candidates = [Candidate(args.base, place, tasks, args.folder) for place, tasks in wanted]
    rows = []
    for number in range(-1, args.rounds):  # the first warms up and does not count
        for one in candidates:
            steps = one.draw()
            one.seconds(steps)  # now they have been trained
            warm, optimiser = one.seconds(steps)
            found = {"round": number, "place": one.place, "tasks": one.tasks, "warm": warm, "optimiser": optimiser}
            if one.place == "disk":
                one.seconds(one.draw())
                one.forget()
                found["cold"] = one.seconds(steps)[0]
            found["first" if number < 0 else "delta"] = one.checkpoint()
            rows.append(found | weights[one.place, one.tasks])
            print(found, flush=True)
    for one in candidates:
        one.end()
    return rows


def weight(args: argparse.Namespace, place: str, tasks: int) -> dict[str, float]:
    """See `Candidate.weighed`; in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.adapter.stored", "--weigh", "--base", args.base]
    command += ["--places", place, "--tasks", str(tasks), "--folder", str(args.folder)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    found: dict[str, float] = json.loads(told)
    print(place, tasks, found, flush=True)
    return found


def table(record: Path = RECORD) -> str:
    """Markdown of what has been recorded."""
    if not record.is_file():
        return ""
    recorded = json.loads(record.read_text("utf-8"))["rows"]
    rows = [row for row in recorded if row["round"] >= 0]
    first = rows[0]["place"], rows[0]["tasks"]
    base = {row["round"]: row["warm"] for row in rows if (row["place"], row["tasks"]) == first}
    columns = [f"to {first[1]} on the {first[0]}", "cold", "optimiser, s", "first checkpoint", "next checkpoints"]
    columns = ["tasks", "cores", "s a step, warm", *columns, "bytes a task, untrained", "peak memory, GB"]
    lines = []
    for tasks in dict.fromkeys(row["tasks"] for row in rows):
        for place in dict.fromkeys(row["place"] for row in rows if row["tasks"] == tasks):
            own = [row for row in recorded if (row["place"], row["tasks"]) == (place, tasks)]
            begun = [row["first"] for row in own if "first" in row]
            own = [row for row in own if row["round"] >= 0]
            cells = [f"{tasks:,}".replace(",", " "), place, f"{median(row['warm'] for row in own):.2f}"]
            cells += [_ratios([row["warm"] / base[row["round"]] for row in own])]
            cells += [_ratios([row["cold"] / base[row["round"]] for row in own if "cold" in row])]
            cells += [f"{median(row['optimiser'] for row in own):.3f}" if "optimiser" in own[0] else ""]
            cells += [_checkpoint(begun), _checkpoint([row["delta"] for row in own if "delta" in row])]
            size, peak = own[0].get("bytes_a_task"), own[0].get("peak_bytes")
            cells += ["" if size is None else f"{size:.0f}", "" if peak is None else f"{peak / 1e9:.1f}"]
            lines.append(cells)
    # An older record has fewer measurements: what it lacks altogether is no column.
    shown = [number for number in range(len(columns)) if any(cells[number] for cells in lines)]
    heads = [[columns[number] for number in shown], ["---" if columns[n] == "cores" else "---:" for n in shown]]
    text = [" | ".join(heads[0]), "|".join(heads[1]), *(" | ".join(cells[n] for n in shown) for cells in lines)]
    return "\n".join(f"|{line}|" if number == 1 else f"| {line} |" for number, line in enumerate(text))


def _checkpoint(written: Sequence[dict[str, float]]) -> str:
    if not written:
        return ""
    return f"{median(one['seconds'] for one in written):.2f} s, {median(one['bytes'] for one in written) / 1e6:.1f} MB"


def _ratios(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


if __name__ == "__main__":
    main()
