"""Tiny random models of many architectures, each built in code in a moment: for the table here and for the tests.

A model has hidden states of 32 numbers, two layers where that can be, and 262 tokens, of which 0 pads, 1 begins and 2
ends. Its weights are larger than those a library starts with, so that attention and positions show in the logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging

__all__ = ["VOCAB", "ZOO", "Architecture"]

Kind = Literal["causal", "seq2seq", "tokens", "images", "speech", "both"]
VOCAB = 262
SPREAD = 5.0


@dataclass(frozen=True)
class Architecture:
    """A kind of model.

    Attributes:
        name: what it is called in the table.
        kind: what it reads: "causal" and "seq2seq" generate text from text, "both" from an image and text, "speech"
            from sound; "tokens" and "images" classify.
        build: makes the model with random weights.
        dtype: the most exact type that the model's own code can be run with.
        experts: fused weights of a mixture that a bank adapts beside the linear layers (`target_parameters`).
    """

    name: str
    kind: Kind
    build: Callable[[], PreTrainedModel]
    dtype: torch.dtype = torch.float64
    experts: tuple[str, ...] = ()

    def make(self, seed: int = 0, dtype: torch.dtype | None = None, spread: float = SPREAD) -> PreTrainedModel:
        """The model in evaluation mode; the process's random state is left as it was.

        Args:
            seed: of the weights.
            dtype: of the weights, by default the most exact one.
            spread: factor on the matrices.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # tiny settings look odd to many configurations
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seed)
                model = self.build().to(dtype or self.dtype).eval()
                for weight in model.parameters():
                    if weight.ndim > 1:
                        weight.mul_(spread)
                if (dtype or self.dtype) == torch.float64:
                    model.set_experts_implementation("eager")  # the grouped product has no float64
        finally:
            logging.set_verbosity(verbosity)
        return model


def _build(model: str, config: str, values: Mapping[str, Any]) -> PreTrainedModel:
    made: PreTrainedModel = getattr(transformers, model)(getattr(transformers, config)(**values))
    return made


