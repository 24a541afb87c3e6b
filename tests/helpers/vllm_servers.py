"""Servers of vLLM with a bank, as processes on loopback."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colora.vllm.command import VllmOptions, vllm_command
from tests.helpers.servers import Running

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def vllm_process(bank: Path, *own: str, log: Path, **options: object) -> Iterator[Running]:
    """A server of vLLM as `colora serve --engine vllm` starts it; its output goes to `log`."""
    port = free_port()
    command, environment = vllm_command(VllmOptions(bank, port=port, own=own, **options))  # type: ignore[arg-type]
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with open(log, "wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        running = Running(f"http://127.0.0.1:{port}")
        end = time.monotonic() + 240
        while not re.search(r"Application startup complete", log.read_text(errors="replace")):
            assert server.poll() is None, log.read_text(errors="replace")[-6000:]
            assert time.monotonic() < end, log.read_text(errors="replace")[-6000:]
            time.sleep(0.2)
        with running.http:
            yield running
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)
    assert sys.platform != "win32"
