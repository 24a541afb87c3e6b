"""Programs that start others: run one until it ends or a signal comes, and end one with all that it started."""

import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from subprocess import Popen
from typing import Any, Literal

import psutil

from colora.errors import FederationError

__all__ = ["keep_running", "stop"]

POLL_SECONDS = 0.1
RETRY_PAUSE = 5.0
KILLS = 10


def keep_running(command: list[str], environment: Mapping[str, str], retry: float) -> int:
    """Run a program of Flower's until it ends or SIGTERM or SIGINT comes, and then end all that it has started.

    Args:
        command: the program and its arguments.
        environment: of the program.
        retry: seconds in which a program that ends with an error is started again; counted from when it last ran for
            longer. The server refuses a client whose process was killed until its old connection has timed out.

    Returns:
        the exit code: 0 if SIGTERM or SIGINT ended it.
    """
    interrupted = threading.Event()
    before = {number: signal.signal(number, lambda *_: interrupted.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        end = time.monotonic() + retry
        while True:
            began = time.monotonic()
            process = Popen(command, env=dict(environment), start_new_session=True)
            try:
                while process.poll() is None and not interrupted.wait(POLL_SECONDS):
                    pass
            finally:
                stop(process)
            if interrupted.is_set() or process.returncode == 0:
                return 0
            if time.monotonic() - began > max(retry, RETRY_PAUSE):
                end = time.monotonic() + retry
            if time.monotonic() > end or interrupted.wait(RETRY_PAUSE):
                return 0 if interrupted.is_set() else process.returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(process: Popen[Any], seconds: float = 10.0) -> None:
    """End a process of Flower's and all that it started: with SIGTERM first, with SIGKILL after `seconds`.

    Raises:
        FederationError: if a process is left even so.
    """
    descendants = _descendants(process)
    if process.poll() is None:
        process.terminate()
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        # Programs that it starts while it shuts down cannot be found by it afterwards.
        descendants |= _descendants(process)
        time.sleep(POLL_SECONDS)
    descendants |= _descendants(process)
    if process.poll() is None:
        process.kill()
        process.wait()
    _signal(descendants, "terminate")
    psutil.wait_procs(descendants, timeout=seconds)
    for _ in range(KILLS):
        alive = {child for child in descendants if _lives(child)}
        if not alive:
            return
        descendants |= {child for parent in alive for child in _children(parent)}
        _signal(descendants, "kill")
        psutil.wait_procs(descendants, timeout=1.0)
    raise FederationError(
        f"could not end the processes {sorted(child.pid for child in alive)} of process {process.pid}"
    )


def _descendants(process: Popen[Any]) -> set[psutil.Process]:
    """The processes that a process has started, and those that they have; also after its end."""
    if process.poll() is None:
        try:
            return _children(psutil.Process(process.pid))
        except psutil.NoSuchProcess:
            return set()
    if psutil.pid_exists(process.pid):
        return set()  # another process has its number by now
    # Flower's programs get the number of their parent, so that they end with it; those that are left are found by it.
    parent_option = ["--parent-pid", str(process.pid)]
    orphans = set()
    for candidate in psutil.process_iter(["cmdline"]):
        words = candidate.info["cmdline"] or []
        if any(words[start : start + 2] == parent_option for start in range(len(words))):
            orphans |= {candidate, *_children(candidate)}
    return orphans


def _children(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except psutil.Error:
        return set()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(processes: set[psutil.Process], how: Literal["terminate", "kill"]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            getattr(process, how)()
