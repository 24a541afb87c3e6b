"""A hundred new tasks of sixteen examples at once, and a sample of them one by one.

    python -m benchmarks.transfer.newcomers [--seeds 0] [--count 100] [--sample 10] [--output runs/newcomers]
    python -m benchmarks.transfer.newcomers --table

For each seed a bank of the demo's six languages is trained as in the demo, sixteen dates each. The new tasks are dates
in other languages, each as CLDR writes it. "together" is one `colora onboard` of all of them, "together, float32" one
of the sample with `--dtype float32`, "one by one" a `colora onboard` for each of the sample. Seconds are those of the
whole commands, with a thread for each core: nothing else should run beside. Token NLL is that of 24 test dates, in
float32 for all; the figures are of the tasks of the sample, which were done in all ways.

A run that has ended is not run again. One of all tasks that was cut off begins anew, for its seconds mean nothing.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from babel import Locale
from babel.localedata import locale_identifiers

from benchmarks.transfer.updating import MAX_LENGTH, nll_of, trained, written
from colora.bank.load import load_bank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.errors import TaskFileError
from colora.models.base import DEFAULT_BASE, load_base
from colora.tasks.encode import encode_tasks
from colora.tasks.families.calendar import DEMO_LOCALES, FIRST_DAY, date_example, date_task, date_tasks
from colora.tasks.schema import Task

RECORD = Path(__file__).parent / "records" / "newcomers.json"
EXAMPLES, TESTS = 16, 24
TOGETHER, EXACT, ALONE = "together", "together, float32", "one by one"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=100, help="new tasks")
    parser.add_argument("--sample", type=int, default=10, help="of them, those that are also onboarded one by one")
    parser.add_argument("--threads", type=int, help="of the bank's training and the tests; onboarding has all cores")
    parser.add_argument("--output", type=Path, default=Path("runs/newcomers"))
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if not args.table:
        configure_threads(args.threads)
        for seed in args.seeds:
            Run(args.output / f"seed-{seed}-{args.count}", seed, args.count, args.sample, args.record).all()
    print(table(args.record))


class Run:
    """All that one seed is measured on."""

    def __init__(self, folder: Path, seed: int, count: int, sample: int, record: Path) -> None:
        self.folder, self.seed, self.count, self.record = folder, seed, count, record
        self.tasks = new_tasks(count, seed)
        step = max(1, len(self.tasks) // sample)
        self.sample = self.tasks[::step][:sample]
        self.files = {task.name: written(folder / "new", task, slice(None)) for task in self.tasks}

    def all(self) -> None:
        old = date_tasks(DEMO_LOCALES, train=EXAMPLES, seed=self.seed)
        self.bank = trained(self.folder / "bank", old, slice(None), self.seed, None)
        self.together(TOGETHER, self.tasks, [])
        for task in self.sample:  # one after the other, so that a slower hour shows in both
            self.alone(task)
        self.together(EXACT, self.sample, ["--dtype", "float32"])

    def together(self, method: str, tasks: Sequence[Task], options: list[str]) -> None:
        if self.known(method):
            return
        after, report = self.folder / method, self.folder / f"{method}.json"
        shutil.rmtree(after, ignore_errors=True)  # of a run that was cut off
        seconds = self.onboarded([task.name for task in tasks], after, ["--report", str(report), *options])
        rows = {row["task"]: row for row in json.loads(report.read_text("utf-8"))}
        found = test_nll(after, tasks)
        for name, value in found.items():
            rows[name]["test"] = value
        self.keep(method, {"seconds": seconds, "tasks": list(rows.values())})

    def alone(self, task: Task) -> None:
        if self.known(ALONE, task.name):
            return
        after = self.folder / ALONE / task.name
        shutil.rmtree(after, ignore_errors=True)
        seconds = self.onboarded([task.name], after, [])
        self.keep(ALONE, {"seconds": seconds, "task": task.name, "test": test_nll(after, [task])[task.name]})

    def onboarded(self, names: list[str], after: Path, options: list[str]) -> float:
        """Seconds of the command."""
        files = [self.files[name] for name in names]
        command = [sys.executable, "-m", "colora", "onboard", str(self.bank), *files, "--output", str(after), *options]
        began = time.monotonic()
        subprocess.run(command, check=True)
        return round(time.monotonic() - began, 1)

    def known(self, method: str, task: str | None = None) -> bool:
        wanted = (self.seed, self.count, method, task)
        return any(
            (row["seed"], row["count"], row["method"], row.get("task")) == wanted for row in read(self.record)["rows"]
        )

    def keep(self, method: str, found: dict[str, Any]) -> None:
        row = {"seed": self.seed, "count": self.count, "method": method, **found}
        write_json(self.record, {"rows": [*read(self.record)["rows"], row], "environment": environment()})
        print(self.seed, method, found.get("task", ""), found["seconds"], flush=True)


def new_tasks(count: int, seed: int) -> list[Task]:
    """Dates in the first `count` languages that write them as no other and are not the bank's, and fit its rows."""
    tokenizer = load_base(DEFAULT_BASE, chat_template=False)[1]
    seen = {date_example(FIRST_DAY, Locale.parse(name)).outputs for name in (*DEMO_LOCALES, "root")}
    found: list[Task] = []
    for name in sorted(name for name in locale_identifiers() if "_" not in name and name != "root"):
        looks = date_example(FIRST_DAY, Locale.parse(name)).outputs
        if looks in seen or len(found) == count:
            continue
        seen.add(looks)
        task = date_task(name, EXAMPLES, 0, TESTS, seed)
        try:
            for split in ("train", "test"):
                encode_tasks([task], tokenizer, split, MAX_LENGTH)
        except TaskFileError:  # longer than the bank's rows
            continue
        found.append(task)
    if len(found) < count:
        raise SystemExit(f"--count: expected at most {len(found)}, found {count}")
    return found


