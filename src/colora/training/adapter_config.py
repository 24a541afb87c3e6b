"""The section `adapter` of a run file as the config of a bank."""

from typing import Any

from colora.adapter.config import CoLoRAConfig
from colora.training.config import SPECTRAL, AdapterSpec

__all__ = ["bank_config"]


def bank_config(spec: AdapterSpec, names: list[str], model: Any = None) -> CoLoRAConfig:
    """The `CoLoRAConfig` of a bank of these tasks; on this base model, if one is given.

    Raises:
        ConfigError: naming every field that is out of range.
    """
    fields = spec.model_dump()
    if spec.init_weights in ("kaiming", *SPECTRAL):  # a spectral start is written into an ordinary one
        fields["init_weights"] = True
    if model is not None:
        fields["task_type"] = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    return CoLoRAConfig(tasks=names, **fields)
