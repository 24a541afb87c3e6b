"""Tiny random models and a byte-level tokenizer, built in code: no network, milliseconds."""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]


def tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: 256 bytes and six special tokens; round-trips any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=SPECIALS[3:],
    )  # fmt: skip
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As those of Llama 2, Mistral and Gemma: words with "\u2581" for a space, and one for each byte; 268 tokens."""
    words = ["\u2581", "\u2581a", "\u2581hello", "b", "\uc12c", "\u00bb"]
    vocab = {
        token: index for index, token in enumerate([*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *words])
    }
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=SPECIALS[3:],
    )  # fmt: skip


VOCAB = 256 + len(SPECIALS)
COMMON = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_llama(
    seed: int = 0, dtype: torch.dtype = torch.float32, hidden: int = 32, layers: int = 2, positions: int = 512
) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions,
        tie_word_embeddings=True, **COMMON,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def readable_llama(seed: int = 0) -> PreTrainedModel:
    """One that writes printable ASCII alone and ends no answer, with heads as wide as vLLM wants them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, **COMMON,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    printable = {tiny_tokenizer()(chr(code), add_special_tokens=False)["input_ids"][0] for code in range(33, 127)}
    with torch.no_grad():
        for parameter in model.parameters():  # no two tokens are level
            parameter.mul_(2)
        model.lm_head.weight[[token for token in range(VOCAB) if token not in printable]] = 0
    return model


def tiny_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=VOCAB, n_positions=256, n_embd=32, n_layer=2, n_head=4, **COMMON)
    return GPT2LMHeadModel(config).to(dtype).eval()


def tiny_t5(seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=2, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).to(dtype).eval()


def tiny_bert(seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).to(dtype).eval()
