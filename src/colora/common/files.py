"""Writing so that nothing is lost: a folder or file is the old one or the new one, never half of either."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from stat import S_ISREG

from safetensors import SafetensorError

from colora.common.systems import patiently, sync
from colora.errors import CheckpointError

__all__ = [
    "NAME_RULE",
    "STAGING_PREFIX",
    "fits_name_rule",
    "open_up_weights",
    "staged_folder",
    "unstaged",
    "write_bytes",
    "write_json",
    "write_text",
]

STAGING_PREFIX = ".writing-"
REPLACED = ".old"


@contextmanager
def staged_folder(final: Path, leader: bool = True, barrier: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A folder to write into that becomes `final` when the block ends well, and vanishes when it does not.

    Args:
        final: the folder to be; replaced if it is there.
        leader: with several processes that write into it together, whether this is the one that makes and renames it.
        barrier: waits for the other processes.

    Yields:
        a folder of the same name as `final`, alone in a hidden folder beside it.

    Raises:
        CheckpointError: if writing fails (a full disk, say); nothing that was there before has changed.
    """
    staging = final.with_name(STAGING_PREFIX + final.name)
    try:
        if leader:
            _tidy(staging, final)
            (staging / final.name).mkdir(parents=True)
        barrier()
        yield staging / final.name
        barrier()
        if leader:
            open_up_weights(staging / final.name)
            _publish(staging / final.name, final)
        barrier()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not write {final}: {error}. Nothing that was saved before has changed; free some space or "
            "choose another folder, and run the same command again"
        ) from error
    finally:
        if leader:
            _tidy(staging, final)


def open_up_weights(folder: Path) -> None:
    """Give the files of weights in a new folder the mode of those beside them, which follows the umask.

    safetensors writes through a temporary file, which none but its owner may read, and so do PEFT and transformers. The
    mode of the folder tells the umask; to ask the system for it would change it in all threads. Other files are as who
    wrote them made them. So are links to files of an older folder: who may read those was settled there.
    """
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*.safetensors"):
        status = file.lstat()
        if S_ISREG(status.st_mode) and status.st_nlink == 1:
            file.chmod(mode)


def unstaged(path: Path) -> Path:
    """Where a file in a folder that `staged_folder` yielded will be; any other path as it is."""
    for parent in path.parents:
        if parent.name.startswith(STAGING_PREFIX):
            return parent.parent / path.relative_to(parent)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, making its folder if need be. Raises CheckpointError if it cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, making its folder if need be. Raises CheckpointError if it cannot be written."""
    temporary = path.with_name(STAGING_PREFIX + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        sync(temporary)
        patiently(partial(os.replace, temporary, path))
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error}; what was there before has not changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, for people to read: indented, with its letters as they are."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


NAME_RULE = "1 to 100 letters, digits, spaces and _ . : + - that begins with a letter or digit"


def fits_name_rule(name: str) -> bool:
    """Whether `name` follows `NAME_RULE`, so that it can name a task, and its folder when it is exported.

    Letters of every script count, with their combining marks; folders have at most 255 bytes, some already in use.
    """
    kinds = [unicodedata.category(char)[0] for char in name]
    fits = all(kind in "LMN" or char in " _.:+-" for kind, char in zip(kinds, name, strict=True))
    return (
        bool(name) and fits and (kinds[0] in "LN" or name[0] == "_") and len(name) <= 100 and len(name.encode()) <= 200
    )


def _publish(written: Path, final: Path) -> None:
    for file in written.rglob("*"):
        if file.is_file():
            sync(file)
    if final.exists():
        # Out of the way first, so that at no time half of the old one has the name of a whole one.
        patiently(partial(os.replace, final, written.with_name(REPLACED)))
    patiently(partial(os.replace, written, final))
    sync(final.parent)


def _tidy(staging: Path, final: Path) -> None:
    """Remove what a write left; an old folder that was moved away and not replaced goes back to its place."""
    old = staging / REPLACED
    if old.exists() and not final.exists():
        try:
            patiently(partial(os.replace, old, final))
        except OSError:
            return  # it stays where it is, and the next write puts it back
    shutil.rmtree(staging, ignore_errors=True)
