"""A bank inside vLLM: its server answers `model="TASK"` for every task, with A and B held once and a core a slot.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Without a bank in the
environment it does nothing, and imports nothing.
"""

import os

from colora.vllm.settings import BANK

__all__ = ["register"]


def register() -> None:
    """Make this process of vLLM know the bank that the environment names.

    Raises:
        ColoraError: there is no such bank, or this version of vLLM cannot have it.
    """
    if os.environ.get(BANK):
        from colora.vllm.plugin import install

        install()
