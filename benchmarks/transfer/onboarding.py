"""A new task with sixteen examples: its core alone, against training everything anew, and against a LoRA of its own.

    python -m benchmarks.transfer.onboarding [--seeds 0 1 2] [--threads 2] [--only extended] [--output runs/onboarding]
    python -m benchmarks.transfer.onboarding --table
    python -m benchmarks.transfer.onboarding --choices [--table]     # what the settings were chosen by, on other dates
    python -m benchmarks.transfer.onboarding --clock     # seconds of the command; nothing else should run beside
    python -m benchmarks.transfer.onboarding --sizes     # numbers of a core and of a direction on this base; counted

For each seed a bank of the demo's six languages is trained as in the demo. Galician, Occitan and Asturian are held out:

    before      the base model, zero-shot
    onboarded   `colora onboard` on that bank: A and B frozen (also with 40 steps in place of 20)
    extended    the same with `--extend 16`: A and B get sixteen further directions, what they had is frozen; with and
                without the proximal regularisation ("no pull"), and with these directions trained beside the core
    second      a core alone in the bank that was extended for another new task, as large as that one's (`--rank 24`);
                with the settings for such cores, and with those for smaller ones
    retrained   one bank of the six and this task from the start, or of all nine tasks, where the new tasks help
                each other too; with as many steps and rows of a task
    own LoRA    a plain LoRA, trained for as long as the onboarding took, at the demo's rate

A finished run is never run again. The records go to benchmarks/transfer/records/onboarding.jsonl, or to --record;
"seconds" is the wall time of the onboarding, the loading of the base model included, and of the LoRA that had the same
time; both are longer where other work runs beside. How long the command takes by itself, as a process of its own and
with a thread for each core, is in onboarding_seconds.json. onboarding_choices_h200.jsonl has the choices of seeds 3 to
7 as made on an accelerator, fifteen processes at once.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import set_seed

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_tuner
from colora.bank.load import load_bank
from colora.bank.overview import task_sizes
from colora.common.files import write_json, write_text
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.evaluation.evaluate import evaluate
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import Record, append_records, read_records
from colora.evaluation.settings import EvaluationSettings
from colora.experiments.demo import RANK, RATES
from colora.models.base import DEFAULT_BASE, load_base
from colora.tasks.families.calendar import DEMO_LOCALES, date_tasks
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import AdapterSpec, EvaluationSpec, RunConfig, TaskSpec, TrainingSpec
from colora.training.run import train
from colora.transfer.onboarding.onboard import Settings, onboard

HERE = Path(__file__).parent
RECORD = HERE / "records" / "onboarding.jsonl"
CHOICES_RECORD = HERE / "records" / "onboarding_choices.jsonl"
NEW_LOCALES = ("gl", "oc", "ast")
CLOCKED = {"core alone": [], "--extend 16": ["--extend", "16"]}
CLOCK_RECORD = HERE / "records" / "onboarding_seconds.json"
SIZES_RECORD = HERE / "records" / "onboarding_sizes.json"
SEEDS, CHOICES_SEEDS = [0, 1, 2], [3]
TRAINED = 5e-3
CHOICES = {f"lr {lr:g}": Settings(40, lr=lr) for lr in (0.03, 0.06, 0.12)} | {
    "--extend 16, no pull": Settings(extend=16, proximal=0),
    "--extend 16, no pull, 24 steps": Settings(24, extend=16, proximal=0),
    "--extend 16, no pull, directions trained": Settings(extend=16, proximal=0, factor_lr=TRAINED),
    "--extend 16, pull 0.1": Settings(extend=16, proximal=0.1),
    "--extend 16, pull 0.2": Settings(extend=16, proximal=0.2),
}
H200_RECORD = HERE / "records" / "onboarding_choices_h200.jsonl"
STEPS, ROWS_OF_A_TASK, MAX_LENGTH = 90, 2, 64
ONBOARDED = {
    "onboarded": Settings(),
    "onboarded, 40 steps": Settings(40),
    "extended, no pull": Settings(extend=16, proximal=0),
    "extended, no pull, directions trained": Settings(extend=16, proximal=0, factor_lr=TRAINED),
    "extended": Settings(extend=16),
}
RECORDED_RANK = 8
"""Of the banks in the record: that of the demo when they were trained."""
LARGE = RANK + ONBOARDED["extended"].extend
SECOND = {
    "second of its kind, as small cores": Settings(lr=0.12, proximal=0, rank=LARGE),
    "second of its kind": Settings(rank=LARGE),
}
METHODS = ("before", *ONBOARDED, *SECOND, "retrained, seven tasks", "retrained", "own LoRA")
DIGITS = {name: metric.digits for name, metric in METRICS.items()} | {"seconds": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--choices", action="store_true", help="the settings tried, on the dates of other seeds")
    parser.add_argument("--clock", action="store_true", help="time onboarding alone, by the bank of the first seed")
    parser.add_argument("--sizes", action="store_true", help="count the numbers of a core and of a direction")
    parser.add_argument("--only", nargs="+", help="methods, by their names in the table")
    parser.add_argument("--record", type=Path, help="where the records are, and go")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/onboarding"))
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    known = (*CHOICES, "retrained") if args.choices else METHODS
    if unknown := [one for one in args.only or () if one not in known]:
        parser.error(f"--only: expected some of {'; '.join(known)}; found {'; '.join(unknown)}")
    seeds = args.seeds or (CHOICES_SEEDS if args.choices else SEEDS)
    record = args.record or (CHOICES_RECORD if args.choices else RECORD)
    if args.sizes:
        count_sizes()
    elif args.clock:
        Seed(args.output / f"seed-{seeds[0]}", seeds[0], args.threads, record).clock()
    elif not args.table:
        for seed in seeds:
            Seed(args.output / f"seed-{seed}", seed, args.threads, record).run(args.choices, args.only)
    print(table(args.choices, record))


def count_sizes() -> None:
    """What a task's core and the shared A and B have on this base, at the rank of the banks in the record."""
    model, _ = load_base(DEFAULT_BASE, chat_template=False)
    bank = get_peft_model(model, CoLoRAConfig(r=RECORDED_RANK, tasks=["one"], task_type="CAUSAL_LM"))
    core, shared = task_sizes(bank)
    numbers = {"rank": RECORDED_RANK, "core": core.parameters, "shared": shared.parameters}
    write_json(SIZES_RECORD, numbers | {"environment": environment()})


