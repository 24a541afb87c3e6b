"""Models that turn the batch round: square batches, where a mistake would go unnoticed, and others."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    FSMTConfig,
    FSMTForConditionalGeneration,
    LEDConfig,
    LEDForConditionalGeneration,
    LongformerConfig,
    LongformerModel,
    XLNetConfig,
    XLNetModel,
)

from colora.adapter.config import CoLoRAConfig
from colora.errors import TaskIdError

SMALL = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def fsmt() -> Any:
    sizes = {"src_vocab_size": 99, "tgt_vocab_size": 99, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    return FSMTForConditionalGeneration(FSMTConfig(langs=["en", "de"], max_position_embeddings=64, **sizes, **SMALL))


def led() -> Any:
    sizes = {"vocab_size": 99, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "attention_window": 4}
    return LEDForConditionalGeneration(LEDConfig(max_encoder_position_embeddings=64, **sizes, **SMALL))


def longformer() -> Any:
    return LongformerModel(LongformerConfig(vocab_size=99, attention_window=4, max_position_embeddings=64, **BERT))


def xlnet() -> Any:
    return XLNetModel(XLNetConfig(vocab_size=99, d_model=32, n_layer=1, n_head=4, d_inner=64))


@pytest.mark.parametrize("length", [4, 8], ids=["square", "long"])
@pytest.mark.parametrize("make", [fsmt, led, longformer, xlnet])
def test_each_row_has_its_task_in_a_model_that_turns_the_batch_round(make, length):
    torch.manual_seed(0)
    model = get_peft_model(make().eval(), CoLoRAConfig(r=4, tasks=["a", "b"], init_weights=False))
    ids = torch.randint(6, 99, (4, length))
    tasks = ["a", "b", "b", "a"]
    decoded = {"decoder_input_ids": ids, "use_cache": False} if make in (fsmt, led) else {}

    def first(rows: slice) -> torch.Tensor:
        inputs = {
            "input_ids": ids[rows],
            **{name: x[rows] if name != "use_cache" else x for name, x in decoded.items()},
        }
        return model(**inputs, task_ids=tasks[rows])[0]

    alone = torch.cat([first(slice(row, row + 1)) for row in range(4)])
    torch.testing.assert_close(first(slice(0, 4)), alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, model(input_ids=ids, **decoded, task_ids=["a"] * 4)[0], atol=1e-2)


def test_generation_follows_the_rows_of_such_a_model():
    torch.manual_seed(0)
    config = CoLoRAConfig(r=4, tasks=["a", "b"], init_weights=False, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(fsmt().eval(), config)
    ids = torch.randint(6, 99, (2, 2))
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2, "eos_token_id": None}
    both = model.generate(input_ids=ids, task_ids=["a", "b"], **options)
    alone = [model.generate(input_ids=ids[row : row + 1], task_ids=["ab"[row]], **options)[0] for row in range(2)]
    assert both.tolist() == torch.stack(alone).tolist()


class TurnsRound(torch.nn.Module):
    """No model of transformers': nothing says that it turns the batch round."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(8, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.proj(inputs.transpose(0, 1)).transpose(0, 1)


def test_an_unknown_model_that_turns_the_batch_round_is_refused_by_the_layers_name():
    model = get_peft_model(TurnsRound(), CoLoRAConfig(r=4, tasks=["a", "b"], target_modules=["proj"]))
    with pytest.raises(TaskIdError, match=r"do not fit the input of layer 'proj', of shape \(3, 2, 8\)"):
        model(inputs=torch.zeros(2, 3, 8), task_ids=["a", "b"])


def test_one_task_for_all_rows_is_known_whatever_a_layer_sees():
    """Several choices in a row, which the model lays out as rows of their own; of two tasks it is refused."""
    config = BertConfig(vocab_size=99, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **BERT)
    torch.manual_seed(0)
    model = get_peft_model(
        BertForMultipleChoice(config).eval(), CoLoRAConfig(r=4, tasks=["a", "b"], init_weights=False)
    )
    x = torch.randint(0, 99, (2, 3, 5))
    model.set_task("b")
    expected = model(input_ids=x).logits
    model.set_task(None)
    assert torch.allclose(model(input_ids=x, task_ids=["b", "b"]).logits, expected, atol=1e-6)
    with pytest.raises(TaskIdError, match="give the whole batch one task"):
        model(input_ids=x, task_ids=["a", "b"])
