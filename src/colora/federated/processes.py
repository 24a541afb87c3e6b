"""Programs that start others: to run one until it ends or we are told to, and to end one with all that it started."""

import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from subprocess import Popen
from typing import Any

import psutil

from colora.errors import FederationError

__all__ = ["keep_running", "stop"]

POLL_SECONDS = 0.1
RETRY_PAUSE = 5.0
KILLS = 10


def keep_running(command: list[str], environment: Mapping[str, str], retry: float) -> int:
    """Run a program of Flower's until it ends or we are told to, and then end all that it has started.

    Args:
        retry: seconds in which a program that ends with an error is started again; counted from when it last ran for
            longer. A client whose process was killed is refused until the server gives its place up.

    Returns:
        the exit code: 0 if SIGTERM or SIGINT ended it.
    """
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        end = time.monotonic() + retry
        while True:
            began = time.monotonic()
            process = Popen(command, env=dict(environment), start_new_session=True)
            try:
                while process.poll() is None and not told.wait(POLL_SECONDS):
                    pass
            finally:
                stop(process)
            if told.is_set() or process.returncode == 0:
                return 0
            if time.monotonic() - began > max(retry, RETRY_PAUSE):
                end = time.monotonic() + retry
            if time.monotonic() > end or told.wait(RETRY_PAUSE):
                return 0 if told.is_set() else process.returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(process: Popen[Any], seconds: float = 10.0) -> None:
    """End a process of Flower's that we started, and all that it started: asked first, killed after `seconds`.

    Raises:
        FederationError: if something is left even so.
    """
    family = _family(process)
    if process.poll() is None:
        process.terminate()
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        # What it starts while it winds up would be lost to us with it.
        family |= _family(process)
        time.sleep(POLL_SECONDS)
    family |= _family(process)
    if process.poll() is None:
        process.kill()
        process.wait()
    _signal(family, "terminate")
    psutil.wait_procs(family, timeout=seconds)
    for _ in range(KILLS):
        alive = {one for one in family if _lives(one)}
        if not alive:
            return
        family |= {child for one in alive for child in _children(one)}
        _signal(family, "kill")
        psutil.wait_procs(family, timeout=1.0)
    raise FederationError(f"could not end the processes {sorted(one.pid for one in alive)} of process {process.pid}")


def _family(process: Popen[Any]) -> set[psutil.Process]:
    """What a process has started and what that has, itself not: also after its end."""
    if process.poll() is None:
        try:
            return _children(psutil.Process(process.pid))
        except psutil.NoSuchProcess:
            return set()
    if psutil.pid_exists(process.pid):
        return set()  # its number is another's by now
    # Flower tells its programs whose they are, so that they end of themselves; those that have not yet say so.
    sign = ["--parent-pid", str(process.pid)]
    found = set()
    for one in psutil.process_iter(["cmdline"]):
        words = one.info["cmdline"] or []
        if any(words[place : place + 2] == sign for place in range(len(words))):
            found |= {one, *_children(one)}
    return found


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


def _signal(processes: set[psutil.Process], how: str) -> None:
    for one in processes:
        with suppress(psutil.Error):
            getattr(one, how)()
