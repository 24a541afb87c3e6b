"""The cost of serving many tasks: throughput, latency and memory, against stock PEFT and one merged model.

    python -m benchmarks.serving.serving [--part compare|thousand|large|soak] [--rounds 3] [--output runs/serving]

compare    one bank of 1000 tasks on SmolLM2 (rank 16, all linear layers), asked for 1, 8, 64 and 1000 of them by
           Zipf's law by sixteen clients at once; one task merged into the base, as the upper bound; stock PEFT with 8
           adapters, all in one batch (adapter_names) and a batch of one adapter at a time (set_adapter). All servers
           run at once and are asked in turn, round after round; ratios are taken within a round.
thousand   one task and all 1000 of that bank in turn, with nothing else running: the cost of many tasks with less noise
           than above.
large      a bank of 200 000 tasks (rank 4, q_proj alone) with 1000 cores in memory, asked for all alike, so that
           nearly every request reads its core from disk; in turn with 1000 tasks of the same bank.
soak       minutes of load (--seconds) on the bank of 200 000 tasks with 500 cores in memory, all asked for alike;
           memory every half minute. It does not measure speed, and may run beside other work.

Factors and cores are random, so that answers go on to their random lengths of 8 to 32 tokens; the same for all. The
records go to benchmarks/serving/records/serving_PART.json. To be run on a machine that is otherwise idle.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import torch
from peft import get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.bank.export import export_lora
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.models.base import DEFAULT_BASE, load_base

RECORDS = Path(__file__).parent / "records"
TASKS, LORAS = (1, 8, 64, 1000), 8
LARGE, RESIDENT, SOAKED = 200_000, 1000, 500
WARM = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", choices=list(PARTS), default="compare")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96, help="of each turn")
    parser.add_argument("--seconds", type=float, default=600, help="of the soak")
    parser.add_argument("--output", type=Path, default=Path("runs/serving"))
    parser.add_argument("--table", action="store_true", help="print the tables of the records, and run nothing")
    args = parser.parse_args()
    if not args.table:
        found = PARTS[args.part](args)
        write_json(RECORDS / f"serving_{args.part}.json", found | {"environment": environment()})
    print(table())


# ---- banks -----------------------------------------------------------------------------------------------------------


def random_bank(folder: Path, tasks: int, r: int, target: Any) -> Path:
    """A bank of random factors and cores, made once."""
    if (folder / "adapter_config.json").is_file():
        return folder
    model, _ = load_base(DEFAULT_BASE)
    torch.manual_seed(0)
    # Small updates: outputs stay similar to text, and rows end neither early nor all at once.
    config = CoLoRAConfig(
        r=r,
        lora_alpha=r / 20,
        target_modules=target,
        tasks=[f"user-{number}" for number in range(tasks)],
        init_weights=False,
    )
    save_bank(get_peft_model(model, config), folder, BankInfo(DEFAULT_BASE, chat_template=False))
    return folder


def loras(bank: Path, folder: Path, number: int = LORAS) -> list[Path]:
    """The first tasks of a bank as plain LoRAs."""
    paths = [folder / f"user-{task}" for task in range(number)]
    if not all((path / "adapter_config.json").is_file() for path in paths):
        from colora.bank.load import load_bank

        model, _, _ = load_bank(bank)
        for path in paths:
            export_lora(model, path.name, path)
    return paths


# ---- servers ---------------------------------------------------------------------------------------------------------


class Server:
    """A server as a process."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, seconds: float) -> None:
        self.process, self.url, self.start_seconds = process, url, seconds

    def megabytes(self) -> float:
        """Resident memory."""
        return round(psutil.Process(self.process.pid).memory_info().rss / 1e6, 1)

    def own_megabytes(self) -> float:
        """Resident memory without pages of mapped files, which the system takes back when it needs them."""
        found = psutil.Process(self.process.pid).memory_info()
        return round((found.rss - found.shared) / 1e6, 1)

    def metric(self, name: str) -> float:
        """The value of one of /metrics, 0 where there is none."""
        found = re.search(
            rf"^colora_{name} ([0-9.e+-]+)$", httpx.get(self.url.replace("/v1", "/metrics")).text, re.MULTILINE
        )
        return float(found[1]) if found else 0.0


@contextmanager
def started(folder: Path, name: str, *command: str) -> Iterator[Server]:
    """A server that ends with the block."""
    log, began = folder / f"{name}.log", time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file)
    try:
        while not (found := re.search(r"tasks at (\S+/v1)", log.read_text(errors="replace"))):
            if process.poll() is not None:
                raise RuntimeError(log.read_text(errors="replace"))
            time.sleep(0.1)
        yield Server(process, found[1], round(time.monotonic() - began, 1))
    finally:
        process.terminate()
        process.wait(120)


