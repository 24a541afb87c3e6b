"""Tasks by name, without listing any: vLLM asks for an adapter that it does not know."""

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from colora.serving.store import CoreStore
from colora.vllm.adapter_path import CorePath

__all__ = ["BankResolver"]


class BankResolver(LoRAResolver):
    """Finds the tasks of a bank, and those that came since.

    Args:
        store: all tasks.
    """

    def __init__(self, store: CoreStore) -> None:
        self.store = store

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """A request for the task's core as it is now; None if there is no such task. vLLM numbers it."""
        if lora_name not in self.store:
            return None
        return LoRARequest(lora_name, 1, str(CorePath(lora_name, self.store.version(lora_name))))
