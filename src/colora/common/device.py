"""Where a model computes and in which numbers: the words of run files as torch's."""

import torch

__all__ = ["DTYPES", "training_device"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def training_device(name: str) -> torch.device | None:
    """ "auto": the accelerator, or None where there is none; "cpu": None."""
    return None if name == "cpu" else torch.accelerator.current_accelerator(check_available=True)
