"""The section `adapter` of a run file: the bank."""

from typing import Literal

from pydantic import Field

from colora.training.fields import Count, Names, Rate, Share, Spec

__all__ = ["AdapterSpec"]


class AdapterSpec(Spec):
    """Settings of the bank; see `CoLoRAConfig`."""

    r: Count = Field(16, description="Rank of the shared factors A and B. Each task has r × r numbers per layer.")
    lora_alpha: Rate = Field(
        default_factory=lambda others: float(others["r"]),
        description="Scale of the updates: they are multiplied by lora_alpha / r. Default: r.",
    )
    use_rslora: bool = Field(False, description="Multiply the updates by lora_alpha / √r instead of lora_alpha / r.")
    lora_dropout: Share = Field(0.0, description="Dropout on the input of the adapters during training.")
    target_modules: Names = Field("all-linear", description="Layers to adapt: names, or a regular expression.")
    target_parameters: list[str] | None = Field(
        None,
        description=("Fused weights of experts to adapt as well, such as [experts.gate_up_proj, experts.down_proj]."),
    )
    exclude_modules: Names | None = Field(None, description="Layers to leave out: names, or a regular expression.")
    layers_to_transform: list[int] | None = Field(None, description="Adapt only the layers with these numbers.")
    modules_to_save: list[str] | None = Field(
        None, description="Further modules to train in full. All tasks share them."
    )
    init_rotation: float = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "Share of the r directions in which each core starts with its own random rotation, so"
            " that tasks that contradict each other do not cancel out. 0: all cores start at the "
            "identity."
        ),
    )
    init_weights: Literal["kaiming", "gaussian", "orthogonal", "spectral", "spectral_neutral", "spectral_factors"] = (
        Field(
            "kaiming",
            description=(
                "How the bank starts. kaiming, gaussian and orthogonal draw A. The spectral values use the "
                "gradients of the tasks at the base model, which costs one or two passes over a few "
                "examples of each task: spectral sets A, B and cores with a small step down the "
                "gradients; spectral_neutral sets A and cores, without a step; spectral_factors sets A alone."
            ),
        )
    )
