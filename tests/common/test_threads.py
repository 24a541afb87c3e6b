"""How many threads torch computes with."""

import psutil
import pytest
import torch

from colora.common.threads import configure_threads
from colora.errors import BaseModelError


def test_threads_are_those_asked_for_then_of_the_environment_then_the_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        assert configure_threads(1) == torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
        assert configure_threads() == torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "")
        assert 1 <= configure_threads() <= (psutil.cpu_count(logical=False) or 1024)
        assert configure_threads(spare=1) == max(1, configure_threads() - 1)
        assert configure_threads(spare=10_000) == 1
        with pytest.raises(BaseModelError, match="at least 1 thread, got 0"):
            configure_threads(0)
        monkeypatch.setenv("OMP_NUM_THREADS", "many")
        with pytest.raises(BaseModelError, match="OMP_NUM_THREADS, got 'many'"):
            configure_threads()
    finally:
        torch.set_num_threads(before)
