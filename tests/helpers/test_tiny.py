"""The test models themselves."""

import torch

from tests.helpers.tiny import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer


def test_tokenizer_round_trips_any_text():
    tokenizer = tiny_tokenizer()
    text = "mañana, três e 12 de março — ça va?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_models_run():
    ids = torch.randint(6, 200, (2, 5))
    for model in (tiny_llama(), tiny_gpt2(), tiny_t5(), tiny_bert()):
        extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        assert torch.isfinite(model(input_ids=ids, **extra).logits).all()
