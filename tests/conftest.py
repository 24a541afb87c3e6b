"""What holds for every test."""

import signal
import time

import pytest

from tests.helpers.import_graph import ROOT

# A shell starts background jobs with Ctrl-C ignored, and every process that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What writes the files there needs the sources of an old revision.
collect_ignore = ["data"]


def pytest_collection_modifyitems(items):
    if not (ROOT / "benchmarks" / "compare" / "records").is_dir():
        for item in items:
            if item.get_closest_marker("records"):
                item.add_marker(pytest.mark.skip(reason="the records of the benchmarks are not in the sdist"))


@pytest.fixture
def unhurried(monkeypatch):
    """A server in this process whose steps take long enough to look at what is going on, on any machine."""
    from colora.models.decoding.batch import Batch

    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda batch: time.sleep(0.005) or step(batch))
