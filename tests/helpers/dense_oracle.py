"""The dense oracle that tests of the adapter compare with.

It knows nothing of the library's layer: it reads A, B and the cores off the model by their names, writes
W0 + s · B Λ_k A into a freshly seeded base model, and runs one row at a time.
"""

import re

import torch
from peft import get_peft_model
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from colora import CoLoRAConfig
from tests.helpers.tiny import VOCAB, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5

FAMILIES = {
    "llama": (tiny_llama, "CAUSAL_LM"),
    "gpt2": (tiny_gpt2, "CAUSAL_LM"),
    "t5": (tiny_t5, "SEQ_2_SEQ_LM"),
    "bert": (tiny_bert, "SEQ_CLS"),
}
TASKS = ["ada", "bo", "cy"]
KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.colora_(A|B|core)\.(\w+)")


def make_bank(base, tasks=TASKS, r=4, seed=100, **config):
    """A bank with random cores and B ≠ 0, so that every task differs from the base and from every other task."""
    torch.manual_seed(seed)
    settings = {"init_weights": False, **config}
    return get_peft_model(base, CoLoRAConfig(**{"r": r, "lora_alpha": 8, "tasks": list(tasks)} | settings)).eval()


def make_inputs(family="llama", rows=4, length=6, seed=5):
    generator = torch.Generator().manual_seed(seed)
    inputs = {"input_ids": torch.randint(6, VOCAB, (rows, length), generator=generator)}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.randint(6, VOCAB, (rows, length - 2), generator=generator)
    return inputs


def factors(model, bank="default"):
    """Leaf copies {layer: {"A", "B", "core"}} of the tensors of a bank."""
    found = {}
    for name, value in model.named_parameters():
        match = KEY.fullmatch(name)
        if match and match[3] == bank:
            found.setdefault(match[1], {})[match[2]] = value.detach().clone().requires_grad_()
    assert found
    return found


def dense_weights(base, tensors, task, scaling=2.0):
    """Full weights {layer.weight: W0 + s · B Λ_task A}. The default scaling is lora_alpha 8 over r = 4."""
    weights = {}
    for layer, t in tensors.items():
        module = base.get_submodule(layer)
        update = scaling * t["B"] @ t["core"][task] @ t["A"]
        weights[f"{layer}.weight"] = module.weight.detach() + (update.T if isinstance(module, Conv1D) else update)
    return weights


def row(inputs, index):
    return {key: value[index : index + 1] for key, value in inputs.items()}


def dense_logits(base, tensors, tasks, inputs, scaling=2.0, extra=None):
    """Logits of every row under the dense weights of its own task, one row at a time."""
    rows = []
    for index, task in enumerate(tasks):
        weights = dense_weights(base, tensors, task, scaling) | (extra or {})
        rows.append(functional_call(base, weights, (), row(inputs, index)).logits)
    return torch.cat(rows)


def distance(one, other):
    return (one - other).abs().max().item()
