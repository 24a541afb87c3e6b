"""Mixtures of experts: fused weights are adapted where they are named, and told of where they are not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers
from colora.bank.export import export_lora
from colora.bank.load import load_bank
from colora.errors import BaseMismatchError, ConfigError, TaskIdError
from colora.training.run import train
from colora.transfer.similarity import bank_similarity
from tests.helpers.run_files import config_of, save_base
from tests.helpers.tiny import COMMON, VOCAB

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, **COMMON,
}  # fmt: skip
LAYERS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
FUSED = ["experts.gate_up_proj", "experts.down_proj"]


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))


def qwen3_moe() -> Any:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **sizes))


def gpt_oss() -> Any:
    """Transposed weights, biases, gate and up interleaved."""
    layers = ["sliding_attention", "full_attention"]
    return GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4, head_dim=8, layer_types=layers))


def granite_moe() -> Any:
    return GraniteMoeForCausalLM(GraniteMoeConfig(**SIZES, num_local_experts=4))


def jamba() -> Any:
    every = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    sizes = {"num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4}
    return JambaForCausalLM(JambaConfig(**SIZES, **every, **sizes, use_mamba_kernels=False))


def deepseek_v3() -> Any:
    """A dense layer first, and experts that are shared by all tokens beside the others."""
    heads = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    sizes = {"n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
    chosen = {"num_experts_per_tok": 2, "first_k_dense_replace": 1}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**{**SIZES, "num_key_value_heads": 4}, **heads, **sizes, **chosen))


MODELS = [mixtral, qwen3_moe, gpt_oss, granite_moe, jamba, deepseek_v3]


def base_of(make: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = make().double().eval()
    model.set_experts_implementation("eager")  # the fused ones do not take float64
    return model


def banked(base: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    options = {"target_modules": [r"q_proj"], "target_parameters": FUSED, **options}
    config = CoLoRAConfig(r=4, tasks=["a", "b"], init_weights=False, task_type="CAUSAL_LM", **options)
    return get_peft_model(base, config).double()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(6, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", MODELS)
def test_every_token_has_the_task_of_its_row_at_whichever_expert_it_ends(make, ids):
    model = banked(base_of(make))
    mixed = model(input_ids=ids, task_ids=["a", "b"]).logits
    alone = [model(input_ids=ids[row : row + 1], task_ids=["ab"[row]]).logits for row in range(2)]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=0, atol=1e-12)
    tokens = torch.tensor([[0, 1] * 4 + [0], [1] * 9])
    torch.testing.assert_close(model(input_ids=ids, task_ids=tokens).logits[1:], alone[1], rtol=0, atol=1e-12)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, base_of(make)(input_ids=ids).logits)


@pytest.mark.parametrize("make", MODELS)
def test_merged_saved_and_exported_are_the_bank(make, ids, tmp_path):
    model = banked(base_of(make))
    want = model(input_ids=ids, task_ids=["a", "b"]).logits.detach()
    model.save_pretrained(tmp_path / "bank")
    loaded = PeftModel.from_pretrained(base_of(make), tmp_path / "bank").double()
    torch.testing.assert_close(loaded(input_ids=ids, task_ids=["a", "b"]).logits, want, rtol=0, atol=1e-7)
    export_lora(model, "b", tmp_path / "lora")
    lora = PeftModel.from_pretrained(base_of(make), tmp_path / "lora").double()
    torch.testing.assert_close(lora(input_ids=ids[1:]).logits, want[1:], rtol=0, atol=1e-7)
    assert not torch.allclose(lora(input_ids=ids[:1]).logits, want[:1], atol=1e-2)
    model.set_task("b")
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=ids[1:]).logits, want[1:], rtol=0, atol=1e-12)
    with pytest.raises(TaskIdError, match="is merged into the base weights"):
        model(input_ids=ids, task_ids=["a", "b"])
    model.unmerge_adapter()
    torch.testing.assert_close(model(input_ids=ids, task_ids=["a", "b"]).logits, want, rtol=0, atol=1e-12)
    merged = model.merge_and_unload(task="a")
    torch.testing.assert_close(merged(input_ids=ids[:1]).logits, want[:1], rtol=0, atol=1e-12)
    assert not any("colora" in name for name, _ in merged.named_parameters())


def test_generation_with_beams_follows_the_rows(ids):
    model = banked(base_of(mixtral))
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "eos_token_id": None}
    both = model.generate(input_ids=ids, task_ids=["a", "b"], **options)
    alone = [model.generate(input_ids=ids[row : row + 1], task_ids=["ab"[row]], **options)[0] for row in range(2)]
    assert both.tolist() == torch.stack(alone).tolist()


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_the_adapted_forward_is_that_of_each_implementation(implementation, ids):
    base = base_of(mixtral).float()
    base.set_experts_implementation(implementation)
    want = base(input_ids=ids).logits
    config = CoLoRAConfig(r=4, tasks=["a"], target_modules=["q_proj"], target_parameters=FUSED)
    torch.testing.assert_close(get_peft_model(base, config)(input_ids=ids).logits, want, rtol=1e-4, atol=1e-5)


def test_each_expert_is_a_layer_with_cores_of_its_own(ids):
    model = banked(base_of(mixtral))
    names = [name for name in bank_layers(model, "default") if "experts" in name]
    assert len(names) == 2 * 2 * 4
    assert "model.layers.1.mlp.experts.down_proj.3" in names
    core = model.core("a")
    assert set(names) <= core.keys()
    model.add_tasks(["c"], init="a")
    torch.testing.assert_close(
        model(input_ids=ids[:1], task_ids=["c"]).logits, model(input_ids=ids[:1], task_ids=["a"]).logits
    )
    model.set_core("b", core)
    torch.testing.assert_close(
        model(input_ids=ids[:1], task_ids=["b"]).logits, model(input_ids=ids[:1], task_ids=["a"]).logits
    )


def test_gradients_reach_the_cores_of_the_tasks_in_the_batch_alone(ids):
    model = banked(base_of(mixtral)).train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model(input_ids=ids, labels=ids, task_ids=["b", "b"]).loss.backward()
    cores = [p for name, p in model.named_parameters() if "experts" in name and "colora_core" in name]
    assert len(cores) == 16
    assert all(not p.grad[0].any() and p.grad[1].any() for p in cores if p.grad is not None)
    assert sum(p.grad is not None for p in cores) > 8


@pytest.mark.parametrize("make", MODELS)
def test_what_is_not_adapted_is_told_when_the_bank_is_made(make):
    with pytest.warns(UserWarning, match=r"\d+ % of this model's weights are fused in experts.down_proj, experts.gate"):
        get_peft_model(base_of(make), CoLoRAConfig(r=4, tasks=["a"], target_modules=["q_proj"]))


def test_a_name_that_fits_no_fused_weights_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match=r"match 'experts.gate'. There are: experts.down_proj, experts.gate_up_proj"):
        banked(base_of(mixtral), target_parameters=["experts.gate", "experts.down_proj"])
    base = base_of(mixtral)
    with pytest.raises(ConfigError, match="target_parameters: expected a list of names"):
        banked(base, target_parameters="experts.down_proj")


def test_experts_with_a_forward_pass_of_their_own_are_refused_and_the_base_stays_whole(ids):
    sizes = {"intermediate_size_mlp": 64, "num_local_experts": 4, "head_dim": 8}
    base = Llama4ForCausalLM(Llama4TextConfig(**SIZES, **sizes)).eval()
    want = base(input_ids=ids).logits
    with pytest.raises(
        ConfigError, match=r"'model.layers.0.feed_forward.experts' are a Llama4TextExperts, which has its own forward"
    ):
        banked(base)
    torch.testing.assert_close(base(input_ids=ids).logits, want, rtol=0, atol=0)
    assert not any("colora" in name or "base_layer" in name for name, _ in base.named_parameters())


def test_a_bank_knows_its_base_by_the_experts_too(tmp_path):
    banked(base_of(mixtral), target_modules=[]).save_pretrained(tmp_path)
    PeftModel.from_pretrained(base_of(mixtral), tmp_path)
    with pytest.raises(BaseMismatchError, match="same shapes, other weights"):
        PeftModel.from_pretrained(base_of(mixtral, seed=5), tmp_path)
    with pytest.raises(BaseMismatchError, match=r"experts.down_proj: expected 4 x 32 x 64"):
        PeftModel.from_pretrained(base_of(qwen3_moe), tmp_path)


def test_listed_experts_refuse_a_batch_of_several_tasks_by_name():
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_experts": 4}
    layers = {"num_layers": 2, "num_sparse_encoder_layers": 1, "num_decoder_layers": 2, "num_sparse_decoder_layers": 1}
    config = SwitchTransformersConfig(**sizes, **layers, decoder_start_token_id=0)
    base = SwitchTransformersForConditionalGeneration(config).eval()
    target = r".*experts\.expert_\d+\.wi"
    model = get_peft_model(base, CoLoRAConfig(r=4, tasks=["a", "b"], target_modules=target, init_weights=False))
    ids = torch.randint(6, VOCAB, (2, 5))
    with pytest.raises(TaskIdError, match=r"layer '.*experts.expert_\d.wi' sees other rows than those of the batch"):
        model(input_ids=ids, decoder_input_ids=ids, task_ids=["a", "b"])
    same = model(input_ids=ids, decoder_input_ids=ids, task_ids=["b", "b"]).logits
    model.set_task("b")
    torch.testing.assert_close(same, model(input_ids=ids, decoder_input_ids=ids).logits)


@pytest.mark.parametrize("start", ["kaiming", "spectral"])
def test_a_run_trains_saves_and_compares_the_experts_of_its_tasks(tmp_path, start):
    torch.manual_seed(0)
    base = save_base(tmp_path / "base", mixtral())
    config = config_of(tmp_path, base, adapter={**LAYERS, "r": 4, "init_weights": start})
    train(config)
    saved = Path(config.output)
    model, _, _ = load_bank(saved)
    names = [name for name in bank_layers(model, "default") if "experts" in name]
    assert len(names) == 16
    assert bank_similarity(saved)