_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYERS = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_SPECIAL}
_LLAMA = {**_LAYERS, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
_BERT = {**_LAYERS, "intermediate_size": 64, "max_position_embeddings": 128, "num_labels": 3}
_ENCODER_DECODER = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128,
    **_SPECIAL,
}  # fmt: skip
_DEEPSEEK = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": None, "kv_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
_MAMBA = {"num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4}
_PERIODS = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
_QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
_LONG = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_IMAGE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip

# Name, class of the model, class of its configuration, its values.
_CAUSAL: list[tuple[str, str, str, dict[str, Any]]] = [
    ("Llama", "LlamaForCausalLM", "LlamaConfig", _LLAMA),
    ("Llama, yarn", "LlamaForCausalLM", "LlamaConfig", {**_LLAMA, "rope_parameters": _YARN}),
    ("Llama 4", "Llama4ForCausalLM", "Llama4TextConfig",
     {**_LLAMA, "intermediate_size_mlp": 64, "num_local_experts": 2, "head_dim": 8, "attention_chunk_size": 8}),
    ("Mistral", "MistralForCausalLM", "MistralConfig", {**_LLAMA, "sliding_window": None, "head_dim": 8}),
    ("Mistral, window", "MistralForCausalLM", "MistralConfig", {**_LLAMA, "sliding_window": 8, "head_dim": 8}),
    ("Mixtral", "MixtralForCausalLM", "MixtralConfig", {**_LLAMA, "num_local_experts": 4, "sliding_window": None}),
    ("Phi MoE", "PhimoeForCausalLM", "PhimoeConfig", {**_LLAMA, "num_local_experts": 4, "sliding_window": None}),
    ("Qwen 2", "Qwen2ForCausalLM", "Qwen2Config", _LLAMA),
    ("Qwen 3", "Qwen3ForCausalLM", "Qwen3Config", {**_LLAMA, "head_dim": 8}),
    ("Qwen 3 MoE", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_LLAMA, **_QWEN_MOE}),
    ("Gemma", "GemmaForCausalLM", "GemmaConfig", {**_LLAMA, "head_dim": 8}),
    ("Gemma 2", "Gemma2ForCausalLM", "Gemma2Config", {**_LLAMA, "head_dim": 8, "sliding_window": 128}),
    ("Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig", {**_LLAMA, "head_dim": 8, "sliding_window": 8}),
    ("gpt-oss", "GptOssForCausalLM", "GptOssConfig",
     {**_LLAMA, "num_local_experts": 4, "head_dim": 8, "sliding_window": 128,
      "layer_types": ["sliding_attention", "full_attention"]}),
    ("DeepSeek V3", "DeepseekV3ForCausalLM", "DeepseekV3Config", {**_LLAMA, **_DEEPSEEK}),
    ("Granite", "GraniteForCausalLM", "GraniteConfig", _LLAMA),
    ("Granite MoE", "GraniteMoeForCausalLM", "GraniteMoeConfig", {**_LLAMA, "num_local_experts": 4}),
    ("Phi", "PhiForCausalLM", "PhiConfig", _LLAMA),
    ("Phi 3", "Phi3ForCausalLM", "Phi3Config", _LLAMA),
    ("Phi 3, longrope", "Phi3ForCausalLM", "Phi3Config",
     {**_LLAMA, "original_max_position_embeddings": 16, "rope_parameters": _LONG}),
    ("StableLM", "StableLmForCausalLM", "StableLmConfig", _LLAMA),
    ("Cohere", "CohereForCausalLM", "CohereConfig", _LLAMA),
    ("OLMo 2", "Olmo2ForCausalLM", "Olmo2Config", _LLAMA),
    ("SmolLM 3", "SmolLM3ForCausalLM", "SmolLM3Config", _LLAMA),
    ("StarCoder 2", "Starcoder2ForCausalLM", "Starcoder2Config", {**_LLAMA, "sliding_window": None}),
    ("GPT-2", "GPT2LMHeadModel", "GPT2Config",
     {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **_SPECIAL}),
    ("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig",
     {**_LAYERS, "intermediate_size": 64, "max_position_embeddings": 128}),
    ("GPT-Neo", "GPTNeoForCausalLM", "GPTNeoConfig",
     {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
      "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128, **_SPECIAL}),
    ("GPT-J", "GPTJForCausalLM", "GPTJConfig",
     {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128, **_SPECIAL}),
    ("OPT", "OPTForCausalLM", "OPTConfig",
     {**_LAYERS, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}),
    ("BLOOM", "BloomForCausalLM", "BloomConfig",
     {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_SPECIAL}),
    ("Falcon", "FalconForCausalLM", "FalconConfig", _LAYERS),
    ("Falcon, ALiBi", "FalconForCausalLM", "FalconConfig",
     {**_LAYERS, "alibi": True, "new_decoder_architecture": False}),
    ("MPT", "MptForCausalLM", "MptConfig",
     {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, **_SPECIAL}),
    ("XGLM", "XGLMForCausalLM", "XGLMConfig",
     {"vocab_size": VOCAB, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4,
      "max_position_embeddings": 128, **_SPECIAL}),
    ("BioGPT", "BioGptForCausalLM", "BioGptConfig",
     {**_LAYERS, "intermediate_size": 64, "max_position_embeddings": 128}),
    ("BERT, decoder", "BertLMHeadModel", "BertConfig", {**_BERT, "is_decoder": True}),
    ("RoBERTa, decoder", "RobertaForCausalLM", "RobertaConfig", {**_BERT, "is_decoder": True}),
    ("Mamba", "MambaForCausalLM", "MambaConfig",
     {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4,
      **_SPECIAL}),
    ("Mamba 2", "Mamba2ForCausalLM", "Mamba2Config",
     {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "head_dim": 8, "num_heads": 8,
      "n_groups": 1, "expand": 2, **_SPECIAL}),
    ("Jamba", "JambaForCausalLM", "JambaConfig", {**_LLAMA, **_MAMBA, **_PERIODS}),
    ("RWKV", "RwkvForCausalLM", "RwkvConfig",
     {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
      "intermediate_size": 64, **_SPECIAL}),
    ("RecurrentGemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig",
     {**_LLAMA, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64, "conv1d_width": 4}),
    ("LFM2", "Lfm2ForCausalLM", "Lfm2Config", {**_LLAMA, "layer_types": ["conv", "full_attention"]}),
]  # fmt: skip
_OTHERS: list[tuple[str, Kind, str, str, dict[str, Any]]] = [
    ("T5", "seq2seq", "T5ForConditionalGeneration", "T5Config",
     {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2, "dropout_rate": 0.0}),
    ("BART", "seq2seq", "BartForConditionalGeneration", "BartConfig",
     {**_ENCODER_DECODER, "decoder_start_token_id": 2}),
    ("BERT", "tokens", "BertForSequenceClassification", "BertConfig", _BERT),
    ("RoBERTa", "tokens", "RobertaForSequenceClassification", "RobertaConfig", _BERT),
    ("ViT", "images", "ViTForImageClassification", "ViTConfig", {**_IMAGE, "num_labels": 3}),
    ("Whisper", "speech", "WhisperForConditionalGeneration", "WhisperConfig",
     {**{name: value for name, value in _ENCODER_DECODER.items() if name != "max_position_embeddings"},
      "max_source_positions": 50, "max_target_positions": 32, "num_mel_bins": 8, "decoder_start_token_id": 1,
      "suppress_tokens": [], "begin_suppress_tokens": []}),
    ("LLaVA", "both", "LlavaForConditionalGeneration", "LlavaConfig",
     {"text_config": {"model_type": "llama", **_LLAMA}, "vision_config": {"model_type": "clip_vision_model", **_IMAGE},
      "image_token_id": 5, "image_seq_length": 4}),
]  # fmt: skip
_FUSED = ("experts.gate_up_proj", "experts.down_proj")
_MIXTURES = {"Mixtral", "Phi MoE", "Qwen 3 MoE", "DeepSeek V3", "Granite MoE", "gpt-oss", "Jamba"}
_LESS_EXACT = {"XGLM": torch.float32}

ZOO: dict[str, Architecture] = {
    one.name: one
    for one in (
        *(Architecture(name, "causal", partial(_build, model, config, values), _LESS_EXACT.get(name, torch.float64),
                       _FUSED if name in _MIXTURES else ())
          for name, model, config, values in _CAUSAL),
        *(Architecture(name, kind, partial(_build, model, config, values))
          for name, kind, model, config, values in _OTHERS),
    )
}  # fmt: skip
"""The architectures by name, those that generate text from text alone first."""
