"""A bank on an output layer that shares its weight with the embeddings: merging leaves the embeddings alone."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForMaskedLM, BloomConfig, BloomForCausalLM

from colora.adapter.config import CoLoRAConfig
from colora.bank.export import export_lora, export_merged
from colora.errors import ConfigError
from tests.helpers import odd_models
from tests.helpers.run_files import cli, run_file, save_base
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_t5

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Input and output embeddings:UserWarning")

IDS = torch.randint(6, 200, (2, 7), generator=torch.Generator().manual_seed(0))


def bert():
    """Here a bias is tied as well as the weight."""
    return odd_models.seeded(BertForMaskedLM, BertConfig(**odd_models.BERT))


def bloom():
    return odd_models.seeded(BloomForCausalLM, BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))


CASES = {
    "llama": (tiny_llama, {"target_modules": ["lm_head", "q_proj"]}),
    "llama-head-alone": (tiny_llama, {"target_modules": r"lm_head"}),
    "gpt2": (tiny_gpt2, {"target_modules": ["lm_head", "c_attn"]}),
    "bloom": (bloom, {"target_modules": ["lm_head"]}),
    "bert": (bert, {"target_modules": ["decoder"], "task_type": None}),
    "gemma3": (odd_models.gemma3, {"target_modules": r"lm_head|.*language_model.*k_proj"}),
    "saved-head": (tiny_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "saved-embeddings": (tiny_llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "both": (tiny_llama, {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]}),
}


def bank(model, **options):
    torch.manual_seed(1)
    config = CoLoRAConfig(
        **{"r": 4, "lora_alpha": 16, "tasks": ["ann", "bo"], "init_weights": False, "task_type": "CAUSAL_LM"} | options
    )
    bank = get_peft_model(model, config).double().eval()
    with torch.no_grad():
        for name, parameter in bank.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    bank.set_task("bo")
    return bank


def logits(model):
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits


def distance(model, expected):
    return float((logits(model) - expected).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_merged_in_memory_and_unmerged(case):
    make, options = CASES[case]
    model = bank(make(), **options)
    expected, base = logits(model), model.get_base_model()
    before = {name: value.clone() for name, value in model.state_dict().items() if "base_layer" not in name}
    for _ in range(2):
        model.merge_adapter()
        assert distance(model, expected) < 1e-12
        now = model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in before.items()), "nothing else changes"
        model.unmerge_adapter()
        assert distance(model, expected) < 1e-12
    if "modules_to_save" not in options:
        head = base.get_output_embeddings()
        assert head.base_layer.weight is base.get_input_embeddings().weight, "tied as before"


@pytest.mark.parametrize("case", CASES)
def test_merged_for_good_and_read_again(case, tmp_path):
    make, options = CASES[case]
    model = bank(make(), **options)
    expected = logits(model)
    export_merged(model, "bo", tmp_path)
    again = type(make()).from_pretrained(tmp_path, dtype=torch.float64).eval()
    # Buffers made for float32, such as Gemma's, are rounded when a float64 model is read.
    assert distance(again, expected) < 1e-6
    again.tie_weights()
    assert distance(again, expected) < 1e-6
    embedded = again.get_input_embeddings().weight
    assert torch.equal(embedded, make().double().get_input_embeddings().weight) is (
        case not in ("saved-embeddings", "both")
    )


def test_a_model_that_is_tied_elsewhere_stays_tied(tmp_path):
    model = bank(tiny_llama())
    expected = logits(model)
    export_merged(model, "bo", tmp_path)
    again = tiny_llama().from_pretrained(tmp_path, dtype=torch.float64)
    assert again.config.tie_word_embeddings
    assert distance(again, expected) < 1e-12


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_encoder_decoder_is_refused_before_anything_is_changed(options, tmp_path):
    """T5 scales its logits where they come from the embeddings: untied, it would be another model."""
    model = bank(tiny_t5(), task_type="SEQ_2_SEQ_LM", **options)
    expected = logits(model)
    for attempt in (lambda: model.merge_and_unload(), lambda: export_merged(model, "bo", tmp_path / "out")):
        with pytest.raises(
            ConfigError, match=r"lm_head shares its weight .* cannot be merged permanently. Export a LoRA"
        ):
            attempt()
    assert distance(model, expected) == 0
    assert not (tmp_path / "out").exists()
    model.merge_adapter()
    assert distance(model, expected) < 1e-12


def test_embeddings_are_no_linear_layer():
    with pytest.raises(ConfigError, match=r"'model\.embed_tokens' is a Embedding: expected a linear layer"):
        bank(tiny_llama(), target_modules=["embed_tokens"])


def test_an_exported_lora_is_exact_and_warns_whoever_merges_it(tmp_path):
    model = bank(tiny_llama(), target_modules=["lm_head", "q_proj"])
    expected = logits(model)
    with pytest.warns(UserWarning, match="lm_head shares its weight with the embeddings .* must untie them first"):
        export_lora(model, "bo", tmp_path)
    reader = PeftModel.from_pretrained(tiny_llama(dtype=torch.float64), str(tmp_path), autocast_adapter_dtype=False)
    assert distance(reader, expected) < 1e-12


def test_from_the_command_line(tmp_path):
    base = save_base(tmp_path / "base")
    cli("train", str(run_file(tmp_path, base, adapter={"target_modules": ["lm_head", "v_proj"]})))
    cli("export", str(tmp_path / "out"), str(tmp_path / "merged"), "--merged", "--task", "red")
    saved = PeftModel.from_pretrained(tiny_llama().from_pretrained(base), str(Path(tmp_path, "out", "bank")))
    saved.set_task("red")
    merged = tiny_llama().from_pretrained(tmp_path / "merged")
    assert distance(merged, logits(saved)) < 1e-5
    assert torch.equal(merged.get_input_embeddings().weight, tiny_llama().get_input_embeddings().weight)
