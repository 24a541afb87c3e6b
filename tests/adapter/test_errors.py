"""What a bank refuses, with messages that say what was expected and what was found."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from colora import CoLoRAConfig
from colora.errors import BankFileError, BaseMismatchError, ColoraError, ConfigError, TaskIdError
from tests.helpers.dense_oracle import distance, make_bank, make_inputs
from tests.helpers.tiny import tiny_gpt2, tiny_llama


def logits(model, **extra):
    with torch.no_grad():
        return model(**make_inputs(), **extra).logits


# ---- task ids -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bank():
    return make_bank(tiny_llama(), task_type="CAUSAL_LM")


@pytest.mark.parametrize("training", [True, False])
def test_several_tasks_and_no_ids(bank, training):
    bank.train(training)
    logits(bank, task_ids=[0, 1, 2, 0])  # ids of an earlier batch must not be used again
    with pytest.raises(TaskIdError, match=r"which task\? This bank has 3 tasks \(ada, bo, cy\): pass task_ids"):
        logits(bank)
    bank.eval()


@pytest.mark.parametrize(
    ("task_ids", "message"),
    [
        (["ada", "zed", "bo", "yan"], "unknown tasks 'yan', 'zed'; this bank knows ada, bo, cy"),
        ([0, 3, 1, 2], r"task id 3 is out of range: this bank has ids 0 to 2 \(ada, bo, cy\)"),
        ([0, -1, 1, 2], "task id -1 is out of range"),
        (torch.tensor([[0] * 6] * 3 + [[0, 0, 0, 0, 0, 9]]), "task id 9 is out of range"),
        (torch.zeros(4), "must be integers, found a tensor of torch.float32"),
        ([0.0, 1.0, 2.0, 0.0], "must be integers"),
        ([True, False, True, False], "must be integers, found a tensor of torch.bool"),
        (torch.zeros(4, 6, 1, dtype=torch.long), r"must be \(batch,\) or \(batch, seq\), found shape \(4, 6, 1\)"),
        (torch.tensor(1), r"must be \(batch,\) or \(batch, seq\), found shape \(\)"),
        ([0, 1, 2], r"task_ids name 3 rows, but the batch has 4 \(its shape is \(4, 6\)\)"),
        ("ada", "task_ids name 1 rows, but the batch has 4"),
        ([], "task_ids name 0 rows, but the batch has 4"),
        (torch.zeros(4, 5, dtype=torch.long), r"\(4, 5\) do not fit the input of layer '.*', of shape \(4, 6, 32\)"),
        (["ada", 1, "bo", "cy"], "integers or names"),
        ([["ada"], ["bo"], ["cy"], ["ada"]], "integers or names"),
        ([0, None, 1, 2], "integers or names"),
        (1.5, "must be integers"),
    ],
)
def test_ids_that_cannot_be(bank, task_ids, message):
    with pytest.raises(TaskIdError, match=message):
        logits(bank, task_ids=task_ids)


def test_an_error_leaves_the_next_pass_as_it_would_have_been(bank):
    first = logits(bank, task_ids=[0, 1, 2, 0])
    for ids in ([9] * 4, [0]):
        with pytest.raises(TaskIdError):
            logits(bank, task_ids=ids)
        with pytest.raises(TaskIdError, match="which task"):
            logits(bank)
    assert torch.equal(logits(bank, task_ids=[0, 1, 2, 0]), first)


# ---- the config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r: expected a whole number of at least 1, found 0"),
        ({"r": 2.5}, "r: expected a whole number of at least 1, found 2.5"),
        ({"r": True}, "r: expected a whole number"),
        ({"lora_alpha": 0}, "lora_alpha: expected a number above 0, found 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number above 0, found nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout: expected a number from 0 up to"),
        ({"lora_dropout": -0.1}, "lora_dropout"),
        ({"init_weights": "zeros"}, "init_weights: expected true, false, 'gaussian' or 'orthogonal', found 'zeros'"),
        ({"bias": "all"}, "bias: expected 'none', found 'all'"),
        ({"tasks": []}, "tasks: expected a list of at least one task name"),
        ({"tasks": "ada"}, "tasks: expected a list of at least one task name, found 'ada'"),
        ({"tasks": ["ada", "bo", "ada"]}, "found more than once: ada"),
        ({"tasks": ["ada", 3]}, "must be a string, found int"),
        ({"tasks": ["a/b"]}, "1 to 100 letters.* found 'a/b'"),
        ({"tasks": [".."]}, "found '..'"),
        ({"tasks": [""]}, "found ''"),
        ({"tasks": ["x" * 101]}, "1 to 100 letters"),
        ({"tasks": ["line\nbreak"]}, "1 to 100 letters"),
        ({"tasks": ["trailing\n"]}, "1 to 100 letters"),
    ],
)
def test_config_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        CoLoRAConfig(**settings)


def test_every_fault_of_a_config_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        CoLoRAConfig(r=0, lora_alpha=-1, lora_dropout=2, tasks=["a/b", "x", "x"])
    assert len(caught.value.faults) == 5


@pytest.mark.parametrize("name", ["ada", "Ada Lovelace", "team_7", "v1.2+x:y-z", "x" * 100, "días", "任务"])
def test_names_of_many_kinds_are_taken(name):
    assert CoLoRAConfig(tasks=[name]).tasks == [name]


def test_an_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="rank"):
        CoLoRAConfig(rank=4)


def test_every_error_can_be_caught_as_a_value_error():
    assert issubclass(ColoraError, ValueError)
    for error in (BankFileError, BaseMismatchError, ConfigError, TaskIdError):
        assert issubclass(error, ColoraError)


# ---- the base model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 17}, r"r=17 is larger than layer 'model.layers.0.self_attn.k_proj' \(16 × 32\): expected at most 16"),
        ({"target_modules": ["query"]}, "'query'.* not found.*Linear layers of this model: down_proj, gate"),
        ({"target_modules": ["embed_tokens"]}, "'model.embed_tokens' is a Embedding: expected a linear layer"),
        ({"target_modules": ["q_proj", "input_layernorm"]}, "input_layernorm' is a LlamaRMSNorm"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [7]}, "layers_to_transform': .7.*Linear layers of this"),
    ],
)
def test_layers_that_cannot_be_adapted_leave_the_base_as_it_was(settings, message):
    base = tiny_llama()
    with pytest.raises(ConfigError, match=message):
        make_bank(base, **settings)
    assert torch.equal(logits(base), logits(tiny_llama()))
    assert [name for name, _ in base.named_modules()] == [name for name, _ in tiny_llama().named_modules()]
    assert not base._forward_pre_hooks
    again = make_bank(base)
    assert torch.equal(logits(again, task_ids=[0, 1, 2, 0]), logits(make_bank(tiny_llama()), task_ids=[0, 1, 2, 0]))
    assert all(value.requires_grad == ("colora_" in name) for name, value in again.named_parameters())


def test_a_second_bank_that_fails_leaves_the_first_as_it_was():
    model = make_bank(tiny_llama())
    before = logits(model, task_ids=[0, 1, 2, 0])
    with pytest.raises(ConfigError, match="r=17 is larger"):
        model.add_adapter("second", CoLoRAConfig(r=17, tasks=["x"]))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, task_ids=[0, 1, 2, 0]), before)
    assert not any(name.endswith(".second") for name, _ in model.named_parameters())
    assert all(value.requires_grad == ("colora_" in name) for name, value in model.named_parameters())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    make_bank(tiny_llama(), task_type="CAUSAL_LM").save_pretrained(folder)
    return folder


@pytest.fixture
def edited(saved, tmp_path):
    """A copy of the saved bank with functions to edit its config and its tensors."""

    class Edited:
        folder = tmp_path

        def config(self, **changes):
            path = tmp_path / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        def tensors(self, change):
            path = tmp_path / "adapter_model.safetensors"
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path, metadata={"format": "pt"})

        def load(self):
            return PeftModel.from_pretrained(tiny_llama(), tmp_path)

    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return Edited()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: tiny_llama(hidden=64), "layer model.layers.*.mlp.down_proj: expected 32 x 64, found 64 x 128"),
        (tiny_gpt2, "(?s)on another base model .a llama.; found a gpt2.*expected 32 x 64, found no such layer"),
        (lambda: tiny_llama(seed=1), r"same shapes, other weights: relative distance 1\.\d+"),
    ],
)
def test_another_base_model_is_refused_before_it_is_changed(saved, base, message):
    model = base()
    with pytest.raises(BaseMismatchError, match=message):
        PeftModel.from_pretrained(model, saved)
    assert torch.equal(logits(model), logits(base()))
    with pytest.raises(BaseMismatchError, match=message):
        base().load_adapter(saved)


@pytest.mark.filterwarnings("error:the base model's weights differ")
def test_the_same_base_in_another_precision_is_accepted(saved):
    for dtype, bound in ((torch.bfloat16, 0.1), (torch.float16, 0.02), (torch.float64, 1e-4)):
        loaded = PeftModel.from_pretrained(tiny_llama(dtype=dtype), saved)
        expected = logits(make_bank(tiny_llama()), task_ids=[0, 1, 2, 0])
        assert distance(logits(loaded, task_ids=[0, 1, 2, 0]).float(), expected) < bound


def test_a_base_rounded_to_four_bits_is_accepted_with_a_warning(saved):
    base = tiny_llama()
    with torch.no_grad():
        for module in base.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(1, keepdim=True) / 7
                module.weight.copy_((module.weight / scale).round() * scale)
    with pytest.warns(UserWarning, match="relative distance 0.*quantised to 4 bits"):
        PeftModel.from_pretrained(base, saved)


class Pruned(nn.Module):
    """Layers of one kind (blocks.*.up) that differ in width."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, width)}) for width in (8, 12, 10))