def ours(folder: Path, bank: Path, *options: str) -> Any:
    """`colora serve`."""
    return started(folder, f"colora-{bank.name}", "colora", "serve", str(bank), "--port", "0", *options)


def ask(server: Server, tasks: int, requests: int, seed: int, *options: str) -> dict[str, Any]:
    """A load from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving.serving_load", server.url, "--tasks", str(tasks), "--requests"]
    printed = subprocess.run(
        [*command, str(requests), "--seed", str(seed), *options], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(printed.stdout)
    if set(found["statuses"]) != {"200"}:
        raise RuntimeError(f"answers that are none: {found['statuses']}")
    return found


# ---- parts -----------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Throughput and latency of all candidates in turn."""
    bank = random_bank(args.output / "bank-1000", max(TASKS), 16, "all-linear")
    folders = [str(path) for path in loras(bank, args.output / "loras")]
    turns: list[dict[str, Any]] = []
    with ExitStack() as stack:
        rivals = {
            "merged": ["merged", str(bank)],
            "PEFT, adapter_names": ["mixed", *folders],
            "PEFT, set_adapter": ["switching", *folders],
        }
        servers = {"colora": stack.enter_context(ours(args.output, bank))} | {
            name: stack.enter_context(started(args.output, command[0], "benchmarks.serving.serving_rivals", *command))
            for name, command in rivals.items()
        }
        candidates = [("merged", 1), *(("colora", tasks) for tasks in TASKS)]
        candidates += [(name, LORAS) for name in rivals if name != "merged"]
        for name, tasks in candidates:
            ask(servers[name], tasks, WARM, 99)
        for round_number in range(args.rounds):
            for name, tasks in candidates:
                found = ask(servers[name], tasks, args.requests, round_number)
                memory = servers[name].megabytes()
                turns.append({"contestant": name, "round": round_number, "megabytes": memory, **found})
                print(turns[-1], flush=True)
    setting = {"base": DEFAULT_BASE, "rank": 16, "target_modules": "all-linear", "clients": 16, "rows": 16}
    return {"setting": setting, "turns": turns}


def thousand(args: argparse.Namespace) -> dict[str, Any]:
    """One task and all of them in turn."""
    bank = random_bank(args.output / "bank-1000", max(TASKS), 16, "all-linear")
    turns = []
    with ours(args.output, bank) as server:
        ask(server, max(TASKS), WARM, 99)
        for round_number in range(args.rounds):
            for tasks in sorted((1, max(TASKS)), reverse=round_number % 2 == 1):
                found = ask(server, tasks, args.requests, round_number)
                turns.append({"round": round_number, "megabytes": server.megabytes(), **found})
                print(turns[-1], flush=True)
    return {"turns": turns}


