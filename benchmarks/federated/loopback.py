"""A networked federation on loopback: Flower's server and clients as processes, started as a user does."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.federated.capture import Listener
from colora.federated.keys import client_key, make_credentials
from colora.federated.launch import wait_until_ready
from colora.federated.processes import stop

__all__ = ["Federation", "federation"]

CLI = [sys.executable, "-m", "colora", "federate"]


def free_port() -> int:
    """A port of loopback that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Federation:
    """A server and its clients, all started by `colora federate`.

    Args:
        folder: for everything.
        tasks: each client's task file or folder.
        tls: encrypted, with a key for each client.
        listen: with a `Listener` between clients and server, which keeps all bytes.
    """

    def __init__(self, folder: Path, tasks: dict[str, Path], tls: bool = True, listen: bool = False) -> None:
        self.folder, self.tasks, self.tls = folder, tasks, tls
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if tls:
            make_credentials(folder / "keys", list(tasks))
        self.listener = Listener(self.port, folder / "keys" if tls else None) if listen else None
        self.ca = ["--ca", str(folder / "keys" / "ca.pem")] if tls else []

    def _start(self, name: str, *arguments: str, **extra: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*CLI, *arguments], stdout=log, stderr=subprocess.STDOUT, env=self.environment | extra
            )

    def start_server(self) -> None:
        """Start the SuperLink and wait until it answers."""
        tls = ["--tls", str(self.folder / "keys")] if self.tls else []
        home = str(self.folder / "server-home")
        self._start("server", "server", "--port", str(self.port), "--home", home, *tls)
        scheme, root = ("https", self.folder / "keys" / "ca.pem") if self.tls else ("http", None)
        wait_until_ready(f"{scheme}://127.0.0.1:{self.port}", 60, root, self.processes["server"])

    def start_client(self, name: str, **extra: str) -> None:
        """Start a client; `extra` goes into its environment."""
        key = ["--key", str(client_key(self.folder / "keys", name))] if self.tls else []
        self._start(
            name,
            "client",
            "--task",
            str(self.tasks[name]),
            "--state",
            str(self.folder / "state" / name),
            "--server",
            f"127.0.0.1:{self.listener.port if self.listener else self.port}",
            "--port",
            str(free_port()),
            "--name",
            name,
            *key,
            *self.ca,
            **extra,
        )

    def register(self) -> None:
        """Register the keys of all clients."""
        publics = [str(client_key(self.folder / "keys", name).with_suffix(".pub")) for name in self.tasks]
        command = [*CLI, "register", *publics, "--server", f"127.0.0.1:{self.port}", *self.ca]
        command += ["--home", str(self.folder / "run-home")]
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=self.environment)

    def start(self) -> None:
        """Start the server and all clients."""
        self.start_server()
        if self.tls:
            self.register()
        for name in self.tasks:
            self.start_client(name)

    def run_command(self, run: Path, *overrides: str) -> list[str]:
        """The command that trains; its output goes to `folder`/server."""
        return [
            *CLI,
            "run",
            str(run),
            str(self.folder / "server"),
            *overrides,
            "--server",
            f"127.0.0.1:{self.port}",
            "--home",
            str(self.folder / "run-home"),
            *self.ca,
        ]

    def run(self, run: Path, *overrides: str, seconds: float = 240) -> "subprocess.CompletedProcess[str]":
        """Train; the finished process has the output."""
        command = self.run_command(run, *overrides)
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=self.environment)

    def kill(self, name: str) -> None:
        """kill -9 of a process and all that it has started."""
        parent = psutil.Process(self.processes[name].pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()
        self.processes.pop(name).wait()

    def logs(self) -> str:
        """The output of all processes."""
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in self.folder.glob("*.log"))


@contextmanager
def federation(folder: Path, tasks: dict[str, Path], tls: bool = True, listen: bool = False) -> Iterator[Federation]:
    """A federation whose processes end with the block."""
    net = Federation(folder, tasks, tls, listen)
    try:
        yield net
    finally:
        for process in net.processes.values():
            process.terminate()  # all at once: each takes seconds to shut down
        for process in net.processes.values():
            stop(process, 15)
        if net.listener:
            net.listener.close()