def task_bytes(method: str) -> str:
    """What a new task costs in float32: its core, and what of A and B is there for it alone."""
    if method == "before":
        return "–"
    counted = json.loads(SIZES_RECORD.read_text("utf-8"))
    rank, extend = counted["rank"], ONBOARDED.get(method, Settings()).extend
    of_core, of_direction = 4 * counted["core"] / rank**2, 4 * counted["shared"] / rank
    if method == "own LoRA":
        return f"{rank * of_direction / 1e6:.1f} MB"
    more = LARGE - RANK if method in SECOND else extend
    core = f"{of_core * (rank + more) ** 2 / 1e3:.0f} kB"
    return f"{core} + {extend * of_direction / 1e6:.1f} MB" if extend else core


class Seed:
    """All runs of one seed."""

    adapter = AdapterSpec(r=RANK, lora_alpha=RANK)
    training: Mapping[str, float] = {}

    def __init__(self, output: Path, seed: int, threads: int | None, record: Path = RECORD) -> None:
        self.output, self.seed, self.threads, self.record = output, seed, threads, record
        self.old = date_tasks(DEMO_LOCALES, seed=seed)
        self.new = date_tasks(NEW_LOCALES, seed=seed)
        for task in (*self.old, *self.new):
            for split in ("train", "test"):
                rows = [{"input": one.input, "output": one.outputs[0]} for one in task.splits[split]]
                lines = "\n".join(json_line(row) for row in rows) + "\n"
                write_text(output / "tasks" / task.name / f"{split}.jsonl", lines)

    def run(self, choices: bool, only: list[str] | None = None) -> None:
        configure_threads(self.threads)
        bank = self.bank("bank", self.old)
        measures: dict[str, Callable[[], list[Record]]] = {
            name: partial(self.onboarded, bank, settings)
            for name, settings in (CHOICES if choices else ONBOARDED).items()
        } | {"retrained": self.retrained}
        if not choices:
            measures = {"before": self.before} | measures
            measures |= {name: partial(self.second, bank, settings) for name, settings in SECOND.items()}
            measures |= {"retrained, seven tasks": self.retrained_with_one, "own LoRA": self.own}
        for name, measure in measures.items():
            if only is None or name in only:
                self.keep(name, measure)

    def clock(self) -> None:
        """Seconds of `colora onboard` as a process of its own, for each new task, the two settings in turn."""
        bank, seconds = self.bank("bank", self.old), dict[str, list[float]]()
        for task in self.new:
            for name, options in CLOCKED.items():
                after = self.output / "clock"
                shutil.rmtree(after, ignore_errors=True)
                command = [sys.executable, "-m", "colora", "onboard", str(bank), str(self.output / "tasks" / task.name)]
                began = time.monotonic()
                subprocess.run([*command, "--output", str(after), *options], check=True)
                seconds.setdefault(name, []).append(round(time.monotonic() - began, 1))
                print(name, task.name, seconds[name][-1], flush=True)
        write_json(CLOCK_RECORD, {"seconds": seconds, "seed": self.seed, "environment": environment()})

    def keep(self, method: str, measure: Callable[[], list[Record]]) -> None:
        known = read_records(self.record) if self.record.is_file() else []
        if any((one.method, one.seed) == (method, self.seed) for one in known):
            print(f"{method}, seed {self.seed}: measured before, reused")
            return
        found = [
            Record("onboarding", method, one.task, one.split, one.metric, one.value, one.n, self.seed)
            for one in measure()
        ]
        append_records(self.record, found)
        write_json(self.record.with_suffix(".environment.json"), environment())
        print(f"{method}, seed {self.seed}: {[round(one.value, 2) for one in found]}", flush=True)

    def bank(self, name: str, tasks: list[Task]) -> Path:
        """A bank trained as the demo's, its tasks' rows a step included."""
        return train(self.config(name, tasks, ROWS_OF_A_TASK * len(tasks)), log=print).bank

    def config(self, name: str, tasks: list[Task], rows: int, steps: int = STEPS, **rates: float) -> RunConfig:
        return RunConfig(
            base=DEFAULT_BASE, chat_template=False, output=str(self.output / name), seed=self.seed,
            tasks=[TaskSpec(name=task.name, path=str((self.output / "tasks" / task.name).resolve()), val=0)
                   for task in tasks],
            adapter=self.adapter,
            training=TrainingSpec(steps=steps, rows=rows, max_length=MAX_LENGTH, save_every=90, keep=1,
                                  threads=self.threads, **(rates or RATES["together"]), **self.training),
            evaluation=EvaluationSpec(max_new_tokens=32),
        )  # fmt: skip

    def onboarded(self, bank: Path, settings: Settings) -> list[Record]:
        return [one for task in self.new for one in self.one_onboarded(bank, task, settings)]

    def second(self, bank: Path, settings: Settings) -> list[Record]:
        """Each new task on the bank that `--extend 16` made for another, which is still there or made once more."""
        records = []
        for index, task in enumerate(self.new):
            other, extended = self.new[index - 1], ONBOARDED["extended"]
            larger = self.output / "onboarded" / _short(extended) / other.name
            if not larger.is_dir():
                onboard(bank, self.output / "tasks" / other.name, output=larger, settings=extended, log=print)
            records += self.one_onboarded(larger, task, settings, "second")
        return records

    def one_onboarded(self, bank: Path, task: Task, settings: Settings, folder: str = "onboarded") -> list[Record]:
        after = self.output / folder / _short(settings) / task.name
        shutil.rmtree(after, ignore_errors=True)  # of a run that was stopped before it was measured
        done = onboard(bank, self.output / "tasks" / task.name, output=after, settings=settings, log=print)
        seconds = Record("", "", task.name, "test", "seconds", done.seconds, 1, self.seed)
        return [*self.measured(after, [task]), seconds]

    def measured(self, bank: Path, tasks: list[Task]) -> list[Record]:
        model, tokenizer, _ = load_bank(bank)
        names = bank_tuner(model).tasks
        return self.evaluated(model, tokenizer, tasks, {task.name: names.index(task.name) for task in tasks})

    def retrained(self) -> list[Record]:
        return self.measured(self.bank("retrained", [*self.old, *self.new]), self.new)

    def retrained_with_one(self) -> list[Record]:
        found = []
        for task in self.new:
            found += self.measured(self.bank(f"retrained-{task.name}", [*self.old, task]), [task])
        return found

    def before(self) -> list[Record]:
        model, tokenizer = load_base(DEFAULT_BASE, chat_template=False)
        return self.evaluated(model, tokenizer, self.new, None)

    def own(self) -> list[Record]:
        """A LoRA for each new task, for the seconds that its onboarding took; the steps that fit are measured first."""
        took = {
            one.task: one.value
            for one in read_records(self.record)
            if (one.method, one.seed, one.metric) == ("onboarded", self.seed, "seconds")
        }
        records = []
        for task in self.new:
            began = time.monotonic()
            self.lora(task, 5, "trial")
            trial = time.monotonic() - began
            began = time.monotonic()
            self.lora(task, 15, "trial-longer")
            step = (time.monotonic() - began - trial) / 10
            steps = max(1, math.floor((took[task.name] - (trial - 5 * step)) / step))
            began = time.monotonic()
            result = self.lora(task, steps, "lora")
            records += self.evaluated(result.model, result.tokenizer, [task], None)
            records.append(Record("", "", task.name, "test", "seconds", time.monotonic() - began, 1, self.seed))
            records.append(Record("", "", task.name, "test", "steps", steps, 1, self.seed))
        return records

    def lora(self, task: Task, steps: int, name: str) -> Any:
        def plain(base: Any, names: list[str]) -> Any:
            set_seed(self.seed)
            return get_peft_model(
                base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            )

        shutil.rmtree(self.output / name / task.name, ignore_errors=True)  # what has ended would be over in no time
        config = self.config(f"{name}/{task.name}", [task], Settings().rows, steps, **RATES["alone"])
        return train(config, make_model=plain, log=print)

    def evaluated(
        self, model: Any, tokenizer: Tokenizer, tasks: list[Task], index: dict[str, int] | None
    ) -> list[Record]:
        settings = EvaluationSettings(max_length=MAX_LENGTH, max_new_tokens=32, batch_rows=48, seed=self.seed)
        return evaluate(model, tokenizer, tasks, settings, index, progress=False).records


