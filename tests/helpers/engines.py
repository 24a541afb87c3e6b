"""The same server by either engine: ours, in a thread, or vLLM's, in processes of its own where vLLM is installed."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.servers import TASKS, Running, make_bank, serving
from tests.helpers.tiny import readable_llama

__all__ = ["ENGINE", "bank_for_either", "served", "stock_vllm", "vllm_server"]

ROOT = Path(__file__).parents[2]
ENGINE = "colora" if importlib.util.find_spec("vllm") is None else "vllm"
SMALL = ("--max-model-len", "256", "--max-num-seqs", "16", "--enforce-eager", "--dtype", "float32", "--resident", "8")
# vLLM keeps a core for the front end where nobody says otherwise; and nothing is fetched or told to anybody.
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def bank_for_either(
    folder: Path, tasks: Sequence[str] = TASKS, seed: int = 1, r: int = 3, name: str = "bank", base_seed: int = 0
) -> Path:
    """A new bank, on a base that both engines run."""
    return make_bank(folder, tasks, seed=seed, r=r, name=name, base_seed=base_seed, make_base=readable_llama)


@contextmanager
def served(
    bank: Path, keys: Path | None = None, state: Path | None = None, origins: Sequence[str] = ()
) -> Iterator[Running]:
    """A server of the engine that is here; it ends with the block."""
    if ENGINE == "colora":
        with serving(bank, keys=keys, state=state, origins=origins) as running:
            yield running
        return
    options = [*(("--keys", str(keys)) if keys else ()), *(("--state", str(state)) if state else ())]
    options += [text for origin in origins for text in ("--cors-origin", origin)]
    with vllm_server(bank, *options, *SMALL) as running:
        yield running


@contextmanager
def vllm_server(bank: Path, *arguments: str) -> Iterator[Running]:
    """`colora serve --engine vllm` as a user starts it; what it says is shown where it fails."""
    command = ["colora", "serve", str(bank), "--engine", "vllm", "--port", "0", *arguments]
    with _answering(command, bank.with_name(f"vllm-{time.time_ns()}.log"), {}) as running:
        yield running


@contextmanager
def stock_vllm(base: Path, log: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[Running]:
    """vLLM's own server, which knows a bank by its environment alone."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = ["vllm.entrypoints.openai.api_server", "--model", str(base), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "256", "--max-num-seqs", "16", "--enforce-eager", "--dtype", "float32"]
    with _answering([*command, *arguments], log, environment, f"http://127.0.0.1:{port}") as running:
        yield running


@contextmanager
def _answering(command: Sequence[str], log: Path, more: Mapping[str, str], url: str | None = None) -> Iterator[Running]:
    """A module as a process, once it answers; its URL is in what it says unless it is given."""
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])} | more
    with open(log, "wb") as file:
        server = subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file, env=environment)
    try:
        end = time.monotonic() + 240
        while "Application startup complete" not in (said := log.read_text(errors="replace")):
            assert server.poll() is None, said[-6000:]
            assert time.monotonic() < end, said[-6000:]
            time.sleep(0.2)
        found = url or (told[1] if (told := re.search(r"to answer at (\S+)/v1", said)) else None)
        assert found, said[-6000:]
        running = Running(found)
        with running.http:
            yield running
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)
