"""What vLLM has to know where it compiles a model with a bank."""

import hashlib
import json

from vllm.config import VllmConfig
from vllm.config.lora import LoRAConfig
from vllm.platforms.cpu import CpuPlatform

from colora.bank.tensors import SavedBank

__all__ = ["compile_with_bank"]


def compile_with_bank(bank: SavedBank) -> None:
    """See that a model with this bank is compiled, on a CPU too, and that its code is not taken for another bank's.

    Once for the process, before vLLM makes its configuration.
    """
    _compile_on_cpu()
    _know_apart(bank)


def _compile_on_cpu() -> None:
    """vLLM compiles no model with LoRAs on a CPU, for its LoRA code there cannot be compiled; a bank's update can."""
    usual = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: type[CpuPlatform], vllm_config: VllmConfig) -> None:
        lora_config, vllm_config.lora_config = vllm_config.lora_config, None
        try:
            usual(cls, vllm_config)
        finally:
            vllm_config.lora_config = lora_config

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def _know_apart(bank: SavedBank) -> None:
    """vLLM finds compiled code again by its configuration, where a bank is not named: on other layers, or of another
    rank, it has other code.
    """
    layers = {name: [tuple(layer.A.shape), tuple(layer.B.shape)] for name, layer in sorted(bank.layers.items())}
    digest = hashlib.sha256(json.dumps(layers).encode()).hexdigest()
    usual = LoRAConfig.compute_hash

    def compute_hash(self: LoRAConfig) -> str:
        return hashlib.sha256(f"{usual(self)} {digest}".encode()).hexdigest()

    LoRAConfig.compute_hash = compute_hash