def _short(settings: Settings) -> str:
    values = [settings.lr, settings.proximal, settings.steps, settings.rows, settings.extend, settings.factor_lr]
    values += [] if settings.rank is None else [settings.rank]
    return "-".join("default" if value is None else f"{value:g}" for value in values)


def json_line(row: dict[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False)


def table(choices: bool = False, record: Path | None = None) -> str:
    """Markdown: a row for each method, means over new tasks, ± standard deviation over seeds; seconds are medians."""
    record = record or (CHOICES_RECORD if choices else RECORD)
    records = read_records(record)
    titles = " | ".join(metric.title for metric in METRICS.values())
    cost = " a task's bytes |" if record == RECORD else ""
    lines = [f"| method | {titles} | seconds |{cost}", f"|---|{'---:|' * (len(DIGITS) + bool(cost))}"]
    measured = {one.method for one in records}
    for method in [one for one in ((*CHOICES, "retrained") if choices else METHODS) if one in measured]:
        cells = []
        for metric, digits in DIGITS.items():
            own = [one for one in records if (one.method, one.metric) == (method, metric)]
            seeds = sorted({one.seed for one in own})
            means = [fmean(one.value for one in own if one.seed == seed) for seed in seeds]
            if not means:
                cells.append("–")
            elif metric == "seconds":
                cells.append(f"{median(one.value for one in own):.0f}")
            else:
                spread = f" ± {stdev(means):.{digits}f}" if len(means) > 1 else ""
                cells.append(f"{fmean(means):.{digits}f}{spread}")
        lines.append(f"| {method} | {' | '.join(cells)} |" + (f" {task_bytes(method)} |" if cost else ""))
    if record == RECORD and CLOCK_RECORD.is_file():
        lines += ["", clock_line(json.loads(CLOCK_RECORD.read_text("utf-8"))["seconds"])]
    return "\n".join(lines)


def clock_line(seconds: dict[str, list[float]]) -> str:
    """A sentence."""
    told = [f"{name} {', '.join(f'{one:.0f}' for one in own)}" for name, own in seconds.items()]
    return f"Seconds of the whole command for {', '.join(NEW_LOCALES)}: {'; '.join(told)}."


if __name__ == "__main__":
    main()
