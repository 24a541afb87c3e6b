"""A disk that is full for one file: none may become longer."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["no_file_longer_than"]


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes of a file fails inside the block, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
