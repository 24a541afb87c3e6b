"""Why a trial failed, as text that may go into a record: without the paths of one machine."""

import re
import traceback
from pathlib import Path

import colora.errors

__all__ = ["describe_error"]

PACKAGE = Path(colora.errors.__file__).parent.parent
MOST_FRAMES = 6
# A path with at least two folders; its last part says enough. The look-behind leaves URLs and relative paths alone.
PATH = re.compile(r"(?<![\w.:/\\~-])(?:[A-Za-z]:)?(?:[/\\][^\s'\"/\\:,;()]+)+[/\\]([^\s'\"/\\:,;()]+)")


def describe_error(error: BaseException) -> str:
    """Type and message of `error`, and below them the innermost places it went through, as "file:line in function"."""
    head = f"{type(error).__name__}: {_without_paths(str(error))}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)[-MOST_FRAMES:]
    return "\n".join([head, *(f"  {_file(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames)])


def _file(name: str) -> str:
    path = Path(name)
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).as_posix()
    parts = path.parts
    if "site-packages" in parts:  # the last one, should there be several
        return Path(*parts[len(parts) - parts[::-1].index("site-packages") :]).as_posix()
    return path.name


def _without_paths(text: str) -> str:
    return PATH.sub(r".../\1", text)