def large(args: argparse.Namespace) -> dict[str, Any]:
    """A bank of which a small part is in memory."""
    bank = random_bank(args.output / "bank-200000", LARGE, 4, ["q_proj"])
    turns = []
    with ours(args.output, bank, "--resident", str(RESIDENT)) as server:
        start = {"start_seconds": server.start_seconds, "megabytes": server.megabytes()}
        ask(server, RESIDENT, WARM, 99, "--uniform")
        for round_number in range(args.rounds):
            for tasks in (RESIDENT // 2, LARGE):
                before = [server.metric(name) for name in COUNTED]
                found = ask(server, tasks, 4 * args.requests, round_number, "--uniform")
                counted = [round(server.metric(name) - old, 6) for name, old in zip(COUNTED, before, strict=True)]
                turns.append(
                    {
                        "round": round_number,
                        "megabytes": server.megabytes(),
                        **dict(zip(COUNTED, counted, strict=True)),
                        **found,
                    }
                )
                print(turns[-1], flush=True)
    size = (bank / "adapter_model.safetensors").stat().st_size
    setting = {
        "base": DEFAULT_BASE,
        "rank": 4,
        "target_modules": ["q_proj"],
        "tasks": LARGE,
        "resident": RESIDENT,
        "bank_bytes": size,
    }
    return {"setting": setting, "start": start, "turns": turns}


COUNTED = ("core_hits_total", "core_misses_total", "core_load_seconds_sum")


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Memory under load."""
    bank = random_bank(args.output / "bank-200000", LARGE, 4, ["q_proj"])
    samples = []
    with ours(args.output, bank, "--resident", str(SOAKED)) as server:
        command = [
            sys.executable,
            "-m",
            "benchmarks.serving.serving_load",
            server.url,
            "--tasks",
            str(LARGE),
            "--uniform",
        ]
        asking = subprocess.Popen([*command, "--seconds", str(args.seconds)], stdout=subprocess.PIPE, text=True)
        began = time.monotonic()
        while asking.poll() is None:
            if len(samples) <= (time.monotonic() - began) / 30:
                samples.append(
                    {
                        "second": round(time.monotonic() - began),
                        "megabytes": server.megabytes(),
                        "own_megabytes": server.own_megabytes(),
                        "resident_cores": server.metric("resident_cores"),
                        "core_misses_total": server.metric("core_misses_total"),
                    }
                )
                print(samples[-1], flush=True)
            time.sleep(1)
        printed, _ = asking.communicate()
    return {"load": json.loads(printed), "samples": samples}


PARTS = {"compare": compare, "thousand": thousand, "large": large, "soak": soak}


# ---- tables ----------------------------------------------------------------------------------------------------------


def table() -> str:
    """Markdown of what has been recorded: medians over the rounds, ratios within a round."""
    parts = [compare_table(), thousand_line(), large_table(), soak_line()]
    return "\n\n".join(part for part in parts if part)


def read(part: str) -> dict[str, Any] | None:
    """A record."""
    path = RECORDS / f"serving_{part}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def compare_table() -> str:
    """A row for each candidate."""
    found = read("compare")
    if found is None:
        return ""
    turns: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for turn in found["turns"]:
        turns.setdefault((turn["contestant"], turn["tasks"]), []).append(turn)
    one = [turn["tokens_per_second"] for turn in turns["colora", 1]]
    lines = [
        "| server | tasks | tokens/s | of ours with one task | p50, s | p95, s | memory, MB |",
        "|---|" + "---:|" * 6,
    ]
    for (name, tasks), own in turns.items():
        rates = [turn["tokens_per_second"] for turn in own]
        ratio = median(rate / base for rate, base in zip(rates, one, strict=True))
        cells = [f"{median(rates):.1f}", f"{ratio:.2f}"]
        cells += [f"{median(turn[key] for turn in own):.2f}" for key in ("latency_p50", "latency_p95")]
        lines.append(f"| {name} | {tasks} | {' | '.join(cells)} | {max(turn['megabytes'] for turn in own):.0f} |")
    return "\n".join(lines)


def thousand_line() -> str:
    """A sentence."""
    found = read("thousand")
    if found is None:
        return ""
    rates: dict[int, dict[int, float]] = {}
    for turn in found["turns"]:
        rates.setdefault(turn["tasks"], {})[turn["round"]] = turn["tokens_per_second"]
    one, all_of_them = rates[1], rates[max(TASKS)]
    ratios = sorted(all_of_them[number] / one[number] for number in one)
    return (
        f"One task and 1000 in turn, {len(ratios)} rounds: {median(one.values()):.1f} and "
        f"{median(all_of_them.values()):.1f} tokens/s; ratio within a round {median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})."
    )


def large_table() -> str:
    """A row for few tasks and one for all."""
    found = read("large")
    if found is None:
        return ""
    lines = [
        "| tasks asked for | tokens/s | cores found | cores fetched | ms to put one in place | memory, MB |",
        "|---:|" + "---:|" * 5,
    ]
    for tasks in sorted({turn["tasks"] for turn in found["turns"]}):
        own = [turn for turn in found["turns"] if turn["tasks"] == tasks]
        misses = sum(turn["core_misses_total"] for turn in own)
        each = 1000 * sum(turn["core_load_seconds_sum"] for turn in own) / max(misses, 1)
        lines.append(
            f"| {tasks} | {median(turn['tokens_per_second'] for turn in own):.1f} | "
            f"{sum(turn['core_hits_total'] for turn in own):.0f} | {misses:.0f} | {each:.2f} | "
            f"{max(turn['megabytes'] for turn in own):.0f} |"
        )
    return "\n".join(lines)


def soak_line() -> str:
    """A sentence."""
    found = read("soak")
    if found is None:
        return ""
    samples = found["samples"]
    load, end = found["load"], samples[-1]
    settled = next(one["own_megabytes"] for one in samples if one["second"] >= 120)
    last = [one["own_megabytes"] for one in samples if one["second"] >= end["second"] - 600]
    return (
        f"{load['requests']} requests in {load['seconds']:.0f} s for {LARGE} tasks, {SOAKED} cores in memory, "
        f"{end['core_misses_total']:.0f} fetched: {settled:.1f} MB after two minutes, {min(last):.1f} to "
        f"{max(last):.1f} MB in the last ten, and {end['megabytes'] - end['own_megabytes']:.0f} MB of mapped files."
    )


if __name__ == "__main__":
    main()
