"""A run of a million tasks that is killed, resumed, and equal to the bit to one of the tasks it trained alone.

    python -m benchmarks.adapter.million [--folder SCRATCH] [--cores memory]     # again: goes on where it stopped
    python -m benchmarks.adapter.million --table                                 # the table of the record

A table with a row an example names its task in a column; the numbers of examples of the tasks follow Zipf's law, and
mixing is proportional, so a step meets tasks by Zipf's law. The small default model, rank 4 on all linear layers, short
rows, 8 a step, 2000 steps, one thread. Parts, each in a process of its own and none run twice:

    table        the table is written
    run          `colora train`'s way from the table to the last checkpoint; a process is killed with SIGKILL at
                 moments drawn at random, and another goes on
    alone        a bank with only the tasks that were drawn in its store, started as they start in the run, is trained
                 on the same rows in the same order
    compared     the cores of 100 of these tasks chosen at random, and A and B, to the bit

The record has the steps, the kills, what each checkpoint wrote against what a whole one would, rows, memory and time.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from safetensors.torch import load_file, save_file

from benchmarks.adapter.alone import train_alone
from colora.adapter.model import bank_tuner
from colora.adapter.stored.access import stored_cores
from colora.common.files import write_json, write_text
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.models.base import load_base
from colora.training.config import RunConfig
from colora.training.config_file import load_config
from colora.training.encode import EncodedRun
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.resolve import ResolvedRun, resolve_run
from colora.training.run import trained

RECORD = Path(__file__).parent / "records" / "million.json"
SUBJECTS = ("the lamp", "a boat", "my sister", "the old mill", "rain", "their garden", "this key", "a grey cat")
VERBS = ("waits", "sings", "returns", "is late", "falls", "shines", "sleeps", "breaks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "colora-million")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--cores", default="memory", choices=["memory", "disk"])
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--compared", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=["run", "alone"], help="one part alone, in this process; for itself to use")
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if args.table:
        print(table(args.record))
    elif args.part is not None:
        configure_threads(1)
        run_part(args) if args.part == "run" else alone_part(args)
    else:
        write_json(args.record, everything(args))
        print(table(args.record))


def everything(args: argparse.Namespace) -> dict[str, Any]:
    """All parts that are not done yet, and the record."""
    args.folder.mkdir(parents=True, exist_ok=True)
    setting = {name: getattr(args, name) for name in ("base", "tasks", "steps", "rank", "cores", "kills", "seed")}
    kept = args.folder / "setting.json"
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != setting:
        sys.exit(f"{args.folder} has another setting: name another --folder, or remove it")
    write_json(kept, setting)
    rows = write_table(args)
    with ThreadPoolExecutor() as parts:  # side by side: what is compared is bits, not seconds
        for part in [parts.submit(killed_run, args), parts.submit(in_process, args, "alone")]:
            part.result()
    found = {name: json.loads((args.folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("run", "alone")}
    found["run"]["lives"] = lives(args.folder)
    return {
        "setting": setting | {"rows_of_table": rows, "save_every": args.save_every, "threads": 1},
        **found,
        "compared": compared(args),
        "environment": environment(),
    }


# ---- the table -------------------------------------------------------------------------------------------------------


def zipf_sizes(tasks: int) -> np.ndarray:
    """How many examples each task has, (K,): by Zipf's law with exponent 1, at least one."""
    return np.maximum(1, (tasks / 4 / np.arange(1, tasks + 1)).astype(np.int64))


def write_table(args: argparse.Namespace) -> int:
    """Write the table, in which the rows of all tasks are mixed; how many rows it has."""
    sizes, file = zipf_sizes(args.tasks), args.folder / "table.jsonl"
    if not file.is_file():
        rng = np.random.default_rng(args.seed)
        users = np.repeat(np.arange(args.tasks), sizes)
        rng.shuffle(users)
        drawn = rng.integers(0, 8, (len(users), 2)).tolist()
        partial = file.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as out:
            for number, (user, (subject, verb)) in enumerate(zip(users.tolist(), drawn, strict=True)):
                text = f"{SUBJECTS[subject]} {VERBS[verb]} {number % 1000}"
                answer = f"{VERBS[(verb + user) % 8]} {user % 97}"
                out.write(json.dumps({"user_id": f"user-{user}", "input": text, "output": answer}) + "\n")
        partial.rename(file)
    return int(sizes.sum())


