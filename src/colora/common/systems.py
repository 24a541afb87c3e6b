"""Where operating systems differ: what is surely on the disk, files that others have open, names that none can have."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["WINDOWS", "file_name_fault", "patiently", "sync"]

T = TypeVar("T")

WINDOWS = os.name == "nt"
PATIENCE = 2.0  # seconds
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file; an ending does not help: NUL.txt is NUL.
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Windows opens no folder, and keeps the list itself; it syncs a file only if that is open for writing.
    """
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def patiently(action: Callable[[], T]) -> T:
    """What `action` returns, which renames, removes or creates a file.

    On Windows that fails with a PermissionError while another process has the file open, be it to read a lock or to
    look for viruses: it is tried again, for two seconds. Elsewhere it is called once.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except PermissionError:
            if not WINDOWS or time.monotonic() > end:
                raise
        time.sleep(0.02)


def file_name_fault(name: str) -> str | None:
    """Why this system has no file or folder of a name that follows `NAME_RULE`, or None if it can have one.

    Windows takes "a:b" as a stream b inside a file a, "nul" as a device, and "a." as "a": what is written there is lost
    or ends up in another task's file. Banks of other systems may have such tasks, and are read.
    """
    if not WINDOWS:
        return None
    if ":" in name or name.endswith((".", " ")) or RESERVED.fullmatch(name):
        return (
            f"on Windows no file can be called {name!r}: expected a name without ':' that does not end with '.' or a "
            "space and is no device as NUL or COM1; rename it"
        )
    return None