def test_layers_of_one_kind_may_differ_in_shape():
    """Pruned models have narrower layers here and there; their bank must load on them again."""
    config = make_bank(Pruned(), target_modules=["up"]).peft_config["default"]
    again = get_peft_model(Pruned(), CoLoRAConfig(r=4, target_modules=["up"], base_identity=config.base_identity))
    assert len(again.core("default")) == 3


def test_the_identity_knows_the_base_below_a_bank(saved):
    """A second bank is loaded on a base whose layers are wrapped already."""
    model = PeftModel.from_pretrained(tiny_llama(), saved)
    model.load_adapter(saved, "second")
    with pytest.raises(BaseMismatchError, match="other weights"):
        make_bank(tiny_llama(seed=1)).load_adapter(saved, "second")


# ---- saved files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"of_the_future": 1}])
def test_a_newer_format_is_refused(edited, extra):
    edited.config(format_version=3, **extra)
    with pytest.raises(BankFileError, match="format version 3, but this CoLoRA reads up to 2; upgrade colora"):
        edited.load()
    with pytest.raises(BankFileError, match="format version 3"):
        PeftConfig.from_pretrained(edited.folder)


def test_a_field_of_no_known_meaning_is_dropped_with_a_warning(edited):
    edited.config(of_another_tool=1)
    with pytest.warns(UserWarning, match="of_another_tool"):
        loaded = edited.load()
    assert distance(logits(loaded, task_ids=[0] * 4), logits(make_bank(tiny_llama()), task_ids=[0] * 4)) == 0


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_tensors(edited, keep):
    path = edited.folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BankFileError, match=f"tensors of the bank in {edited.folder} cannot be read"):
        edited.load()


