"""Tiny random models that a bank cannot adapt everywhere: towers, fused kernels, routers, heads."""

import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tests.helpers.tiny import VOCAB

TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
IMAGE = 5
"""The token whose places `llava` fills with what its tower makes of an image: four of them for each."""


def seeded(model_class: type[PreTrainedModel], config: object, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return model_class(config).eval()


def llava(seed: int = 0) -> PreTrainedModel:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE,
        image_seq_length=4,
    )  # fmt: skip
    return seeded(LlavaForConditionalGeneration, config, seed)


def gemma3(seed: int = 0) -> PreTrainedModel:
    """Two towers' worth of names that the text shares (q_proj), and embeddings tied to the output layer."""
    config = Gemma3Config(text_config={**TEXT, "head_dim": 8}, vision_config=VISION, mm_tokens_per_image=4)
    return seeded(Gemma3ForConditionalGeneration, config, seed)


def clip(seed: int = 0) -> PreTrainedModel:
    text = CLIPTextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=VISION, projection_dim=16)
    return seeded(CLIPModel, config, seed)


def whisper(seed: int = 0) -> PreTrainedModel:
    config = WhisperConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_source_positions=50, max_target_positions=32,
        num_mel_bins=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return seeded(WhisperForConditionalGeneration, config, seed)


def mamba(seed: int = 0) -> PreTrainedModel:
    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4, pad_token_id=0
    )
    return seeded(MambaForCausalLM, config, seed)


def mamba2(seed: int = 0) -> PreTrainedModel:
    config = Mamba2Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8, head_dim=8, num_heads=8, n_groups=1,
        pad_token_id=0,
    )  # fmt: skip
    return seeded(Mamba2ForCausalLM, config, seed)


def mobilebert(seed: int = 0) -> PreTrainedModel:
    config = MobileBertConfig(vocab_size=VOCAB, num_hidden_layers=1, hidden_size=32, embedding_size=32)
    return seeded(MobileBertForMaskedLM, config, seed)


def qwen2_moe(seed: int = 0) -> PreTrainedModel:
    """With a gate of one output in each layer."""
    config = Qwen2MoeConfig(
        **TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32
    )
    return seeded(Qwen2MoeForCausalLM, config, seed)


def token_classifier(labels: int = 9, seed: int = 0) -> PreTrainedModel:
    return seeded(BertForTokenClassification, BertConfig(**BERT, num_labels=labels), seed)


def question_answerer(seed: int = 0) -> PreTrainedModel:
    return seeded(BertForQuestionAnswering, BertConfig(**BERT), seed)


def distilbert(seed: int = 0) -> PreTrainedModel:
    """PEFT trains its `pre_classifier` whole as well, which ends like `classifier`."""
    config = DistilBertConfig(
        vocab_size=VOCAB, dim=32, hidden_dim=64, n_layers=1, n_heads=4, num_labels=9, seq_classif_dropout=0.0,
        dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    return seeded(DistilBertForSequenceClassification, config, seed)
