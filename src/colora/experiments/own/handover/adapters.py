"""The recommended method's adapters as files to serve with, whatever method it is.

OUTPUT/adapters/bank/          a bank, where one shared A and B and at most a core for each task are all there is
OUTPUT/adapters/lora/TASK/     a plain LoRA for each task; pooled: one for all, in lora/all
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from colora.adapter.config import ADAPTER_NAME, CoLoRAConfig
from colora.adapter.model import bank_layers
from colora.bank.export import needed_fields
from colora.bank.how_to_prompt import HowToPrompt
from colora.bank.importing.fit import target_names
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.bank.spelling import spell_targets
from colora.common.files import staged_folder, write_json
from colora.experiments.own.handover.weights import TrainedTerm, TrainedWeights, stacked
from colora.models.base import hub_name

__all__ = ["is_bank", "write_bank_of", "write_loras"]

FOR_ALL = "all"


def is_bank(weights: TrainedWeights) -> bool:
    """Whether the update is s · B Λ_k A with one A and one B for all tasks."""
    return all(len(terms) == 1 and len(terms[0].A) == len(terms[0].B) == 1 for terms in weights.layers.values())


def _is_for_all(weights: TrainedWeights) -> bool:
    return all(
        len(term.A) == len(term.B) == 1 and (term.core is None or len(term.core) == 1)
        for terms in weights.layers.values()
        for term in terms
    )


def write_loras(weights: TrainedWeights, model: PreTrainedModel, folder: Path, use: HowToPrompt) -> list[Path]:
    """Write what was trained as plain LoRAs, one a task, or one if it is the same for all; exact.

    Several terms become one LoRA whose rank is the sum of theirs.

    Args:
        weights: what was trained.
        model: the base, without adapters.
        folder: gets a folder for each LoRA.
        use: how prompts are made, which the README of each folder tells.

    Raises:
        CheckpointError: if it cannot be written.
    """
    named = {FOR_ALL: 0} if _is_for_all(weights) else {task: index for index, task in enumerate(weights.tasks)}
    rank = sum(term.A.shape[-2] for term in next(iter(weights.layers.values())))
    modules, parameters = spell_targets(model, list(weights.layers), [])
    lora = LoraConfig(
        r=rank,
        lora_alpha=weights.scale * rank,  # type: ignore[arg-type] # PEFT takes floats, whatever its annotation
        target_modules=modules,
        target_parameters=parameters or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=hub_name(model.name_or_path),
        inference_mode=True,
    )
    for name, index in named.items():
        tensors: dict[str, Tensor] = {}
        for layer, terms in weights.layers.items():
            A, B = stacked(terms, index)
            tensors[f"base_model.model.{layer}.lora_A.weight"] = A.contiguous()
            tensors[f"base_model.model.{layer}.lora_B.weight"] = B.contiguous()
        with staged_folder(folder / name) as staging:
            save_file(tensors, staging / "adapter_model.safetensors", metadata={"format": "pt"})
            write_json(staging / "adapter_config.json", needed_fields(lora))
            (staging / "README.md").write_text(use.readme(name), encoding="utf-8")
    return [folder / name for name in named]


def write_bank_of(weights: TrainedWeights, model: PreTrainedModel, folder: Path, info: BankInfo) -> None:
    """Write what was trained as a bank; see `is_bank`. Without cores all tasks have the identity.

    Args:
        weights: what was trained.
        model: the base; it is as before afterwards.
        folder: of the bank.
        info: how it came to be.

    Raises:
        CheckpointError: if it cannot be written.
    """
    rank = next(iter(weights.layers.values()))[0].A.shape[-2]
    config = CoLoRAConfig(
        r=rank,
        lora_alpha=weights.scale * rank,
        tasks=list(weights.tasks),
        target_modules=target_names(model, set(weights.layers)),
        task_type="CAUSAL_LM",
    )
    bank: Any = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    try:
        for name, layer in bank_layers(bank, ADAPTER_NAME).items():
            (term,) = weights.layers[name]
            # As new storage: the precision in which the bank was made need not be that of the training.
            layer.colora_A[ADAPTER_NAME].data = term.A[0].contiguous()
            layer.colora_B[ADAPTER_NAME].data = term.B[0].contiguous()
            layer.colora_core[ADAPTER_NAME].data = _cores(term, len(weights.tasks), rank)
        save_bank(bank, folder, info)
    finally:
        bank.unload()


def _cores(term: TrainedTerm, tasks: int, rank: int) -> Tensor:
    if term.core is None:
        return torch.eye(rank, dtype=term.A.dtype).expand(tasks, -1, -1).contiguous()
    return term.core.expand(tasks, -1, -1).contiguous()