KEY = "base_model.model.model.layers.1.mlp.up_proj.colora_core"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(KEY), r"\(1 faults\):\n.*layers.1.mlp.up_proj.colora_core.default: missing"),
        (lambda tensors: tensors.update({KEY: tensors[KEY][:2].clone()}), r"shape \(3, 4, 4\), found \(2, 4, 4\)"),
        (lambda tensors: tensors[KEY][0, 0, 0].add_(1e-3), "not those that adapter_config.json was saved with"),
        (lambda tensors: tensors.update({KEY: tensors[KEY].flip(0)}), "not those that adapter_config.json"),
        (lambda tensors: tensors.update({KEY + "_2.colora_A": torch.zeros(1)}), "not those that adapter_config.json"),
        (lambda tensors: [tensors.pop(key) for key in list(tensors)[1:]], r"\(41 faults\)(?s:.*)and 36 more"),
    ],
)
def test_edited_tensors(edited, change, message):
    edited.tensors(change)
    with pytest.raises(BankFileError, match=message):
        edited.load()


def test_an_edited_bank_loads_where_the_digest_was_taken_out_on_purpose(edited):
    edited.tensors(lambda tensors: [value.zero_() for key, value in tensors.items() if key.endswith("core")])
    edited.config(weights_sha256=None)
    assert torch.equal(logits(edited.load(), task_ids=[0] * 4), logits(tiny_llama()))


def test_the_number_of_tasks_must_fit_the_tensors(edited):
    edited.config(tasks=["ada", "bo"])
    with pytest.raises(BankFileError, match=r"expected shape \(2, 4, 4\), found \(3, 4, 4\)"):
        edited.load()


def test_an_edited_config_is_checked_like_any_other(edited):
    edited.config(tasks=["ada", "ada", "cy"])
    with pytest.raises(ConfigError, match="found more than once: ada"):
        edited.load()
