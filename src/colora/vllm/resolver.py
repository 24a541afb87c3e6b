"""Tasks by name, without listing any: vLLM asks for an adapter that it does not know."""

import asyncio
from collections.abc import Callable

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from colora.errors import TaskIdError

__all__ = ["BankResolver"]


class BankResolver(LoRAResolver):
    """Finds the tasks of a bank, and those that came since.

    Args:
        path_of: the path that a worker finds a task's adapter by, as the task is now; raises TaskIdError.
    """

    def __init__(self, path_of: Callable[[str], str]) -> None:
        self.path_of = path_of

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """A request for the task; None if there is no such task. vLLM numbers it."""
        try:
            path = await asyncio.to_thread(self.path_of, lora_name)
        except TaskIdError:
            return None
        return LoRARequest(lora_name, 1, path)
