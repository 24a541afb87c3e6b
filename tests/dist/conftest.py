"""The release's files, as `make dist` has built them: without it what needs them is skipped."""

import os
from pathlib import Path

import pytest

from tests.helpers.import_graph import ROOT


def built(pattern: str) -> Path:
    """The one file of the folder $COLORA_DIST that fits."""
    if "COLORA_DIST" not in os.environ:
        pytest.skip("nothing was built: make dist")
    (file,) = (ROOT / os.environ["COLORA_DIST"]).glob(pattern)
    return file


@pytest.fixture(scope="session")
def wheel() -> Path:
    return built("*.whl")


@pytest.fixture(scope="session")
def sdist() -> Path:
    return built("*.tar.gz")
