"""Where a model computes and in which numbers: the words of run files as torch's."""

import torch

__all__ = ["DTYPES", "cpu_multiplies_bfloat16", "training_device"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def training_device(name: str) -> torch.device | None:
    """ "auto": the accelerator, or None where there is none; "cpu": None."""
    return None if name == "cpu" else torch.accelerator.current_accelerator(check_available=True)


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it (AVX512_BF16 or AMX), and this torch can tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
