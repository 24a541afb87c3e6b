"""Tiny bases with banks on disk, and what transformers answers with them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from colora.adapter.config import CoLoRAConfig
from colora.bank.layout import BankInfo
from colora.bank.load import attach_bank, save_bank
from tests.helpers.tiny import tiny_tokenizer

__all__ = ["TASKS", "Setting", "llama", "make", "phi3", "qwen2", "requests"]

VOCABULARY = 256
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TASKS = tuple(f"task-{number}" for number in range(6))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **SIZES))


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def phi3() -> PreTrainedModel:
    """Its q, k and v are one layer in transformers too."""
    return Phi3ForCausalLM(Phi3Config(**SIZES))


@dataclass(frozen=True)
class Setting:
    base: Path
    bank: Path
    expected: Callable[[str | None, list[int], int], list[int]]


def make(folder: Path, kind: Callable[[], PreTrainedModel], seed: int = 1, **config: object) -> Setting:
    """A tiny base and a bank with random factors and cores, on disk, and what transformers answers with them."""
    torch.manual_seed(0)
    model = kind().eval()
    model.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    with torch.no_grad():  # large enough that tasks differ, and that no two tokens are level
        for parameter in model.parameters():
            parameter.mul_(2)
    model.save_pretrained(folder / "base")
    torch.manual_seed(seed)
    bank = get_peft_model(model, CoLoRAConfig(r=4, lora_alpha=24, tasks=list(TASKS), init_weights=False, **config))
    save_bank(bank, folder / "bank", BankInfo(str(folder / "base")))
    bank.unload()
    loaded = attach_bank(model, folder / "bank").eval()

    @torch.no_grad()
    def expected(task: str | None, prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        if task is None:
            with loaded.disable_adapter():
                found = loaded.generate(input_ids=ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None)
        else:
            found = loaded.generate(
                input_ids=ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, task_ids=[task]
            )
        return found[0, len(prompt) :].tolist()

    return Setting(folder / "base", folder / "bank", expected)


def requests(
    number: int, seed: int = 0, tasks: tuple[str | None, ...] = (*TASKS, None)
) -> list[tuple[str | None, list[int]]]:
    draw = random.Random(seed)
    return [
        (tasks[index % len(tasks)], [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(2, 20))])
        for index in range(number)
    ]
