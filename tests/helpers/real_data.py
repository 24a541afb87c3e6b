"""Finds the real task data, which is too large for the repository."""

import os
from pathlib import Path

import pytest

__all__ = ["real_data"]


def real_data(*parts: str) -> Path:
    """A path inside the folder that the environment variable COLORA_DATA names, or ../shared/data beside the
    repository; skips the calling test if it is not there."""
    root = Path(os.environ.get("COLORA_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the real task data at {path} (set COLORA_DATA to its folder)")
    return path
