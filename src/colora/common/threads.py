"""How many threads torch computes with."""

import os

import psutil
import torch

from colora.errors import BaseModelError

__all__ = ["configure_threads"]


def configure_threads(threads: int | None = None, spare: int = 0) -> int:
    """Set how many threads torch computes with, and return that number.

    None takes `OMP_NUM_THREADS` where it is set, else one thread for each physical core this process may run
    on, less `spare` but at least one: two threads on one core share its arithmetic units and gain nothing in matrix
    products.

    Raises:
        BaseModelError: a number below one, or an `OMP_NUM_THREADS` that is no number.
    """
    if threads is None:
        asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        if asked and not asked.isdigit():
            raise BaseModelError(f"expected a number in OMP_NUM_THREADS, got {asked!r}")
        threads = int(asked) if asked else max(1, _cores() - spare)
    if threads < 1:
        raise BaseModelError(f"expected at least 1 thread, got {threads}")
    torch.set_num_threads(threads)
    return threads


def _cores() -> int:
    # Only some systems tell which processors a process may use; a container often has fewer than the machine.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))