def test_nll(bank: Path, tasks: Sequence[Task]) -> dict[str, float]:
    """Nats per token of the test dates of each task."""
    loaded = load_bank(bank)
    return {task.name: nll_of(loaded, task) for task in tasks}


def read(record: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.read_text("utf-8")) if record.is_file() else {"rows": []}
    return found


def table(record: Path = RECORD) -> str:
    """Markdown: of each way the seconds, and the token NLL of the sample; differences are those task by task."""
    rows = read(record)["rows"]
    lines = [
        "| method | seed | tasks | seconds, all | seconds, a task | token NLL, median (quartiles) | less "
        "than one by one, median (range) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for seed, count in dict.fromkeys((row["seed"], row["count"]) for row in rows):
        own = [row for row in rows if (row["seed"], row["count"]) == (seed, count)]
        alone = {row["task"]: row for row in own if row["method"] == ALONE}
        for row in own:
            if row["method"] != ALONE:
                nll = {one["task"]: one["test"] for one in row["tasks"] if "test" in one}
                lines.append(_line(row["method"], seed, len(row["tasks"]), row["seconds"], nll, alone))
        if alone:
            seconds = sum(row["seconds"] for row in alone.values())
            nll = {name: row["test"] for name, row in alone.items()}
            lines.append(_line(ALONE, seed, len(alone), seconds, nll, {}))
    return "\n".join(lines)


def _line(
    method: str, seed: int, tasks: int, seconds: float, nll: dict[str, float], alone: dict[str, dict[str, Any]]
) -> str:
    both = [name for name in nll if not alone or name in alone]
    values = sorted(nll[name] for name in both)
    spread = ""
    if len(values) > 1:
        first, middle, third = quantiles(values, n=4, method="inclusive")
        spread = f"{middle:.3f} ({first:.3f} to {third:.3f})"
    less = sorted(alone[name]["test"] - nll[name] for name in both) if alone else []
    gain = f"{median(less):+.3f} ({less[0]:+.3f} to {less[-1]:+.3f})" if less else ""
    return f"| {method} | {seed} | {tasks} | {seconds:.0f} | {seconds / tasks:.1f} | {spread} | {gain} |"


if __name__ == "__main__":
    main()
