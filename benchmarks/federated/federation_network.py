"""A networked federation on loopback: whether it equals the protocol, leaks anything, and survives being killed.

    python -m benchmarks.federated.federation_network [--part equal] [--part killed] [--output runs/federation-network]

equal: one server and three clients in processes of their own, TLS and keys, the default model, three date tasks; the
    factors and cores against those of the protocol in one process; the server's files and everything that passed
    between clients and server are searched for cores, texts and, to see that the search finds, A.
killed: the same with kill -9 of a client in the middle of a round and its return, then kill -9 of the server in the
    middle of a round and a new run; factors against those of an uninterrupted run.

The record goes to benchmarks/federated/records/federation_network.json.
"""

import argparse
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.federated.leaks import core_slices, factor_slices, found_in, texts
from benchmarks.federated.loopback import Federation, federation
from colora.common.files import write_json, write_text
from colora.common.provenance import environment
from colora.evaluation.records import read_records
from colora.experiments.demo import write_tasks
from colora.federated.simulate import simulate
from colora.federated.storage import load_server
from colora.models.base import DEFAULT_BASE
from colora.training.config_file import load_config

HERE = Path(__file__).parent
TASKS = ("date-es", "date-pt", "date-it")
ROUNDS = 4
LOOK_SECONDS = 0.2  # Flower removes a message once it is fetched, and SQLite then overwrites it with zeros
PAGE, FRAME = 4096, 24  # SQLite's pages, and what stands before each of them in the write-ahead log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=("equal", "killed"), action="append")
    parser.add_argument("--output", type=Path, default=Path("runs/federation-network"))
    parser.add_argument("--record", type=Path, default=HERE / "records" / "federation_network.json")
    args = parser.parse_args()
    folders = write_tasks(args.output / "tasks", 0)
    tasks = {name: folders[name] for name in TASKS}
    run = _run_file(args.output, tasks)
    record = json.loads(args.record.read_text()) if args.record.is_file() else {}
    for part in args.part or ("equal", "killed"):
        shutil.rmtree(args.output / part, ignore_errors=True)
        found = {"equal": equal, "killed": killed}[part](args.output / part, run, tasks)
        record |= {part: found, f"{part} environment": environment()}
        write_json(args.record, record)
        print(json.dumps(found, indent=2))


def equal(folder: Path, run: Path, tasks: dict[str, Path]) -> dict[str, Any]:
    """The networked result against that in one process, and the search."""
    began = time.monotonic()
    with federation(folder, tasks, listen=True) as net:
        net.start()
        ready = time.monotonic()
        with _pages(folder / "server-home") as pages:
            done = net.run(run, seconds=900)
        ended = time.monotonic()
        if done.returncode:
            raise SystemExit(f"{done.stdout}\n{done.stderr}\n{net.logs()}")
    config = load_config(run)
    shutil.rmtree(config.output, ignore_errors=True)
    simulate(config, log=print)
    found: dict[str, Any] = {"seconds to start": round(ready - began), "seconds of the run": round(ended - ready)}
    found |= _differences(folder, Path(config.output))
    assert net.listener is not None
    line = bytes(net.listener.seen)
    database = b"".join(pages)
    found["bytes on the line"], found["different bytes of the server's files"] = len(line), len(database)
    for where, seen in (("on the line", line), ("in the server's files", database)):
        for what in ("cores", "texts", "A"):
            hits = searched = 0
            for name, task in tasks.items():
                states = sorted((folder / "state" / name).glob("*/before-round-*.safetensors"))
                slices = {
                    "cores": lambda s=states: (piece for state in s for piece in core_slices(state)),
                    "texts": lambda t=task: texts(t),
                    "A": lambda s=states: (piece for state in s for piece in factor_slices(state, "A")),
                }[what]()
                found_here, searched_here = found_in(seen, slices)
                hits, searched = hits + found_here, searched + searched_here
            found[f"{what} found {where}"] = f"{hits} of {searched}"
    rounds = read_records(folder / "server" / "rounds.jsonl")
    found["seconds a round"] = [round(record.value, 1) for record in rounds if record.metric == "seconds"]
    return found


