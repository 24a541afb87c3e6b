"""Which server when: vLLM with its base alone, with stock LoRAs, with a bank inside, and `colora serve`.

    .venv-vllm/bin/python -m benchmarks.serving.engines [--rounds 3] [--requests 64] [--rank 8] [--output runs/engines]
    python -m benchmarks.serving.engines --table                 # the table of the record, and nothing is run

One bank of 1000 tasks with random factors and cores on SmolLM2 (all linear layers); sixteen clients, prompts of 4 to
24 words, answers of 8 to 32 tokens, tasks by Zipf's law. A server is started for its turn and ended after it, so that
nothing else runs; in each round all have their turn, in another order. First token: the same with streams. Cold: 64
tasks that nobody has asked for yet, one after the other, a token each. Memory: of all processes of a server, what they
share counted once; vLLM is given 1 GiB for keys and values on a CPU. Where there is a GPU, all servers run there, in
bfloat16.

The record goes to benchmarks/serving/records/engines.json, or engines_gpu.json. To be run on a machine that is
otherwise idle.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import torch

from benchmarks.serving.serving import RECORDS, WARM, ask, loras, random_bank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.models.base import DEFAULT_BASE, base_location

TASKS, STOCK, COLD = 1000, (6, 64), 64
BASE = "base"
COLUMNS = ("tokens_per_second", "latency_p50", "latency_p95", "first_token_p50", "start_seconds", "megabytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64, help="of each load")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", default=None, help="by default float32 and bfloat16; bfloat16 on a GPU")
    parser.add_argument("--only", nargs="+", help="servers whose names begin so")
    parser.add_argument("--output", type=Path, default=Path("runs/engines"))
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if not args.table:
        found = compare(args)
        write_json(RECORDS / f"{record_name()}.json", found | {"environment": environment()})
    print(table(record_name()))


def record_name() -> str:
    """Of the file of this machine's figures."""
    return "engines_gpu" if torch.cuda.is_available() else "engines"


# ---- servers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """A server, and what it is asked.

    Attributes:
        name: with the precision, as the table has it.
        command: after Python's `-m`; "PORT" stands for the port.
        tasks: a load for each number of tasks; 0: the base alone.
        has_cold: whether tasks come to it as they are asked for.
    """

    name: str
    command: tuple[str, ...]
    tasks: tuple[int, ...]
    has_cold: bool = True


def contestants(args: argparse.Namespace) -> list[Contestant]:
    """All servers, their banks and LoRAs written."""
    bank = random_bank(args.output / f"bank-{args.rank}", TASKS, args.rank, "all-linear")
    folders = loras(bank, args.output / f"loras-{args.rank}", max(STOCK))
    gpu = torch.cuda.is_available()
    found = []
    for dtype in args.dtypes or (["bfloat16"] if gpu else ["float32", "bfloat16"]):
        vllm = ("vllm.entrypoints.openai.api_server", "--model", base_location(DEFAULT_BASE), "--port", "PORT")
        vllm += ("--served-model-name", BASE, "--dtype", dtype, "--max-model-len", "2048")
        found.append(Contestant(f"vLLM, base alone, {dtype}", vllm, (0,), has_cold=False))
        for number in STOCK:
            adapters = [f"{folder.name}={folder}" for folder in folders[:number]]
            stock = ("--enable-lora", "--max-lora-rank", str(args.rank), "--max-loras", str(number))
            modules = ("--lora-target-modules", *adapted(folders[0]), "--lora-modules", *adapters)
            name = f"vLLM, {number} stock LoRAs, {dtype}"
            found.append(Contestant(name, (*vllm, *stock, *modules), (number,), has_cold=False))
        ours = ("colora", "serve", str(bank), "--port", "PORT", "--dtype", dtype)
        inside = (*ours, "--engine", "vllm", "--max-length", "2048")
        found.append(Contestant(f"vLLM, bank inside, {dtype}", inside, (6, 64, TASKS)))
        found.append(Contestant(f"the same, not compiled, {dtype}", (*inside, "--enforce-eager"), (TASKS,)))
        found.append(Contestant(f"colora serve, {dtype}", ours, (6, TASKS)))
        if dtype == "float32" and not gpu:  # as it was until 2026-11
            threads = ("--threads", str(os.cpu_count() or 1))
            found.append(Contestant(f"the same, a thread for each core, {dtype}", (*ours, *threads), (TASKS,)))
    return [one for one in found if args.only is None or one.name.startswith(tuple(args.only))]


def adapted(folder: Path) -> list[str]:
    """Names of the layers that a plain LoRA is on; without them vLLM keeps room for others too."""
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return sorted({str(name).rpartition(".")[2] for name in config["target_modules"]})


class Server:
    """A server that answers at `url`, and all its processes."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, seconds: float) -> None:
        self.process, self.url, self.start_seconds = process, url, seconds

    def megabytes(self) -> float:
        """Memory of all its processes; what they share counts once."""
        first = psutil.Process(self.process.pid)
        return round(sum(one.memory_full_info().pss for one in (first, *first.children(recursive=True))) / 1e6, 1)


