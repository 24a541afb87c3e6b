"""How an exported LoRA names its layers, so that PEFT adapts those and no others.

In families of models whose experts became one fused weight with transformers 5 (Qwen, DeepSeek, GLM, ...), PEFT takes
every name in `target_modules` that ends in gate_proj, up_proj or down_proj for the experts, also that of a dense layer
or of an expert shared by all tokens, and adapts the experts in its place. Such a layer is named by its weight, in
`target_parameters`, which PEFT leaves as it is; the tensors have the same names.
"""

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

__all__ = ["spell_targets"]


def spell_targets(base: nn.Module, layers: Sequence[str], experts: Sequence[str]) -> tuple[list[str], list[str]]:
    """`target_modules` and `target_parameters` of a LoRA on these linear layers and fused weights of a base model."""
    modules = [name for name in layers if not _is_rewritten(base, name)]
    parameters = [f"{name}.weight" for name in layers if name not in set(modules)]
    return sorted(modules), [*sorted(parameters), *experts]


def _is_rewritten(base: nn.Module, name: str) -> bool:
    """Whether PEFT would name something else for a layer, or finds that it cannot."""
    config: Any = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, base, None)
    except ValueError:  # gate_proj without up_proj
        return True
    return set(config.target_modules) != {name}
