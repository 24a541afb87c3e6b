"""The fields of a run file's section `training` that say on which devices and in which numbers it computes."""

from typing import Literal

from pydantic import Field

from colora.training.fields import Spec

__all__ = ["BY_DEVICE", "HardwareSpec", "Precision", "Stored"]

Precision = Literal["fp32", "bf16", "fp16"]
Stored = Literal["fp32", "bf16", "fp16", "fp64"]

BY_DEVICE = ("precision", "base_dtype")
"""Fields whose defaults go by the accelerator: a run that goes on elsewhere keeps what it began with."""


def _by_device(device: str) -> Literal["bf16", "fp32"]:
    if device != "auto":
        return "fp32"
    from colora.common.device import computes_bfloat16  # imports torch, which a faulty run file need not wait for

    return "bf16" if computes_bfloat16() else "fp32"


class HardwareSpec(Spec):
    """Where, and in which numbers. Cores, factors and their moments are float32 in any case."""

    device: Literal["auto", "cpu"] = Field("auto", description="'auto' uses an accelerator if there is one.")
    precision: Precision = Field(
        default_factory=lambda others: _by_device(others["device"]),
        description=(
            "Number format of the computation (mixed precision). Default: bf16 on an accelerator "
            "that computes in bf16, otherwise fp32."
        ),
    )
    base_dtype: Stored = Field(
        default_factory=lambda others: _by_device(others["device"]),
        description=(
            "Number format of the frozen base weights. Default: as for precision. A quantised "
            "base keeps its own format."
        ),
    )
    shard: bool = Field(
        False,
        description=(
            "Spread the frozen base over the processes of torchrun (FSDP2), so that each device holds a part of it."
        ),
    )
    gradient_checkpointing: bool = Field(False, description="Use less memory, for about a third more time.")
    threads: int | None = Field(None, ge=1, description="CPU threads. Default: the number of physical cores.")
