"""The section `adapter` of a run file as the config of a bank."""

from typing import Any

from colora.adapter.config import CoLoRAConfig
from colora.training.config import SPECTRAL, AdapterSpec

__all__ = ["bank_config"]


def bank_config(spec: AdapterSpec, names: list[str], model: Any) -> CoLoRAConfig:
    """The `CoLoRAConfig` of a bank of these tasks on this base model."""
    fields = spec.model_dump()
    if spec.init_weights in ("kaiming", *SPECTRAL):  # a spectral start is written into an ordinary one
        fields["init_weights"] = True
    task_type = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    return CoLoRAConfig(tasks=names, task_type=task_type, **fields)
