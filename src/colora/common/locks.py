"""Whose turn it is: a lock file says which process does a piece of work, so that several processes share one folder."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from colora.common.systems import patiently

__all__ = ["file_lock", "is_locked", "waiting_lock"]

# A lock file without an owner was cut off while it was being written; younger ones may still get their content.
UNSIGNED_SECONDS = 10.0


@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Whether this process got the lock file `path`; if so it is its own until the block ends.

    A lock of a process of this machine that has died is taken over. One of another machine is believed.
    """
    mine = _take(path)
    try:
        yield mine
    finally:
        if mine:
            patiently(partial(path.unlink, missing_ok=True))


@contextmanager
def waiting_lock(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """The same for a moment's work: waits for its turn, and after `seconds` goes on without."""
    end = time.monotonic() + seconds
    while True:
        with file_lock(path) as mine:
            if mine or time.monotonic() > end:
                yield
                return
        time.sleep(0.05)


def is_locked(path: Path) -> bool:
    """Whether a process that may be alive holds the lock file."""
    return path.exists() and not _is_stale(path, _read(path))


def _take(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    if _create(path):
        return True
    found = _read(path)
    if not _is_stale(path, found):
        return False
    # Of several that see a dead owner's lock, one moves it away. Should it have got a new one's, it puts that back.
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        os.rename(path, aside)
    except OSError:
        return False
    moved = _read(aside)
    if moved != found:
        with suppress(OSError):
            os.link(aside, path)
    patiently(partial(aside.unlink, missing_ok=True))
    return moved == found and _create(path)


def _create(path: Path) -> bool:
    try:
        handle = patiently(partial(os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    try:
        os.write(handle, json.dumps(owner).encode())
    finally:
        os.close(handle)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"pid", "host", "started"} <= owner.keys() else None


def _is_stale(path: Path, owner: dict[str, Any] | None) -> bool:
    if owner is None:
        try:
            return time.time() - path.stat().st_mtime > UNSIGNED_SECONDS
        except OSError:
            return False  # it is gone, so it was somebody's
    if owner["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(owner["pid"])
        # Numbers of processes come again; the time tells them apart.
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - owner["started"]) > 2
    except psutil.Error:
        return True
