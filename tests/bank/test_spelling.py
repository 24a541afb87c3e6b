"""Exports of models whose dense layers PEFT takes for experts: the LoRA adapts the layers of the bank and no others."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from colora.adapter.config import CoLoRAConfig
from colora.bank.export import export_lora
from colora.bank.importing.read import read_loras
from colora.errors import ConfigError
from tests.helpers.odd_models import TEXT, seeded

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
IDS = torch.randint(6, 200, (2, 8), generator=torch.Generator().manual_seed(0))


def deepseek() -> PreTrainedModel:
    """A dense layer, and an expert that all tokens share."""
    sizes = {
        **TEXT, "num_key_value_heads": 4, "n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": None, "kv_lora_rank": 8,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    }  # fmt: skip
    return seeded(DeepseekV3ForCausalLM, DeepseekV3Config(**sizes))


def qwen() -> PreTrainedModel:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    return seeded(Qwen3MoeForCausalLM, Qwen3MoeConfig(**TEXT, **sizes, mlp_only_layers=[0]))


def glm() -> PreTrainedModel:
    sizes = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    return seeded(Glm4MoeForCausalLM, Glm4MoeConfig(**TEXT, **sizes, head_dim=8))


def exact(model: PreTrainedModel) -> PreTrainedModel:
    model = model.to(torch.float64)
    model.set_experts_implementation("eager")  # the grouped product has no float64
    return model


@pytest.mark.parametrize("experts", [[], EXPERTS], ids=["dense layers", "experts too"])
@pytest.mark.parametrize("targets", ["all-linear", ["gate_proj"]], ids=["all", "gate_proj"])
@pytest.mark.parametrize("make", [deepseek, qwen, glm])
def test_the_lora_is_the_bank(make, targets, experts, tmp_path):
    config = CoLoRAConfig(
        r=2, tasks=["a", "b"], init_weights=False, task_type="CAUSAL_LM", target_modules=targets,
        target_parameters=experts, lora_dropout=0.1,
    )  # fmt: skip
    bank = get_peft_model(exact(make()), config, autocast_adapter_dtype=False).to(torch.float64).eval()
    export_lora(bank, "b", tmp_path / "b")
    lora = PeftModel.from_pretrained(exact(make()), str(tmp_path / "b"), autocast_adapter_dtype=False)
    expected = bank(input_ids=IDS, task_ids=["b", "b"]).logits
    assert torch.allclose(lora.to(torch.float64)(input_ids=IDS).logits, expected, atol=1e-12)
    assert not torch.allclose(exact(make())(input_ids=IDS).logits, expected, atol=1e-3)


def test_such_a_lora_can_be_imported_and_one_of_experts_is_refused_by_name(tmp_path):
    config = CoLoRAConfig(r=2, tasks=["a"], init_weights=False, task_type="CAUSAL_LM", target_parameters=[])
    export_lora(get_peft_model(deepseek(), config), "a", tmp_path / "a")
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert "model.layers.0.mlp.gate_proj.weight" in written["target_parameters"]
    assert {"model.layers.0.mlp.gate_proj", "model.layers.0.self_attn.q_proj"} <= read_loras([tmp_path / "a"])[
        0
    ].shapes.keys()
    config = CoLoRAConfig(r=2, tasks=["b"], init_weights=False, task_type="CAUSAL_LM", target_parameters=EXPERTS)
    export_lora(get_peft_model(deepseek(), config), "b", tmp_path / "b")
    with pytest.raises(ConfigError, match=r"target_parameters: only plain LoRAs .* expected weights of linear layers"):
        read_loras([tmp_path / "b"])
