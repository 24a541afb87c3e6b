"""More examples for a task that a bank has: its core alone trained further, at several rates, against training anew.

    python -m benchmarks.transfer.updating [--seeds 0 1 2] [--threads 1] [--output runs/updating]
    python -m benchmarks.transfer.updating --table

For each seed a bank of the demo's six languages is trained as in the demo, sixteen dates each. Then each language gets
24 further dates, of which `colora update` sets six aside. "anew": a bank of all forty each, from the start. Token NLL
of 24 test dates. The rate was chosen on seed 3 (--choices); a run that has ended is not run again.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from colora.bank.layout import BankInfo
from colora.bank.load import load_bank
from colora.common.files import write_json, write_text
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.experiments.demo import RANK, RATES
from colora.models.base import DEFAULT_BASE
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import encode_tasks
from colora.tasks.families.calendar import DEMO_LOCALES, date_tasks
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import AdapterSpec, RunConfig, TaskSpec, TrainingSpec
from colora.training.run import train
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import batches_of
from colora.transfer.onboarding.start import mean_nll
from colora.transfer.onboarding.update import LR, update

RECORD = Path(__file__).parent / "records" / "updating.json"
FIRST, MORE, MAX_LENGTH = 16, 24, 64
RATES_TRIED = (0.01, 0.03, 0.06, 0.12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choices", action="store_true", help="the rates tried, on the dates of seed 3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/updating"))
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if not args.table:
        configure_threads(args.threads)
        for seed in [3] if args.choices else args.seeds:
            run(args.output / f"seed-{seed}", seed, RATES_TRIED if args.choices else (LR,), args.threads)
    print(table())


def run(folder: Path, seed: int, rates: tuple[float, ...], threads: int) -> None:
    """All that one seed is measured on."""
    tasks = date_tasks(DEMO_LOCALES, train=FIRST + MORE, seed=seed)
    bank = trained(folder / "bank", tasks, slice(FIRST), seed, threads)
    keep(seed, "before", {task.name: {"nll": nll(bank, task)} for task in tasks})
    for lr in rates:
        if not known(seed, f"updated, {lr:g}"):
            keep(seed, f"updated, {lr:g}", {task.name: updated(folder, bank, task, lr) for task in tasks})
    if seed != 3 and not known(seed, "anew"):
        anew = trained(folder / "anew", tasks, slice(None), seed, threads)
        keep(seed, "anew", {task.name: {"nll": nll(anew, task)} for task in tasks})


def trained(folder: Path, tasks: list[Task], part: slice, seed: int, threads: int | None) -> Path:
    """A bank of some of the tasks' examples, trained as the demo's."""
    sources = [TaskSpec(name=task.name, path=written(folder, task, part), val=0, test=0) for task in tasks]
    training = TrainingSpec(
        steps=90,
        rows=2 * len(tasks),
        max_length=MAX_LENGTH,
        save_every=90,
        keep=1,
        threads=threads,
        **RATES["together"],
    )
    adapter = AdapterSpec(r=RANK, lora_alpha=RANK)
    config = RunConfig(
        base=DEFAULT_BASE, chat_template=False, output=str(folder), seed=seed, tasks=sources, adapter=adapter,
        training=training,
    )  # fmt: skip
    return train(config, log=print).bank


def written(folder: Path, task: Task, part: slice) -> str:
    """The file of some of a task's training examples."""
    path = folder.parent / f"{folder.name}-tasks" / f"{task.name}.jsonl"
    rows = [{"input": one.input, "output": one.outputs[0]} for one in task.splits["train"][part]]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path.resolve())


def updated(folder: Path, bank: Path, task: Task, lr: float) -> dict[str, Any]:
    """What the further examples of one task came to."""
    more, output = written(folder / "more", task, slice(FIRST, None)), folder / "updated" / f"{lr:g}" / task.name
    shutil.rmtree(output, ignore_errors=True)  # of a run that was stopped
    found = update(bank, more, output=output, settings=Settings(lr=lr), log=print)
    after = nll(output if found.kept else bank, task)
    return {"nll": after, "kept": found.kept, "gain": found.before - found.after, "seconds": found.seconds}


def nll(bank: Path, task: Task) -> float:
    """Nats per token of a task's test dates."""
    return nll_of(load_bank(bank), task)


def nll_of(loaded: tuple[Any, Tokenizer, BankInfo], task: Task) -> float:
    """The same of a bank that is loaded."""
    model, tokenizer, info = loaded
    data = encode_tasks([task], tokenizer, "test", info.max_length, False, {task.name: 0})
    return mean_nll(model, batches_of(data, TaskCollator(tokenizer.pad_token_id)), model.tasks.index(task.name))


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {"rows": []}
    return found


def known(seed: int, method: str) -> bool:
    return any((row["seed"], row["method"]) == (seed, method) for row in record()["rows"])


def keep(seed: int, method: str, tasks: dict[str, dict[str, Any]]) -> None:
    if not known(seed, method):
        rows = [*record()["rows"], {"seed": seed, "method": method, "tasks": tasks}]
        write_json(RECORD, {"rows": rows, "environment": environment()})
        print(seed, method, fmean(one["nll"] for one in tasks.values()), flush=True)


def table() -> str:
    """Markdown: means over tasks, ± standard deviation over seeds; of seconds the median. Seeds that are done alone."""
    done = {row["seed"] for row in record()["rows"] if row["method"] == "anew"} | {3}
    rows = [row for row in record()["rows"] if row["seed"] in done]
    lines = [
        "| method | seeds | token NLL | kept | gain on what was set aside | seconds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for choices in (False, True):
        for method in dict.fromkeys(row["method"] for row in rows if (row["seed"] == 3) == choices):
            own = [row for row in rows if row["method"] == method and (row["seed"] == 3) == choices]
            seeds = ", ".join(str(row["seed"]) for row in own)
            cells = [f"{method}{', choosing' if choices else ''}", seeds, _mean(own, "nll", 3)]
            kept = [one["kept"] for row in own for one in row["tasks"].values() if "kept" in one]
            cells += [f"{sum(kept)} of {len(kept)}" if kept else "", _mean(own, "gain", 3)]
            seconds = [one["seconds"] for row in own for one in row["tasks"].values() if "seconds" in one]
            cells += [f"{median(seconds):.0f}" if seconds else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]], field: str, digits: int) -> str:
    means = [
        fmean(one[field] for one in row["tasks"].values()) for row in rows if field in next(iter(row["tasks"].values()))
    ]
    if not means:
        return ""
    return f"{fmean(means):.{digits}f}" + (f" ± {stdev(means):.{digits}f}" if len(means) > 1 else "")


if __name__ == "__main__":
    main()
