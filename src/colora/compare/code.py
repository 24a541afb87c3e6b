"""Which code made a record: a digest of the sources that a result depends on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import colora.errors

__all__ = ["ROOMS", "code_digest"]

# What trains, measures and makes tasks. The rest (this room, reports, the command line, single runs) decides which
# cells are run and what is shown of them, not what they give.
ROOMS = (
    "adapter", "algebra", "bank", "base", "baselines", "dates", "evaluation", "export", "groups", "likelihood", "tasks",
    "training",
)  # fmt: skip
# A cell says itself which tasks it is of, so a new group changes no result.
EXCEPT = ("groups/named.py",)
SOURCE = Path(colora.errors.__file__).parent


def code_digest(source: Path = SOURCE, rooms: Sequence[str] = ROOMS) -> str:
    """SHA-256 over the files of `rooms` under `source`: their names and contents, data files included."""
    digest = hashlib.sha256()
    for room in rooms:
        inside = sorted((source / room).rglob("*")) if (source / room).is_dir() else [source / f"{room}.py"]
        for path in inside:
            name = path.relative_to(source).as_posix()
            if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".") and name not in EXCEPT:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()
