"""Where things lie that are made once and can be made again."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """`$COLORA_CACHE`, by default `~/.cache/colora`; it need not be there yet."""
    return Path(os.environ.get("COLORA_CACHE") or "~/.cache/colora").expanduser()
