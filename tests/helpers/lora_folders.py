"""Plain LoRAs on disk, made by stock PEFT on a tiny base model."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

__all__ = ["change_config", "change_tensors", "dense_updates", "save_lora"]


def save_lora(folder: Path, base: str, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Path:
    """Train nothing, but save random LoRA factors the way stock PEFT does."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    config = LoraConfig(**{"r": 2, "target_modules": "all-linear", "init_lora_weights": False} | options)
    get_peft_model(model, config).save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def dense_updates(folder: Path, base: str) -> dict[str, Tensor]:
    """W − W0 of every linear layer, dense, as stock PEFT merges it; zero where the LoRA has none."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {name: one.detach().clone() for name, one in model.named_parameters() if one.ndim == 2}
    merged: Any = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).merge_and_unload()
    return {name: one.detach() - before[name] for name, one in merged.named_parameters() if one.ndim == 2}


def change_config(folder: Path, **fields: Any) -> Path:
    """Put these fields into a LoRA's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def change_tensors(folder: Path, **tensors: Tensor | None) -> Path:
    """Put these tensors into a LoRA's file; None takes one out."""
    path = folder / "adapter_model.safetensors"
    found = load_file(path) | tensors
    save_file({key: value for key, value in found.items() if value is not None}, path)
    return folder
