"""Which class of transformers loads a model."""

from typing import Literal

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig

__all__ = ["ModelKind", "auto_class"]

ModelKind = Literal["auto", "causal", "seq2seq"]


def auto_class(config: PretrainedConfig, kind: ModelKind) -> type[AutoModelForCausalLM] | type[AutoModelForSeq2SeqLM]:
    """The class for a decoder-only model ("causal") or an encoder-decoder ("seq2seq"); "auto" asks `config`."""
    seq2seq = kind == "seq2seq" or (kind == "auto" and getattr(config, "is_encoder_decoder", False))
    return AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
