"""Several processes on this machine, started as torchrun does: gloo on loopback."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.helpers.import_graph import ROOT

__all__ = ["Launched", "two_processes"]

COMMAND = [
    sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
    "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1", "-m",
]  # fmt: skip


class Launched:
    """Two processes of `python -m ARGUMENTS`; what they print goes to `log`."""

    def __init__(self, log: Path, *arguments: object) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.log = log
        with log.open("w") as out:
            self.launcher = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                env=environment, stdout=out, stderr=out, cwd=ROOT,
            )  # fmt: skip

    def wait(self, timeout: float = 200) -> int:
        """The exit code; all are ended if they take longer."""
        try:
            return self.launcher.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the launcher and its processes at once, as a power cut would."""
        mine = psutil.Process(self.launcher.pid).children(recursive=True) if self.launcher.poll() is None else []
        for process in [self.launcher, *mine]:
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait(timeout=60)

    def kill_when(self, there: Path, timeout: float = 200) -> None:
        """End all as soon as a file or folder is there."""
        end = time.monotonic() + timeout
        while not there.exists() and self.launcher.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        self.kill()
        assert there.exists(), self.log.read_text()[-3000:]


def two_processes(log: Path, *arguments: object) -> str:
    """Run them to the end. Returns what they printed; fails with it if they did."""
    code = Launched(log, *arguments).wait()
    text = log.read_text()
    assert code == 0, text[-3000:]
    return text
