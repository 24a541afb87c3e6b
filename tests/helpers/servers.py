"""Servers for tests: a small bank on disk, and a server for it, in a thread or as a process."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from peft import get_peft_model
from transformers import PreTrainedModel

from colora.adapter.config import CoLoRAConfig
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.serving.access import Access, Tenant
from colora.serving.app import make_app
from colora.serving.server import Listen, server_config
from colora.serving.service import Options, Service
from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama

__all__ = ["TASKS", "Running", "ask", "make_bank", "process", "serving"]

TASKS = ("legal", "billing", "sales")


def make_bank(
    folder: Path,
    tasks: Sequence[str] = TASKS,
    seed: int = 1,
    chat: bool = True,
    r: int = 3,
    name: str = "bank",
    base_seed: int = 0,
    make_base: Callable[[int], PreTrainedModel] = tiny_llama,
) -> Path:
    """The folder of a new bank with random factors and cores on a tiny base; both are below `folder`."""
    base = folder / f"base-{base_seed}"
    model = make_base(base_seed)
    if not base.exists():
        save_base(base, model, chat)
    torch.manual_seed(seed)
    config = CoLoRAConfig(r=r, lora_alpha=10 * r, tasks=list(tasks), init_weights=False)
    save_bank(get_peft_model(model, config), folder / name, BankInfo(str(base), chat_template=chat, max_length=96))
    return folder / name


class Running:
    """A server that answers at `url`."""

    def __init__(self, url: str, service: Service | None = None) -> None:
        self.url, self._service = url, service
        self.http = httpx.Client(base_url=url, timeout=60)

    @property
    def service(self) -> Service:
        """The service of a server in a thread; a process has none to reach."""
        assert self._service is not None
        return self._service

    def metric(self, name: str) -> float:
        """The value of one of /metrics."""
        text = self.http.get("/metrics").text
        found = re.search(rf"^colora_{name}(?:_total)? ([0-9.e+]+)$", text, re.MULTILINE)
        assert found, f"{name} is not in\n{text}"
        return float(found[1])

    def until(self, name: str, value: float, seconds: float = 20, or_more: bool = False) -> None:
        """Wait until a metric has a value."""
        end = time.monotonic() + seconds
        while (found := self.metric(name)) != value and not (or_more and found > value):
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.02)


def ask(task: str, text: str, **fields: Any) -> dict[str, Any]:
    """A chat request, greedy unless `fields` say otherwise."""
    return {"model": task, "messages": [{"role": "user", "content": text}], "temperature": 0} | fields


@contextmanager
def serving(
    bank: Path,
    tenants: list[Tenant] | None = None,
    origins: Sequence[str] = (),
    keys: Path | None = None,
    page: bool = True,
    **options: Any,
) -> Iterator[Running]:
    """A server in a thread, on a real socket; it ends with the block."""
    access = Access(tenants) if keys is None else Access.of_file(keys)
    service = Service(
        Options(bank, **{"threads": 1, "resident": 8, "dtype": "float32"} | options), lambda: len(access.tenants or ())
    )
    listening = socket.create_server(("127.0.0.1", 0))
    app = make_app(service, access, origins, page)
    server = uvicorn.Server(server_config(app, Listen(), grace=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    running = Running(f"http://127.0.0.1:{listening.getsockname()[1]}", service)
    try:
        with running.http:
            yield running
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive()


@contextmanager
def process(bank: Path, *arguments: str, log: Path) -> Iterator[tuple[Running, "subprocess.Popen[bytes]"]]:
    """`colora serve` as a user starts it, in float32 where the arguments do not say; its output goes to `log`."""
    settings = ["--port", "0", "--threads", "1", *(["--dtype", "float32"] if "--dtype" not in arguments else [])]
    command = [sys.executable, "-m", "colora", "serve", str(bank), *settings, *arguments]
    with open(log, "wb") as file:
        server_process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"tasks at (\S+)/v1", log.read_text())):
            assert server_process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        running = Running(found[1])
        with running.http:
            yield running, server_process
    finally:
        if server_process.poll() is None:
            server_process.kill()
        server_process.wait(30)
