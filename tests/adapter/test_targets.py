"""Which layers a bank adapts: every name means something, and "all-linear" says what it leaves out."""

import re
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from benchmarks.architectures.zoo import ZOO
from colora.adapter.config import CoLoRAConfig
from colora.adapter.layer import CoLoRALinear
from colora.adapter.targets.bypassed import read_past_layers
from colora.adapter.targets.linear import LeftOutWarning
from colora.bank.export import export_lora
from colora.errors import ConfigError, TaskIdError
from tests.helpers import odd_models
from tests.helpers.tiny import VOCAB, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["ann", "bo"]
IDS = torch.randint(6, 200, (2, 12), generator=torch.Generator().manual_seed(0))


def bank(model, r=4, **options):
    torch.manual_seed(1)
    return get_peft_model(model, CoLoRAConfig(r=r, tasks=TASKS, init_weights=False, **options)).eval()


def adapted(model):
    names = (name for name, module in model.named_modules() if isinstance(module, CoLoRALinear))
    return {name.removeprefix("base_model.model.") for name in names}


def left_out(make, **options):
    """The bank's model, and what was said of layers that it does not have."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LeftOutWarning)
        model = bank(make(), **options)
    return model, [str(one.message) for one in caught if one.category is LeftOutWarning]


def distance(a, b):
    return float((a - b).detach().abs().max())


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj", "v_porj"]}, "target_modules: 'v_porj' is not found.*did you mean 'v_proj'"),
        ({"target_modules": ["self_attn.v_porj"]}, "'self_attn.v_porj' is not found.*did you mean 'v_proj'"),
        ({"target_modules": "q_proj"}, r"'q_proj' is taken as an expression .* \[q_proj\] stands for model.layers.0"),
        ({"target_modules": r".*\.q_prj"}, r"target_modules: the expression '.*q_prj' matches no module"),
        ({"target_modules": r".*(q_proj"}, "is not a regular expression: missing"),
        ({"target_modules": []}, "target_modules: names nothing. Linear layers of this model: down_proj"),
        ({"target_modules": None}, "target_modules: expected names"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["k_prj"]}, "exclude_modules: 'k_prj' .*mean 'k_proj'"),
        ({"exclude_modules": ["k_proj", "lm_haed"]}, "exclude_modules: 'lm_haed' is not found.*did you mean 'lm_head'"),
        ({"exclude_modules": r".*vision.*"}, r"exclude_modules: the expression '.*vision.*' matches no module"),
        ({"exclude_modules": "k_proj"}, r"exclude_modules: 'k_proj' is taken as an expression"),
        ({"layers_to_transform": [0, 7]}, r"layers_to_transform': \[7\] not found: .*they are in layers 0 to 1"),
        ({"layers_to_transform": -1}, r"layers_to_transform': \[-1\] not found"),
        ({"layers_to_transform": 1, "layers_pattern": "layer"}, "layers_pattern: 'layer' is no list .*mean 'layers'"),
        ({"layers_to_transform": 1, "layers_pattern": ["layers", "h"]}, "layers_pattern: 'h' is no list of layers"),
        ({"layers_pattern": "layers"}, "layers_pattern: has no effect without layers_to_transform"),
        ({"modules_to_save": ["norm", "lm_haed"]}, "modules_to_save: 'lm_haed' is not found.*did you mean 'lm_head'"),
        (
            {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]},
            "'lm_head' adapts nothing: layers_to_transform leaves out lm_head",
        ),
        (
            {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
            "'lm_head' adapts nothing: it is trained whole",
        ),
    ],
)
def test_a_name_or_pattern_that_matches_nothing_is_told(options, message):
    base = tiny_llama()
    before = {name: type(module) for name, module in base.named_modules()}
    config = CoLoRAConfig(r=4, **options)
    with pytest.raises(ConfigError, match=message):
        get_peft_model(base, config)
    assert {name: type(module) for name, module in base.named_modules()} == before
    assert config.target_modules == CoLoRAConfig(r=4, **options).target_modules, "a second try says the same"


def test_all_that_match_nothing_are_told_at_once():
    options = {"target_modules": ["q_prj", "v_prj"], "exclude_modules": ["x"], "modules_to_save": ["y"]}
    with pytest.raises(ConfigError) as caught:
        bank(tiny_llama(), **options)
    assert len(caught.value.faults) == 4


def test_a_parameter_is_told_from_a_layer():
    base = tiny_llama()
    base.model.layers[0].mlp.register_parameter("up_proj_bank", nn.Parameter(torch.zeros(2, 3, 4)))
    with pytest.raises(ConfigError, match=r"no linear layer but the parameter model.layers.0.mlp.up_proj_bank"):
        bank(base, target_modules=["q_proj", "up_proj_bank"])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 14),
        ({"target_modules": ["q_proj", "model.layers.1.mlp.up_proj"]}, 3),
        ({"target_modules": r".*\.(q|v)_proj"}, 4),
        ({"exclude_modules": ["mlp.up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, 6),
        ({"target_modules": ["lm_head"]}, 1),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, 2),
        ({"modules_to_save": ["lm_head", "norm"]}, 14),
    ],
)
def test_what_does_match_is_adapted(options, count):
    assert len(adapted(bank(tiny_llama(), **options))) == count


def test_a_saved_bank_is_loaded_by_stock_peft_whatever_its_config_names(tmp_path):
    """Names are checked when a bank is made; one that was made before the check is still read."""
    model = bank(tiny_llama(), task_type="CAUSAL_LM")
    model.peft_config["default"].exclude_modules = ["nothing"]
    model.peft_config["default"].modules_to_save = ["nothing_either"]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    assert distance(again(input_ids=IDS, task_ids=TASKS).logits, model(input_ids=IDS, task_ids=TASKS).logits) == 0


# ---- layers that are too small, and heads ---------------------------------------------------------------------------


def test_gates_smaller_than_the_rank_are_left_out_and_named():
    model, told = left_out(odd_models.qwen2_moe, r=8, task_type="CAUSAL_LM")
    assert not [name for name in adapted(model) if name.endswith("shared_expert_gate")]
    (message,) = told
    assert "2 linear layers (model.layers.*.mlp.shared_expert_gate): smaller than r=8" in message
    with pytest.raises(ConfigError, match=r"r=8 is larger than layer 'model.layers.0.mlp.shared_expert_gate' \(1 × 32"):
        bank(odd_models.qwen2_moe(), r=8, target_modules=["q_proj", "shared_expert_gate"])


def test_a_rank_that_is_too_large_for_much_of_the_model_is_an_error():
    with pytest.raises(ConfigError, match=r"r=17 is larger than layer 'model.layers.0.self_attn.k_proj'"):
        bank(tiny_llama(), r=17)


@pytest.mark.parametrize(
    ("make", "kind", "head"),
    [
        (odd_models.token_classifier, "TOKEN_CLS", "classifier"),
        (odd_models.question_answerer, "QUESTION_ANS", "qa_outputs"),
        (odd_models.distilbert, "SEQ_CLS", "classifier"),
        (tiny_bert, "SEQ_CLS", "classifier"),
    ],
)
@pytest.mark.parametrize("r", [2, 8])
def test_a_head_that_is_trained_whole_is_not_adapted_as_well(tmp_path, make, kind, head, r):
    model, told = left_out(make, r=r, task_type=kind)
    assert not told
    assert not [name for name in adapted(model) if head in name]
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))

    def outputs(one, **task):
        return torch.cat([value.flatten() for value in one(input_ids=IDS, **task).values()]).detach()

    expected = outputs(model, task_ids=TASKS)
    model.save_pretrained(tmp_path / "bank")
    assert distance(outputs(PeftModel.from_pretrained(make(), str(tmp_path / "bank")), task_ids=TASKS), expected) == 0
    model.set_task("bo")
    expected = outputs(model)
    export_lora(model, "bo", tmp_path / "lora")
    assert distance(outputs(PeftModel.from_pretrained(make(), str(tmp_path / "lora"))), expected) < 1e-5
    assert distance(outputs(model.merge_and_unload()), expected) < 1e-5


def test_a_head_by_name_is_refused():
    with pytest.raises(ConfigError, match="'classifier' adapts nothing: it is trained whole"):
        bank(odd_models.token_classifier(), target_modules=["query", "classifier"], task_type="TOKEN_CLS")


# ---- linear layers that give several tensors ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama 4", "Phi MoE"])
def test_routers_that_give_more_than_their_logits_are_left_out(name):
    make = ZOO[name].make
    _, told = left_out(make, r=2, task_type="CAUSAL_LM")
    (router,) = [one for one in told if "gives several tensors" in one]
    assert ".router" in router
    with pytest.raises(ConfigError, match=r"router: a \w+Router gives several tensors, and a linear layer one"):
        bank(make(), r=2, target_modules=["q_proj", "router"])


# ---- weights that are read past the layer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names", "mixer"),
    [
        (odd_models.mamba, ["dt_proj", "out_proj", "x_proj"], "MambaMixer"),
        (odd_models.mamba2, ["out_proj"], "Mamba2Mixer"),
    ],
)
def test_layers_whose_weight_a_fused_path_reads(make, names, mixer):
    model, (told,) = left_out(make, task_type="CAUSAL_LM")
    assert {name.rsplit(".", 1)[-1] for name in adapted(model)} == {"in_proj"}
    assert f"{mixer} reads the weight past the layer" in told
    assert all(f"backbone.layers.*.mixer.{name}" in told for name in names)
    for name in names:
        place = rf"target_modules: backbone.layers.0.mixer.{name}: {mixer} reads the weight past"
        with pytest.raises(ConfigError, match=place):
            bank(make(), target_modules=["in_proj", name])


def test_a_head_that_concatenates_weights():
    model, (told,) = left_out(odd_models.mobilebert)
    assert "cls.predictions.dense" in told
    assert "cls.predictions.dense" not in adapted(model)


class Fused(nn.Module):
    """Reads three weights past their layers: one directly, one through another name, one of an inner module."""

    def __init__(self, slow=False):
        super().__init__()
        self.called, self.direct, self.renamed, self.asked = (nn.Linear(4, 4) for _ in range(4))
        self.inner = nn.ModuleDict({"proj": nn.Linear(4, 4)})
        self.inner.last = nn.Linear(4, 4)
        self.closed = nn.Linear(4, 4)
        self.slow, self.parts = slow, 1

    def forward(self, x):
        layer = self.renamed
        x = self.called(x.to(self.asked.weight.dtype))
        if self.parts > 1 and self.slow:
            x = nn.functional.linear(x, self.closed.weight)
        if isinstance(self.asked.weight, nn.Parameter) and self.training:
            x = nn.functional.linear(x, self.direct.weight)
        return nn.functional.linear(x, layer.weight) @ self.inner.last.weight


def test_reads_are_found_in_the_source_of_any_module():
    assert read_past_layers(Fused()).keys() == {"direct", "renamed", "inner.last"}
    slow = Fused(slow=True)
    assert "closed" not in read_past_layers(slow)
    slow.parts = 2
    assert read_past_layers(nn.Sequential(slow)).keys() == {"0.direct", "0.renamed", "0.inner.last", "0.closed"}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_t5, tiny_bert])
def test_ordinary_models_read_no_weight_past_its_layer(make):
    assert not {name for name in read_past_layers(make()) if not name.endswith("embeddings")}


# ---- towers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "tower"),
    [(odd_models.llava, "model.vision_tower"), (odd_models.gemma3, "model.vision_tower")],
)
def test_towers_and_projectors_are_left_out_and_named(make, tower):
    model, told = left_out(make, task_type="CAUSAL_LM")
    assert all(name.startswith("model.language_model.") for name in adapted(model))
    assert any(tower in line and "not the rows of the text" in line for line in told)
    assert not any("lm_head" in line for line in told)


def test_images_of_one_row_do_not_change_with_the_other_rows_task():
    """Two images in the first row and none in the second: by rows, the second image would get the second task."""
    model, _ = left_out(odd_models.llava, task_type="CAUSAL_LM")
    ids, images = IDS.clone(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    ids[ids == odd_models.IMAGE] = 6
    ids[0, 1:9] = odd_models.IMAGE
    with torch.no_grad():
        both = model(input_ids=ids, pixel_values=images, task_ids=["ann", "bo"]).logits[0]
        alone = model(input_ids=ids[:1], pixel_values=images, task_ids=["ann"]).logits[0]
    assert distance(both, alone) < 1e-6
    expected = model(input_ids=ids, pixel_values=images, task_ids=["bo", "bo"]).logits[0]
    assert distance(both, expected) > 1e-3, "the bank does something"


@pytest.mark.parametrize(("make", "part"), [(odd_models.clip, "vision_model"), (odd_models.whisper, "model.encoder")])
def test_encoders_whose_rows_are_the_batchs_rows_are_adapted(make, part):
    model, told = left_out(make)
    assert [name for name in adapted(model) if name.startswith(part)]
    assert not told


def test_a_tower_that_is_named_takes_one_task_for_the_whole_batch():
    """Two images, both of the first row: their number is that of the rows, so that no shape tells."""
    model = bank(odd_models.llava(), target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert len([name for name in adapted(model) if "vision_tower" in name]) == 2
    ids, images = IDS.clone(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    ids[ids == odd_models.IMAGE] = 6
    ids[0, 1:9] = odd_models.IMAGE
    with pytest.raises(TaskIdError, match=r"layer 'model.vision_tower.* sees other rows .* exclude_modules"):
        model(input_ids=ids, pixel_values=images, task_ids=["ann", "bo"])
    same = model(input_ids=ids, pixel_values=images, task_ids=["bo", "bo"]).logits
    model.set_task("bo")
    assert distance(same, model(input_ids=ids, pixel_values=images).logits) < 1e-6


def switch():
    config = SwitchTransformersConfig(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_sparse_encoder_layers=1, num_heads=4,
        num_sparse_decoder_layers=1, num_decoder_layers=2, num_experts=4, decoder_start_token_id=0, dropout_rate=0.0,
        router_jitter_noise=0.0,
    )  # fmt: skip
    return odd_models.seeded(SwitchTransformersForConditionalGeneration, config)


def test_experts_that_are_listed_one_by_one_are_left_out_and_named():
    model, told = left_out(switch, r=8, task_type="SEQ_2_SEQ_LM")
    assert not [name for name in adapted(model) if "expert" in name]
    assert any("experts.expert_0.wi" in line and "tokens that were sent to them" in line for line in told)
    assert any("router.classifier" in line and "smaller than r=8" in line for line in told)
    both = model(input_ids=IDS, decoder_input_ids=IDS, task_ids=TASKS).logits
    alone = model(input_ids=IDS[1:], decoder_input_ids=IDS[1:], task_ids=["bo"]).logits
    assert distance(both[1:], alone) < 1e-5


def test_a_left_out_layer_that_ends_like_a_target_stays_out():
    """A list of targets is matched by the ends of names; here the text's name ends the tower's."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(32, 32)
            self.small = nn.ModuleDict({"q_proj": nn.Linear(32, 1)})

        def forward(self, x):
            return self.small["q_proj"](self.q_proj(x))

    model, (told,) = left_out(Both)
    assert adapted(model) == {"q_proj"}
    assert re.search(r"1 linear layer \(small.q_proj\)", told)