def killed(folder: Path, run: Path, tasks: dict[str, Path]) -> dict[str, Any]:
    """kill -9 of a client in a round, its return, kill -9 of the server in a round, and a new run."""
    found: dict[str, Any] = {}
    with federation(folder, tasks) as net:
        net.start()
        victim = TASKS[0]
        overrides = ["federation.deadline=90", "federation.clients=2"]
        first = _Running(net, run, overrides)
        _wait_for(lambda: _training(net, victim), "the client trains")
        net.kill(victim)
        found["client killed in round"] = _round(folder)
        net.start_client(victim)
        before = _round(folder)
        _wait_for(lambda: _accepted(folder, victim) > 0 or first.ended, "the client is back")
        found["client killed; accepted again"] = _accepted(folder, victim) > 0
        found["rounds meanwhile"] = _round(folder) - before
        _wait_for(lambda: _training(net, victim) or first.ended, "the next round")
        found["server killed in round"] = _round(folder)
        net.kill("server")
        first.wait()
        net.start_server()
        second = net.run(run, *overrides, seconds=900)
        found["resumed"] = "going on after round" in second.stdout
        found["run after the crash ended well"] = second.returncode == 0
        if second.returncode:
            print(second.stdout, second.stderr, net.logs())
    rounds = read_records(folder / "server" / "rounds.jsonl")
    found["rounds done"] = _round(folder)
    found["accepted a round"] = [int(record.value) for record in rounds if record.metric == "accepted"]
    found["dropped"] = [
        f"{record.split}, {record.task}: {record.metric}" for record in rounds if record.metric.startswith("dropped: ")
    ]
    found["banks"] = len(list((folder / "state").glob("*/*/bank")))
    return found


@contextmanager
def _pages(folder: Path) -> Iterator[set[bytes]]:
    """All pages that the files of a folder have had, read every `LOOK_SECONDS`.

    Most entries of a database are whole within a page, and a piece of 24 bytes seldom crosses its end.
    """
    found: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            for file in sorted(folder.rglob("*")):
                with suppress(OSError):  # removed meanwhile
                    log = file.name.endswith("-wal")
                    content = file.read_bytes() if file.is_file() else b""
                    step, head = (FRAME + PAGE, FRAME) if log else (PAGE, 0)
                    begin = 32 if log else 0
                    found.update(content[start + head : start + step] for start in range(begin, len(content), step))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


class _Running:
    """`colora federate run` in the background."""

    def __init__(self, net: Federation, run: Path, overrides: list[str]) -> None:
        self.log = open(net.folder / "run.log", "w")  # noqa: SIM115 (closed in wait)
        command = net.run_command(run, *overrides)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=net.environment)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> None:
        timer = threading.Timer(60, self.process.kill)
        timer.start()
        self.process.wait()
        timer.cancel()
        self.log.close()


def _wait_for(happened: Callable[[], bool], what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:g} seconds in vain: {what}")
        time.sleep(0.2)


def _training(net: Federation, name: str) -> bool:
    """Whether the client holds the lock of its core."""
    return any((net.folder / "state" / name).glob("*/lock"))


def _round(folder: Path) -> int:
    state = load_server(folder / "server")
    return 0 if state is None else state.round


def _accepted(folder: Path, name: str) -> int:
    """Rounds in which the server has had this client's loss since it was killed."""
    file = folder / "server" / "rounds.jsonl"
    return sum(row.task == name and row.metric == "train_nll" for row in read_records(file)) if file.is_file() else 0


def _differences(folder: Path, alone: Path) -> dict[str, float]:
    """The largest and the median difference of any factor and any core, over the largest number of its kind.

    Adam moves an entry by about its rate however small the gradient: where that is all rounding, so is the entry.
    """
    whole = load_file(alone / "bank" / "adapter_model.safetensors")
    worst = {"factors": 0.0, "cores": 0.0}
    largest = {"factors": 0.0, "cores": 0.0}
    every: dict[str, list[torch.Tensor]] = {"factors": [], "cores": []}
    for index, name in enumerate(TASKS):
        (bank,) = (folder / "state" / name).glob("*/bank")
        for key, tensor in load_file(bank / "adapter_model.safetensors").items():
            kind = "cores" if "core" in key else "factors"
            expected = whole[key][index : index + 1] if kind == "cores" else whole[key]
            worst[kind] = max(worst[kind], float((tensor - expected).abs().max()))
            every[kind].append((tensor - expected).abs().flatten())
            largest[kind] = max(largest[kind], float(expected.abs().max()))
    found = {f"largest difference of {kind}, relative": worst[kind] / largest[kind] for kind in worst}
    medians = {kind: float(torch.cat(differences).median()) for kind, differences in every.items()}
    return found | {f"median difference of {kind}, relative": medians[kind] / largest[kind] for kind in worst}


def _run_file(output: Path, tasks: dict[str, Path]) -> Path:
    value = {
        "base": DEFAULT_BASE,
        "chat_template": False,
        "output": str(output / "alone"),
        "seed": 0,
        "tasks": [{"name": name, "path": str(path.resolve()), "val": 0} for name, path in tasks.items()],
        "training": {"lr": 2e-3, "core_lr": 6e-2, "max_length": 64, "threads": 1},
        "evaluation": {"metrics": ["nll"]},
        "federation": {
            "rounds": ROUNDS,
            "order": "together",
            "core_steps": 1,
            "local_steps": 2,
            "rows": 4,
            "clients": 3,
            "wait": 120,
            "deadline": 300,
        },
    }
    path = output / "run.yaml"
    write_text(path, yaml.safe_dump(value))
    return path


if __name__ == "__main__":
    main()
