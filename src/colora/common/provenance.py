"""Where a number came from: a digest of the sources that made it, and the machine, versions and time."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import colora.errors

__all__ = ["SOURCE", "code_digest", "environment"]

SOURCE = Path(colora.errors.__file__).parent


def code_digest(parts: Iterable[str], source: Path = SOURCE, leave_out: Collection[str] = ()) -> str:
    """SHA-256 over the files of `parts` under `source`: their names and contents, data files included.

    Args:
        parts: packages as folders ("tasks"), and modules without their ending ("theory/recover").
        source: the folder that these are in.
        leave_out: files that do not count, as "tasks/families/named.py".
    """
    digest = hashlib.sha256()
    for part in parts:
        inside = sorted((source / part).rglob("*")) if (source / part).is_dir() else [source / f"{part}.py"]
        for path in inside:
            name = path.relative_to(source).as_posix()
            if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".") and name not in leave_out:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """Where a measurement was made, ready for JSON: to be written beside the records.

    Args:
        device: the device used; by default the accelerator if there is one, else the CPU.

    Returns:
        date (ISO 8601, UTC), versions of python, torch, transformers, peft and colora, platform, machine, cpu_count,
        threads (torch's, within one operation), device (its name), git_revision (of colora's sources if they are
        under git, with "-dirty" if they were edited; else None).
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    used = torch.device(device) if device is not None else accelerator or torch.device("cpu")
    packages = {name: _version(name) for name in ("torch", "transformers", "peft")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **packages,
        "colora": colora.__version__,  # of these sources; an older copy may be installed
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else str(used),
        "git_revision": _git_revision(SOURCE),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision(package: Path) -> str | None:
    """The commit that a package's sources are of, with "-dirty" if they were edited; records beside them may change."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository: only a tracked file has a revision of ours.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