def config_of(args: argparse.Namespace) -> RunConfig:
    """The run file, written and read."""
    training = {"steps": args.steps, "rows": 8, "save_every": args.save_every, "keep": 2, "cores": args.cores}
    value = {
        "base": args.base,
        "output": str(args.folder / "out"),
        "seed": args.seed,
        "prompt": "{input} -> {output}",
        "tasks_from": {"path": "table.jsonl", "task": "user_id"},
        "adapter": {"r": args.rank},
        "training": training | {"mixing": "proportional", "max_length": 48, "threads": 1, "log_every": 10},
        "evaluation": {"rows": 8},
    }
    file = args.folder / "run.yaml"
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    return load_config(file)


# ---- the run, and its kills ------------------------------------------------------------------------------------------


def killed_run(args: argparse.Namespace) -> None:
    """Processes that go on from one another: some are killed, each at a step drawn at random, in the midst of it."""
    if (args.folder / "run.json").is_file():
        return
    rng = random.Random(args.seed)
    moments = sorted(rng.sample(range(args.steps // 10, args.steps - args.steps // 10), args.kills))
    waits = [rng.random() for _ in moments]
    for number, (moment, wait) in enumerate(zip(moments, waits, strict=True)):
        if not (args.folder / f"killed-{number}.json").is_file():
            kill_at(args, number, moment, wait)
    in_process(args, "run")


def kill_at(args: argparse.Namespace, number: int, moment: int, wait: float) -> None:
    """Start the run, or go on with it, and kill the process some time after it has begun this step."""
    process = subprocess.Popen(command(args, "run"))
    progress = args.folder / "progress.txt"
    try:
        while process.poll() is None:
            begun = int(progress.read_text() or 0) if progress.is_file() else 0
            if begun >= moment:
                time.sleep(wait * 0.5)  # of a step or of a checkpoint
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
    finally:
        process.kill()
    code = process.wait()
    if code != -signal.SIGKILL:
        sys.exit(f"the run ended by itself with {code}, before step {moment}")
    write_json(args.folder / f"killed-{number}.json", {"wanted_step": moment, "step": int(progress.read_text())})


def in_process(args: argparse.Namespace, part: str) -> None:
    """A part in a process of its own, unless it is done."""
    if not (args.folder / f"{part}.json").is_file():
        subprocess.run(command(args, part), check=True)


def command(args: argparse.Namespace, part: str) -> list[str]:
    """What runs a part alone."""
    given = {name: value for name, value in vars(args).items() if name not in ("part", "table")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return [sys.executable, "-m", "benchmarks.adapter.million", f"--part={part}", *options]


def lives(folder: Path) -> list[dict[str, Any]]:
    """What each process of the run left behind: where it was killed."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("killed-*.json"))]


def run_part(args: argparse.Namespace) -> None:
    """The run to its end, or until somebody kills this process."""
    began, before = time.perf_counter(), psutil.Process().memory_info().rss
    config = config_of(args)
    run = resolve_run(config)
    read = time.perf_counter() - began
    after_reading = psutil.Process().memory_info().rss
    model, tokenizer = load_base(config.base)
    watch(args.folder)
    trainer, run = trained(run, model, tokenizer, log=print)
    save_drawn(args, run, trainer.data, trainer)
    write_json(
        args.folder / "run.json",
        {
            "steps": trainer.state.global_step,
            "rows": trainer.state.global_step * config.training.rows,
            "tasks": len(run.names),
            "seconds_to_read": read,
            "bytes_a_task_of_reading": (after_reading - before) / len(run.names),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "seconds_of_the_last_process": time.perf_counter() - began,
            "checkpoints": checkpoints(args.folder),
        },
    )


def watch(folder: Path) -> None:
    """Write down each step that begins, and what each checkpoint wrote."""
    hold, save = CoLoRATrainer.get_batch_samples, CoLoRATrainer._save_checkpoint

    def begun(self: CoLoRATrainer, *given: Any) -> Any:
        write_text(folder / "progress.txt", str(self.state.global_step + 1))  # whole, whenever it is killed
        return hold(self, *given)

    def saved(self: CoLoRATrainer, *given: Any) -> None:
        known = set(self.core_files.folder.glob("*.safetensors"))
        began = time.perf_counter()
        save(self, *given)
        new = set(self.core_files.folder.glob("*.safetensors")) - known
        stored = stored_cores(self.model)
        assert stored is not None
        row = stored.table.width * stored.table.dtype.itemsize
        entry = {
            "step": self.state.global_step,
            "bytes_of_cores": sum(file.stat().st_size for file in new),
            "bytes_of_the_rest": size_of(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"),
            "bytes_of_all_tasks": row * len(stored),
            "bytes_of_all_trained": row * int(stored.table.written(np.arange(len(stored))).sum()),
            "seconds": time.perf_counter() - began,
        }
        with (folder / "checkpoints.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")

    CoLoRATrainer.get_batch_samples = begun  # type: ignore[method-assign]
    CoLoRATrainer._save_checkpoint = saved  # type: ignore[method-assign]


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    """What each checkpoint wrote, of all processes; of a step that was saved twice both."""
    lines = (folder / "checkpoints.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def save_drawn(args: argparse.Namespace, run: ResolvedRun, data: EncodedRun, trainer: CoLoRATrainer) -> None:
    """Keep what is compared: A and B, and the cores of some of the tasks that were drawn."""
    drawn = np.unique(np.concatenate(list(data.mixture.tasks())))
    names = chosen([run.names[task] for task in drawn.tolist()], args)
    save_file(tensors(trainer, names), args.folder / "run.safetensors")
    write_json(args.folder / "chosen.json", {"names": names, "drawn": len(drawn)})


def chosen(drawn: list[str], args: argparse.Namespace) -> list[str]:
    """The tasks that are compared, in order; either part can tell them, so both may run at the same time."""
    picked = np.random.default_rng(args.seed + 1).choice(len(drawn), min(args.compared, len(drawn)), replace=False)
    return [drawn[place] for place in sorted(picked.tolist())]


def tensors(trainer: CoLoRATrainer, names: list[str]) -> dict[str, torch.Tensor]:
    """A, B, and the cores of these tasks."""
    shared = {name: one.detach().clone() for name, one in trainer.model.named_parameters() if one.requires_grad}
    shared = {name: one for name, one in shared.items() if "colora_core" not in name}
    tuner = bank_tuner(trainer.model)
    return shared | {f"{name} {key}": one for name in names for key, one in tuner.core(name).items()}


def alone_part(args: argparse.Namespace) -> None:
    """The drawn tasks alone; without a break."""
    began = time.perf_counter()
    trainer = train_alone(config_of(args), args.folder / "alone")
    names = chosen(list(trainer.task_names), args)
    save_file(tensors(trainer, names), args.folder / "alone.safetensors")
    write_json(args.folder / "alone.json", {"tasks": len(trainer.task_names), "seconds": time.perf_counter() - began})


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """Whether A, B and the chosen cores are the same to the bit."""
    one, other = (load_file(args.folder / f"{name}.safetensors") for name in ("run", "alone"))
    kept = json.loads((args.folder / "chosen.json").read_text(encoding="utf-8"))
    differing = [name for name in one.keys() | other.keys() if name not in one or name not in other]
    differing += [name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])]
    return {
        "tasks_drawn": kept["drawn"],
        "tasks_compared": len(kept["names"]),
        "tensors": len(one),
        "differing": sorted(differing),
        "equal": not differing,
    }


def table(record: Path = RECORD) -> str:
    """Markdown: what was trained, where it was killed, what checkpoints wrote, and what was compared."""
    found = json.loads(record.read_text(encoding="utf-8"))
    setting, run, same = found["setting"], found["run"], found["compared"]
    kills = " and ".join(f"{life['step']}" for life in run["lives"])
    wrote = sorted(one["bytes_of_cores"] / 1e6 for one in run["checkpoints"])
    last = run["checkpoints"][-1]
    whole, trained_bytes = last["bytes_of_all_tasks"] / 1e9, last["bytes_of_all_trained"] / 1e6
    equal = "all equal to the bit" if same["equal"] else f"{len(same['differing'])} differ"
    rows = {
        "tasks": f"{run['tasks']:,}".replace(",", " "),
        "examples in the table": f"{setting['rows_of_table']:,}".replace(",", " "),
        "steps, of eight rows": run["steps"],
        "killed in the midst of step": kills,
        "tasks that the steps drew": same["tasks_drawn"],
        "tasks compared with a run of the drawn tasks alone": f"{same['tasks_compared']}; with A and B "
        f"{same['tensors']} tensors: {equal}",
        "cores that a checkpoint wrote, MB": f"{wrote[0]:.0f} to {wrote[-1]:.0f}",
        "all trained cores with their moments at the end, MB": f"{trained_bytes:.0f}",
        "all cores with their moments, GB": f"{whole:.0f}",
        "peak memory of the last process, GB": f"{run['peak_bytes'] / 1e9:.1f}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


if __name__ == "__main__":
    main()
