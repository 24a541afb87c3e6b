"""An attack on a server from a client of its own, while an innocent tenant asks the same question again and again.

    python -m benchmarks.serving.attack [--only WORDS] [--output runs/attack]

A real server process on loopback, SmolLM2 with a bank of four tasks, keys and a state folder; it ends with the run.
One tenant, or a stranger, attacks it in the ways of `benchmarks.serving.attacks`, one after the other. Recorded of
each: how the attacker was answered, the memory of the server before, at its most, and after, the innocent's latencies,
whether its answers were those without an attack, and whether anything of it stood in an answer to the attacker or in
the log. The record goes to benchmarks/serving/records/attack.json.
"""

import argparse
import json
import multiprocessing
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty
from statistics import median
from typing import Any

import httpx

from benchmarks.serving.attacks import ATTACKS, FORGED, Target
from benchmarks.serving.serving import Server, random_bank, started
from colora.bank.core_file import extract_core
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.serving.access import add_tenant
from colora.serving.quotas import Limits

RECORD = Path(__file__).parent / "records" / "attack.json"
SECRET = "the-innocents-own-words-7Q"
CALM_SECONDS, AFTER_SECONDS = 20.0, 25.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="attacks whose names have these words; nothing is recorded")
    parser.add_argument("--output", type=Path, default=Path("runs/attack"))
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if not args.table:
        found = run(args.output, [name for name in ATTACKS if args.only in name])
        if not args.only:
            write_json(RECORD, found | {"environment": environment()})
            print(table())


# ---- the innocent ----------------------------------------------------------------------------------------------------


def innocent(port: int, key: str, told: Any) -> None:
    """Ask and ask, in a process of its own; tell each latency and answer."""
    url, headers = f"http://127.0.0.1:{port}/v1/completions", {"Authorization": f"Bearer {key}"}
    body = {"model": "user-0", "prompt": f"{SECRET}: once upon a time", "max_tokens": 8, "temperature": 0}
    while True:
        began = time.monotonic()
        try:
            answer = httpx.post(url, json=body, headers=headers, timeout=60)
            text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else str(answer.status_code)
        except httpx.HTTPError as error:
            text = type(error).__name__
        told.put((time.monotonic() - began, text))
        time.sleep(0.1)


def drained(told: Any) -> list[tuple[float, str]]:
    """All that was told since the last time."""
    found = []
    try:
        while True:
            found.append(told.get_nowait())
    except Empty:
        return found


# ---- a run -----------------------------------------------------------------------------------------------------------


def run(folder: Path, chosen: list[str]) -> dict[str, Any]:
    """Start a server, attack it, stop it."""
    bank = random_bank(folder / "bank", 4, 4, ["q_proj"])
    state, keyfile, log = folder / "state", folder / "keys.json", folder / "server.log"
    shutil.rmtree(state, ignore_errors=True)
    keyfile.unlink(missing_ok=True)
    limits = Limits(tasks=20)
    key = {
        "innocent": add_tenant(keyfile, "innocent", ["user-0", "user-1"]),
        "attacker": add_tenant(keyfile, "attacker", ["user-2", "evil-*"], limits=limits),
        "admin": add_tenant(keyfile, "admin", ["*"], admin=True),
    }
    extract_core(bank, "user-1", folder / "core.safetensors")
    core = (folder / "core.safetensors").read_bytes()
    command = ["colora", "serve", str(bank), "--port", "0", "--keys", str(keyfile), "--state", str(state)]
    with started(folder, log.stem, *command) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        told = multiprocessing.Queue()
        asking = multiprocessing.Process(target=innocent, args=(port, key["innocent"], told), daemon=True)
        asking.start()
        try:
            time.sleep(CALM_SECONDS)
            calm = drained(told)
            results = [
                attacked(name, server, Target(port, key["attacker"], "user-2", "user-0", core), told, calm[-1][1], key)
                for name in chosen
            ]
        finally:
            asking.terminate()
        end = state_after(port, key["admin"], state, log)
    return {"calm": latencies(calm), "attacks": results, "end": end}


