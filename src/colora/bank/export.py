"""From a bank to files that need no CoLoRA: plain LoRA folders, and merged models.

The LoRA of task k is exact: lora_A = A and lora_B = B Λ_k, with the bank's scale (see `colora.algebra`).
"""

import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from colora.adapter.config import CoLoRAConfig
from colora.adapter.mixtures.experts import ExpertLinear
from colora.adapter.model import bank_layers, bank_tuner
from colora.adapter.stored.access import core_rank
from colora.adapter.targets.tied import tied_parts
from colora.bank.card import CARD_FILE
from colora.bank.dequantise import dequantise
from colora.bank.export_card import Origin, export_card, exported_task, origin_of
from colora.bank.how_to_prompt import HowToPrompt
from colora.bank.spelling import spell_targets
from colora.common.files import staged_folder, write_json
from colora.common.systems import file_name_fault
from colora.errors import ConfigError
from colora.models.base import hub_name
from colora.tasks.tokenizer import Tokenizer

__all__ = ["export_lora", "export_loras", "export_merged", "lora_tensors", "needed_fields"]

_ALWAYS = {
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
    "use_rslora",
}
LORA_FILES = {CARD_FILE, "adapter_config.json", "adapter_model.safetensors"}


def lora_tensors(model: PeftModel, task: str) -> dict[str, Tensor]:
    """The tensors of a task's plain LoRA, by the names that PEFT saves them under; its rank is that of the task's core.

    `lora_B` is computed in float64 and rounded once to the bank's own precision. In float64 the LoRA gives the bank's
    logits to about 1e-12; in float32 they differ by rounding, up to some 1e-4 on logits of magnitude 35.

    Raises:
        TaskIdError: if the bank has no such task.
    """
    bank, config = _bank(model)
    cores = bank_tuner(model).core(task)
    tensors: dict[str, Tensor] = {}
    fused: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, layer in bank_layers(model, bank).items():
        A, B = layer.colora_A[bank].detach(), layer.colora_B[bank].detach()
        core = cores[name]
        A, B = A[: len(core)], B[:, : len(core)]  # a smaller core mixes the leading directions alone
        own_B = (B.cpu().double() @ core.cpu().double()).to(B.dtype)  # not every accelerator has float64
        if isinstance(layer, ExpertLinear):
            fused.setdefault(name.rpartition(".")[0], []).append((A.cpu(), own_B))
            continue
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.cpu().contiguous().clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = own_B.contiguous()
    tensors |= _expert_tensors(fused)
    if config.modules_to_save:
        saved = get_peft_model_state_dict(model, adapter_name=bank, save_embedding_layers=False)
        tensors |= {key: value.cpu().contiguous() for key, value in saved.items() if "colora_" not in key}
    return tensors


