"""What a bank of very many tasks costs on disk: bytes, seconds and memory of saving, opening, looking up, using.

    python -m benchmarks.adapter.many_tasks_on_disk [--tasks 1000 100000 1000000] [--layers 2] [--rank 2]
    python -m benchmarks.adapter.many_tasks_on_disk --table       # the table of the record, and nothing is run

SmolLM2, q_proj and v_proj of its last layers: with the defaults a core has 16 numbers, so that a million tasks are
mostly their index; with --layers 30 --rank 8 it is mostly rows. Each stage is a process of its
own. `anonymous`: by how much memory that belongs to the process alone has grown when the stage is done; pages of mapped
files are not in it, for the kernel takes them back where there is no room. `peak`: the most of the process, with them.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peft import get_peft_model

from colora import CoLoRAConfig, SavedBank, bank_overview, generate_texts, load_bank, nearest_tasks, store_cores
from colora.bank.generate import Request
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.bank.overview import task_page
from colora.bank.rows.change import append_tasks
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.models.base import load_base

RECORD = Path(__file__).parent / "records" / "many_tasks_on_disk.json"
AT_ONCE, LOOKED_UP, ROOM = 100_000, 1000, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--layers", type=int, default=2, help="of the base that are adapted, the last ones")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the banks")
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    parser.add_argument("--stage", choices=STAGES, help="run this stage of one number alone, and print its row")
    args = parser.parse_args()
    configure_threads(args.threads)
    if args.stage:
        print(json.dumps(measured(args, args.tasks[0])))
        return
    if not args.table:
        setting = {name: getattr(args, name) for name in ("base", "layers", "rank", "threads")}
        write_json(RECORD, {"setting": setting, "rows": run(args), "environment": environment()})
    print(table())


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All stages, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for tasks in args.tasks:
            for stage in STAGES:
                command = [sys.executable, "-m", "benchmarks.adapter.many_tasks_on_disk", "--stage", stage]
                command += ["--tasks", str(tasks), "--folder", folder, "--base", args.base]
                command += [f"--layers={args.layers}", f"--rank={args.rank}", f"--threads={args.threads}"]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    return rows


def measured(args: argparse.Namespace, tasks: int) -> dict[str, Any]:
    """One stage: what it took."""
    folder = args.folder / f"bank-{tasks}"
    work = STAGES[args.stage](args, folder, tasks)  # what is not counted is done now
    before, began = anonymous(), time.perf_counter()
    kept = work()  # alive while the memory is looked at
    seconds, after = time.perf_counter() - began, anonymous()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    files = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    index = files.get("tasks.safetensors", 0)
    found = {"tasks": tasks, "stage": args.stage, "seconds": seconds, "anonymous": after - before, "peak": peak}
    del kept
    return found | {"bytes": sum(files.values()), "index_bytes": index, "files": len(files)}


def anonymous() -> int:
    """Bytes of memory that are this process's alone, as Linux counts them."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "expected Linux, which tells RssAnon"
    return 1024 * int(found[1])


# ---- stages: each prepares, and gives what is measured --------------------------------------------------------------


def _save(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    base = load_base(args.base)[0]
    last = base.config.num_hidden_layers
    config = CoLoRAConfig(
        r=args.rank,
        tasks=[f"user-{number:07d}" for number in range(ROOM)],
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(last - args.layers, last)),
        init_weights=False,
    )
    model = get_peft_model(base, config)
    stored = store_cores(model, ROOM)
    random = np.random.default_rng(0)
    for begin in range(ROOM, tasks, AT_ONCE):  # no list of all names at once
        ids = np.arange(begin, min(begin + AT_ONCE, tasks))
        model.add_tasks([f"user-{number:07d}" for number in ids])
        stored.set_rows(ids, random.standard_normal((len(ids), stored.table.width), dtype=np.float32))
    info = BankInfo(args.base, prompt="{input}\n{output}")
    return lambda: save_bank(model, folder, info)


def _open(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    def work() -> SavedBank:
        saved = SavedBank(folder)
        saved.check()
        return saved

    return work


def _look_up(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    saved = SavedBank(folder)
    names = [f"user-{number:07d}" for number in np.random.default_rng(1).integers(0, tasks, LOOKED_UP)]
    return lambda: [saved.core(saved.index[name]) for name in names]


def _page(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    return lambda: task_page(bank_overview(folder).tasks, max(1, tasks // 200))


def _matching(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    return lambda: task_page(bank_overview(folder).tasks, 1, "user-*99")


def _load(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    return lambda: load_bank(folder)


def _generate(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    return lambda: generate_texts(folder, [Request(f"user-{tasks // 2:07d}", "Hello")], 8)


def _append(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    saved = SavedBank(folder)
    return lambda: append_tasks(saved, {"one more": saved.core(0)}, saved.info)


def _neighbours(args: argparse.Namespace, folder: Path, tasks: int) -> Callable[[], object]:
    return lambda: nearest_tasks(folder)


STAGES: dict[str, Callable[[argparse.Namespace, Path, int], Callable[[], object]]] = {
    "save": _save,
    "open and check": _open,
    f"look up and read {LOOKED_UP} cores": _look_up,
    "a page": _page,
    "a page by pattern": _matching,
    "load on the base": _load,
    "generate for one task": _generate,
    "add a task": _append,
    "neighbours of twelve": _neighbours,
}


def table() -> str:
    """Markdown of what has been recorded."""
    if not RECORD.is_file():
        return ""
    head = ["tasks", "stage", "s", "anonymous, MB", "peak, MB", "bank, MB", "index, bytes a task"]
    lines = [f"| {' | '.join(head)} |", "|---:|---|---:|---:|---:|---:|---:|"]
    for row in json.loads(RECORD.read_text("utf-8"))["rows"]:
        sizes = [f"{row[name] / 1e6:.0f}" for name in ("anonymous", "peak", "bytes")]
        cells = [f"{row['tasks']:,}".replace(",", " "), row["stage"], f"{row['seconds']:.2f}", *sizes]
        lines.append(f"| {' | '.join(cells)} | {row['index_bytes'] / row['tasks']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