def attacked(
    name: str, server: Server, target: Target, told: Any, expected: str, keys: dict[str, str]
) -> dict[str, Any]:
    """One attack, and what became of the server and of the innocent."""
    before, most, over = server.own_megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            most[0] = max(most[0], server.own_megabytes())

    watching = threading.Thread(target=watch)
    watching.start()
    drained(told)
    began = time.monotonic()
    ATTACKS[name](target)
    seconds = time.monotonic() - began
    time.sleep(1.0)
    during = drained(told)
    over.set()
    watching.join()
    time.sleep(AFTER_SECONDS if "examples" in name else 3.0)
    heard = b"\n".join(target.heard)
    secrets = [SECRET, keys["innocent"], keys["admin"], "Traceback", '"id":"user-0"', '"id":"user-1"', '"id": "user-0"']
    result = {
        "attack": name,
        "seconds": round(seconds, 1),
        "statuses": {str(status): count for status, count in sorted(target.statuses.items())},
        "own_megabytes": {"before": before, "most": most[0], "after": server.own_megabytes()},
        "innocent": latencies(during) | {"wrong": sum(text != expected for _, text in during)},
        "wrong_answers": sorted({text for _, text in during if text != expected})[:5],
        "leaks": sum(secret.encode() in heard for secret in secrets),
    }
    print(json.dumps(result), flush=True)
    return result


def latencies(told: list[tuple[float, str]]) -> dict[str, Any]:
    """Of the innocent's requests."""
    seconds = [one for one, _ in told]
    return {
        "requests": len(seconds),
        "median": round(median(seconds), 3) if seconds else None,
        "most": round(max(seconds), 3) if seconds else None,
    }


def state_after(port: int, key: str, state: Path, log: Path) -> dict[str, Any]:
    """What is left of all that."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=30).text
    found = dict(line.split(" ") for line in text.splitlines() if line.startswith("colora_") and "{" not in line)
    logged = log.read_text(errors="replace")
    files = Counter(path.parent.relative_to(state).as_posix() for path in state.rglob("*") if path.is_file())
    return {
        "metrics": {name: float(found[f"colora_{name}"]) for name in ("running_requests", "waiting_requests", "tasks")},
        "files": dict(files),
        "log_bytes": len(logged),
        "log_forged": logged.count(FORGED),
        "log_secrets": logged.count(SECRET) + logged.count("colora-"),
    }


# ---- table -----------------------------------------------------------------------------------------------------------


def table() -> str:
    """Markdown of the record."""
    found = json.loads(RECORD.read_text("utf-8"))
    calm, end = found["calm"], found["end"]
    lines = [
        "| attack | answers | innocent: asked, wrong | median, s | most, s | memory before, most, after, MB | leaks |",
        "|---|---|---:|---:|---:|---:|---:|",
        f"| none | | {calm['requests']}, 0 | {calm['median']:.2f} | {calm['most']:.2f} | | |",
    ]
    for one in found["attacks"]:
        answers = ", ".join(
            f"{count} × {'closed' if status == '0' else status}" for status, count in one["statuses"].items()
        )
        own, memory = one["innocent"], one["own_megabytes"]
        times = ["–" if own[key] is None else f"{own[key]:.2f}" for key in ("median", "most")]
        lines.append(
            f"| {one['attack']} | {answers} | {own['requests']}, {own['wrong']} | {' | '.join(times)} | "
            f"{memory['before']:.0f}, {memory['most']:.0f}, {memory['after']:.0f} | {one['leaks']} |"
        )
    lines += [
        "",
        f"Afterwards {end['metrics']['running_requests']:.0f} requests run, {end['metrics']['waiting_requests']:.0f} "
        f"wait; the log has {end['log_bytes']} bytes, {end['log_forged']} forged lines and nobody's words or keys "
        f"({end['log_secrets']}).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
