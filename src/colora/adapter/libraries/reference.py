"""Adapters that TRL adds beside a bank to stand in for it: a frozen copy as the reference, or a slower teacher.

DPO, KTO, GRPO and RLOO add an adapter "ref" made from the bank's own config, and copy by name what holds ".default.".
That is how a LoRA names its tensors, but the tensors of a bank end in ".default": nothing would be copied, and the
reference would be the bare base model. So the copy is made here. A stand-in also follows the bank's choice of task.
"""

import copy
from collections.abc import Mapping

import torch
from peft import PeftConfig

from colora.adapter.layer import CoLoRALinear
from colora.adapter.router import Router

__all__ = ["STAND_INS", "stand_in"]

STAND_INS = ("ref", "teacher")
"""Names that TRL keeps for such adapters: "ref" in the trainers named above, "teacher" in SDFT and SDPO."""


def stand_in(
    configs: dict[str, PeftConfig], adapter_name: str, router: Router, layers: Mapping[str, CoLoRALinear]
) -> None:
    """Make a new adapter of such a name, with the very config of a bank of the model, a copy of that bank.

    Args:
        configs: of all adapters of the model; the copy gets a config of its own.
        adapter_name: the new adapter. Nothing is done if it stands in for none.
        router: gets whose choice of task the copy follows.
        layers: those of the new adapter, by name.
    """
    source = _stands_in_for(configs, adapter_name)
    if source is None:
        return
    router.check_on_model(source)
    configs[adapter_name] = copy.deepcopy(configs[adapter_name])  # its tasks stay when the bank gets more
    router.follows[adapter_name] = source
    with torch.no_grad():
        for layer in layers.values():
            for name in layer.adapter_layer_names:
                tensors = getattr(layer, name)
                if not tensors[adapter_name].is_meta:  # else a loader will fill it
                    tensors[adapter_name].copy_(tensors[source])


def _stands_in_for(configs: Mapping[str, PeftConfig], adapter_name: str) -> str | None:
    if adapter_name not in STAND_INS:
        return None
    own, others = configs[adapter_name], {name: config for name, config in configs.items() if name not in STAND_INS}
    same = next((name for name, config in others.items() if config is own), None)
    return same or next((name for name, config in others.items() if config.to_dict() == own.to_dict()), None)