@contextmanager
def started(folder: Path, contestant: Contestant) -> Iterator[Server]:
    """The server; it ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
    command = [sys.executable, "-m", *(port if one == "PORT" else one for one in contestant.command)]
    threads = {} if torch.cuda.is_available() else {"VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}"}
    settings = threads | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    log, url = folder / f"{contestant.name}.log", f"http://127.0.0.1:{port}"
    began = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | settings)
    try:
        while not answers(url):
            if process.poll() is not None:
                raise RuntimeError(log.read_text(errors="replace")[-4000:])
            time.sleep(0.1)
        yield Server(process, f"{url}/v1", round(time.monotonic() - began, 1))
    finally:
        process.terminate()
        process.wait(180)


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


# ---- turns -----------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """All servers in turn, round after round."""
    args.output.mkdir(parents=True, exist_ok=True)
    everyone, turns = contestants(args), []
    for number in range(args.rounds):
        for contestant in random.Random(number).sample(everyone, len(everyone)):
            with started(args.output, contestant) as server:
                for one in turn(server, contestant, args.requests, number):
                    turns.append({"server": contestant.name, "round": number} | one)
                    print(turns[-1], flush=True)
    setting = {"base": DEFAULT_BASE, "rank": args.rank, "target_modules": "all-linear", "clients": 16}
    return {"setting": setting | {"requests": args.requests}, "order": [one.name for one in everyone], "turns": turns}


def turn(server: Server, contestant: Contestant, requests: int, number: int) -> Iterator[dict[str, Any]]:
    """What one server does with each of its loads."""
    for tasks in contestant.tasks:
        model = ("--model", BASE) if not tasks else ()
        ask(server, max(tasks, 1), WARM, 99, *model)
        found = ask(server, max(tasks, 1), requests, number, *model)
        streamed = ask(server, max(tasks, 1), requests // 2, 1000 + number, "--stream", *model)
        yield (
            found | streamed | {"tasks": tasks, "start_seconds": server.start_seconds, "megabytes": server.megabytes()}
        )
    if contestant.has_cold:
        yield {"cold_seconds": cold(server.url, number)}


def cold(url: str, number: int) -> float:
    """Seconds for 64 tasks that were not asked for yet, a token of each, one after the other."""
    first = TASKS - COLD  # Zipf's law has asked for few of the last ones
    began = time.monotonic()
    with httpx.Client(timeout=120) as client:
        for task in range(first, TASKS):
            body = {"model": f"user-{task}", "prompt": f"{number} {task}", "max_tokens": 1, "temperature": 0}
            client.post(f"{url}/completions", json=body).raise_for_status()
    return round(time.monotonic() - began, 2)


# ---- table -----------------------------------------------------------------------------------------------------------


def table(name: str = "engines") -> str:
    """Markdown of what has been recorded: medians over the rounds, the ratio to the base alone within a round."""
    path = RECORDS / f"{name}.json"
    if not path.is_file():
        return ""
    record = json.loads(path.read_text("utf-8"))
    lines = [
        "| server | tasks | tokens/s | of the base | p50, s | p95, s | first token, s | start, s | MB | 64 cold, s |",
        "|---|" + "---:|" * 9,
    ]
    for server in record["order"]:
        own = [one for one in record["turns"] if one["server"] == server]
        colds = [one["cold_seconds"] for one in own if "cold_seconds" in one]
        loads = [one for one in own if "tasks" in one]
        for tasks in dict.fromkeys(one["tasks"] for one in loads):
            some = [one for one in loads if one["tasks"] == tasks]
            middle = {key: median(one[key] for one in some) for key in COLUMNS}
            cells = [server, str(tasks or "–"), f"{middle['tokens_per_second']:.0f}"]
            cells += [ratio_text(some, of_base(record, server)), *(f"{middle[key]:.2f}" for key in COLUMNS[1:4])]
            cells += [f"{middle[key]:.0f}" for key in COLUMNS[4:]]
            cells += [f"{median(colds):.1f}" if colds and tasks == loads[-1]["tasks"] else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def of_base(record: dict[str, Any], server: str) -> dict[int, float]:
    """Tokens a second of the base alone in the same precision, by round."""
    name = f"vLLM, base alone, {server.rpartition(', ')[2]}"
    return {one["round"]: one["tokens_per_second"] for one in record["turns"] if one["server"] == name}


def ratio_text(turns: Sequence[dict[str, Any]], base: dict[int, float]) -> str:
    """The median of the ratios within a round, and how far they go apart."""
    ratios = sorted(one["tokens_per_second"] / base[one["round"]] for one in turns if one["round"] in base)
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else "–"


if __name__ == "__main__":
    main()
