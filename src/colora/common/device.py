"""Where a model computes and in which numbers: the words of run files as torch's."""

import torch

__all__ = ["DTYPES", "base_dtype_on", "computes_bfloat16", "cpu_multiplies_bfloat16", "training_device"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def training_device(name: str) -> torch.device | None:
    """ "auto": the accelerator, or None where there is none; "cpu": None."""
    return None if name == "cpu" else torch.accelerator.current_accelerator(check_available=True)


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it (AVX512_BF16 or AMX), and this torch can tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def computes_bfloat16() -> bool:
    """Whether there is an accelerator that multiplies bfloat16 itself: emulated, it is slower than float32."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type == "mps":
        return False
    if accelerator.type == "cuda":  # ROCm's too
        return torch.cuda.is_bf16_supported(including_emulation=False)
    from transformers.utils import is_torch_bf16_gpu_available  # takes long to import

    return bool(is_torch_bf16_gpu_available())


def base_dtype_on(device: torch.device | str | None) -> torch.dtype:
    """What a base is loaded in where nobody says: bfloat16 on an accelerator that computes in it, else float32."""
    on_accelerator = device is not None and torch.device(device).type != "cpu"
    return torch.bfloat16 if on_accelerator and computes_bfloat16() else torch.float32