def _expert_tensors(fused: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """PEFT's LoRA of fused weights (`target_parameters`), from the factors of each expert, by the parameter's name.

    PEFT stacks them, lora_A expert by expert, lora_B direction by direction, and wraps the experts once for each
    parameter: the last one is outermost.
    """
    modules: dict[str, list[str]] = {}
    for name in fused:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    tensors = {}
    for module, names in modules.items():
        for depth, name in enumerate(reversed(names)):
            prefix = f"base_model.model.{module}" + ".base_layer" * depth
            factors = fused[name]
            tensors[f"{prefix}.lora_A.weight"] = torch.cat([A for A, _ in factors])
            tensors[f"{prefix}.lora_B.weight"] = torch.stack([B for _, B in factors], -1).flatten(1)
    return tensors


def export_lora(model: PeftModel, task: str, folder: Path, use: HowToPrompt | None = None) -> None:
    """Write one task as a plain LoRA that stock PEFT, vLLM or TGI load; atomic.

    Args:
        model: with one active bank.
        task: which of its tasks.
        folder: to write.
        use: how the bank's prompts are made, which the README of the folder then tells.

    Raises:
        TaskIdError: if the bank has no such task.
        ConfigError: if the folder holds anything but an earlier export of this task.
        CheckpointError: if the folder cannot be written.
    """
    _export_lora(model, task, folder, use, origin_of(model))


def _export_lora(model: PeftModel, task: str, folder: Path, use: HowToPrompt | None, origin: Origin) -> None:
    bank, config = _bank(model)
    tensors = lora_tensors(model, task)
    folder = _replaceable(folder, task)
    layers = bank_layers(model, bank)
    if tied := tied_parts(bank_tuner(model).model).keys() & layers.keys():
        warnings.warn(
            f"{', '.join(sorted(tied))} shares its weight with the embeddings of the base: whoever merges this LoRA "
            "into the base must untie them first, or the embeddings change too; export_merged does so",
            stacklevel=2,
        )
    experts = list(
        dict.fromkeys(name.rpartition(".")[0] for name, layer in layers.items() if isinstance(layer, ExpertLinear))
    )
    linear = [name for name, layer in layers.items() if not isinstance(layer, ExpertLinear)]
    modules, parameters = spell_targets(bank_tuner(model).model, linear, experts)
    transposed = {layers[name].transposed for name in linear}
    rank = core_rank(model, bank_tuner(model).router.index(task, bank))
    lora = LoraConfig(
        r=rank,
        # The scale is made from r, alpha and use_rslora as the bank's is; PEFT takes floats, whatever its annotation.
        lora_alpha=config.alpha_of(rank),  # type: ignore[arg-type]
        use_rslora=config.use_rslora,
        lora_dropout=config.lora_dropout if not parameters else 0.0,  # PEFT takes none beside target_parameters
        target_modules=modules,
        target_parameters=parameters or None,
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=transposed == {True},
        task_type=config.task_type,
        base_model_name_or_path=hub_name(config.base_model_name_or_path),  # older banks have our own name for it
        inference_mode=True,
    )
    with staged_folder(folder) as staging:
        save_file(tensors, staging / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(staging / "adapter_config.json", needed_fields(lora))
        (staging / CARD_FILE).write_text(export_card(task, origin, use), encoding="utf-8")


def export_loras(
    model: PeftModel, folder: Path, tasks: Sequence[str] | None = None, use: HowToPrompt | None = None
) -> dict[str, Path]:
    """Write several tasks, all by default, each to its folder `folder/TASK`; returns the folders."""
    names = list(tasks) if tasks is not None else bank_tuner(model).tasks
    if (folder / "adapter_config.json").exists():
        raise ConfigError(f"{folder} holds an adapter itself, not a folder for each task; choose another folder")
    for name in names:
        bank_tuner(model).router.index(name, _bank(model)[0])  # before anything is written
        if fault := file_name_fault(name):
            raise ConfigError(f"{fault}, or export it alone into a folder of another name")
        _replaceable(folder / name, name)
    # macOS and Windows do not tell case apart, and macOS not how an accent is put together.
    if len({unicodedata.normalize("NFC", name).casefold() for name in names}) < len(names):
        raise ConfigError(
            "the names of two tasks differ only in upper and lower case, so their folders may be the "
            "same: export them one at a time"
        )
    origin = origin_of(model)
    for name in names:
        _export_lora(model, name, folder / name, use, origin)
    return {name: folder / name for name in names}


def export_merged(
    model: PeftModel, task: str, folder: Path, tokenizer: Tokenizer | None = None, use: HowToPrompt | None = None
) -> None:
    """Write the whole base model with a task's update added to its weights. The model in memory is used up.

    A quantised base is written as what its weights stand for, in the dtype of the model, so that the update is not
    rounded with them; `dequantise` has more.

    Raises:
        TaskIdError: if the bank has no such task.
        ConfigError: if the folder holds anything but a LoRA exported from this task, the base is quantised in a way
            that cannot be undone, or see `CoLoRAModel.merge_and_unload`.
        CheckpointError: if the folder cannot be written.
    """
    bank_tuner(model).router.index(task, _bank(model)[0])
    folder, origin = _replaceable(folder, task), origin_of(model)
    plain = not dequantise(model)
    merged: Any = bank_tuner(model).merge_and_unload(task=task)
    with staged_folder(folder) as staging:
        merged.save_pretrained(str(staging), save_original_format=plain)  # there is no way back to the other
        if tokenizer is not None:
            tokenizer.save_pretrained(str(staging))
        (staging / CARD_FILE).write_text(export_card(task, origin, use, merged=True), encoding="utf-8")


def needed_fields(lora: LoraConfig) -> dict[str, Any]:
    """The fields that readers ask for, and those that are not at their default: an older PEFT refuses keys it lacks."""
    fields, defaults = lora.to_dict(), LoraConfig().to_dict()
    chosen = {key: value for key, value in fields.items() if key in _ALWAYS or value != defaults.get(key)}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(chosen.items())}


def _replaceable(folder: Path, task: str) -> Path:
    """The folder by its full path. Whatever is there is replaced whole, so it may only be empty or this task's LoRA."""
    folder = Path(os.path.abspath(folder))
    if not folder.exists():
        return folder
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    if names is None or not names <= LORA_FILES:
        raise ConfigError(f"{folder} is there already and is no exported LoRA; choose another folder, or remove it")
    if names and (found := exported_task(folder / CARD_FILE)) != task:
        what = f"the LoRA of task {found!r}" if found else "an adapter that does not name its task"
        raise ConfigError(f"{folder} holds {what}; choose another folder for {task!r}, or remove it")
    return folder


def _bank(model: PeftModel) -> tuple[str, CoLoRAConfig]:
    tuner = bank_tuner(model)
    active = tuner.active_adapters
    config = tuner.peft_config[active[0]] if len(active) == 1 else None
    if not isinstance(config, CoLoRAConfig):
        raise ConfigError(f"expected a model with one active bank, found {', '.join(active) or 'no adapter'}")
    return active[0], config
