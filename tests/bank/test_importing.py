"""Importing plain LoRAs: the bank gives each LoRA's logits, errors are those of a dense computation, bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import colora.bank.importing.bank
from colora.adapter.config import CoLoRAConfig
from colora.bank.importing.bank import import_loras
from colora.bank.importing.compress import share_layer
from colora.bank.layout import read_bank_info
from colora.bank.load import load_bank
from colora.errors import CheckpointError, ConfigError
from tests.helpers.lora_folders import change_config, change_tensors, dense_updates, save_lora
from tests.helpers.run_files import cli, content, refusal, save_base
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

IDS = torch.randint(6, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
# name: options of LoRA; they differ in everything that may differ
LORAS = {
    "legal": {"r": 2, "lora_alpha": 5},
    "billing": {"r": 3, "lora_alpha": 4, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "v1.0": {
        "r": 4, "rank_pattern": {"q_proj": 1, r"layers\.1\.mlp\.up_proj": 2},
        "alpha_pattern": {"down_proj": 3, "layers.0.self_attn.v_proj": 9},
    },
    "sales": {"r": 2, "target_modules": ["v_proj"], "layers_to_transform": [1], "lora_dropout": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), tiny_llama(dtype=torch.float64))


@pytest.fixture(scope="module")
def loras(tmp_path_factory, base):
    """Folders that the tests must not change."""
    folder = tmp_path_factory.mktemp("loras")
    return [save_lora(folder / name, base, seed, **LORAS[name]) for seed, name in enumerate(LORAS)]


@pytest.fixture
def own(loras, tmp_path):
    """Two of them to be changed."""
    for lora in loras[:2]:
        shutil.copytree(lora, tmp_path / lora.name)
    return [tmp_path / lora.name for lora in loras[:2]]


def lora_logits(folder, base, dtype=torch.float64):
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype), str(folder), autocast_adapter_dtype=False
    )
    with torch.no_grad():
        return model.eval()(IDS).logits


def bank_logits(bank, task, dtype=torch.float64):
    model, _, _ = load_bank(bank, dtype=dtype)
    with torch.no_grad():
        return model(IDS, task_ids=[task] * 2).logits


def dense_errors(loras, bank, base):
    """For each task: relative error over all layers and the worst layer with its error, from dense matrices."""
    found = {}
    model, _, _ = load_bank(bank, dtype=torch.float64)
    for number, lora in enumerate(loras):
        expected = dense_updates(lora, base)
        lost, energy = {}, {}
        for name, layer in colora.bank.importing.bank.bank_layers(model, "default").items():
            update = expected[f"{name}.weight"]
            lost[name] = float((layer.get_delta_weight("default", number).detach() - update).square().sum())
            energy[name] = float(update.square().sum())
        by_layer = {name: (lost[name] / energy[name]) ** 0.5 for name in lost if energy[name]}
        worst = max(by_layer, key=by_layer.get)
        found[lora.name] = ((sum(lost.values()) / sum(energy.values())) ** 0.5, worst, by_layer[worst])
    return found


# ---- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [11, 16])
def test_at_full_rank_the_bank_gives_every_loras_logits(loras, base, tmp_path, rank):
    lines = []
    report = import_loras(loras, tmp_path / "bank", rank=rank, log=lines.append)
    plain = lora_logits
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)(IDS).logits
    for lora in loras:
        expected = plain(lora, base)
        assert float((bank_logits(tmp_path / "bank", lora.name) - expected).abs().max()) < 1e-6
        assert float((before - expected).abs().max()) > 1e-3, "the LoRA changes nothing"
    assert [task.name for task in report.tasks] == list(LORAS)
    assert [task.rank for task in report.tasks] == [2, 3, 4, 2]
    assert max(task.error for task in report.tasks) < 1e-13
    assert max(error for error, *_ in dense_errors(loras, tmp_path / "bank", base).values()) < 1e-13
    assert lines == ["14 of 14 layers are not adapted by every LoRA; the update of the others is zero there"]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_error_reported_is_that_of_dense_matrices(loras, base, tmp_path, rank):
    report = import_loras(loras, tmp_path / "bank", rank=rank)
    expected = dense_errors(loras, tmp_path / "bank", base)
    for task in report.tasks:
        error, layer, worst = expected[task.name]
        assert task.error == pytest.approx(error, rel=1e-9)
        assert (task.worst_layer, task.worst_error) == (layer, pytest.approx(worst, rel=1e-9))
    assert max(task.error for task in report.tasks) > 0.05


def test_a_small_update_counts_as_much_as_a_large_one(base, tmp_path):
    loras = [
        save_lora(tmp_path / f"t{seed}", base, seed, target_modules=["v_proj"], lora_alpha=alpha)
        for seed, alpha in enumerate((1, 1, 100))
    ]
    errors = [task.error for task in import_loras(loras, tmp_path / "bank", rank=3).tasks]
    assert max(errors) < 0.8
    change_config(loras[2], lora_alpha=1)
    assert errors == pytest.approx([task.error for task in import_loras(loras, tmp_path / "even", rank=3).tasks])


def test_float32_loras_give_a_float32_bank(base, tmp_path):
    loras = [save_lora(tmp_path / f"t{seed}", base, seed, torch.float32) for seed in range(2)]
    import_loras(loras, tmp_path / "bank", rank=4)
    assert {value.dtype for value in load_file(tmp_path / "bank" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    for lora in loras:
        difference = bank_logits(tmp_path / "bank", lora.name, torch.float32) - lora_logits(lora, base, torch.float32)
        assert float(difference.abs().max()) < 1e-5
    assert max(error for error, *_ in dense_errors(loras, tmp_path / "bank", base).values()) < 1e-6


def test_conv1d_layers(tmp_path):
    base = save_base(tmp_path / "base", tiny_gpt2(dtype=torch.float64))
    options = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    loras = [save_lora(tmp_path / f"t{seed}", base, seed, **options) for seed in range(2)]
    import_loras(loras, tmp_path / "bank")
    for lora in loras:
        difference = bank_logits(tmp_path / "bank", lora.name) - lora_logits(lora, base)
        assert float(difference.abs().max()) < 1e-6


def test_32_loras_of_rank_8_take_a_tenth(tmp_path):
    """Random LoRAs share nothing and cannot be held; ones that lie in a common space of 16 dimensions are, exactly."""
    base = save_base(tmp_path / "base", tiny_llama(hidden=512, layers=1))
    first = save_lora(tmp_path / "t0", base, 0, torch.float32, r=8, target_modules=["q_proj", "o_proj"])
    keys = list(load_file(first / "adapter_model.safetensors"))
    common = {key: torch.randn(512, 16) / 20 for key in keys}
    for seed in range(32):
        torch.manual_seed(seed)
        lora = first if seed == 0 else shutil.copytree(first, tmp_path / f"t{seed}")
        own = {key: common[key] @ torch.randn(16, 8) for key in keys}
        change_tensors(lora, **{key: own[key].T.contiguous() if "lora_A" in key else own[key] for key in keys})
    folders = [tmp_path / f"t{seed}" for seed in range(32)]
    report = import_loras(folders, tmp_path / "bank")
    assert report.rank == 16
    assert max(task.error for task in report.tasks) < 1e-6
    assert report.bytes_before == sum((one / "adapter_model.safetensors").stat().st_size for one in folders)
    assert report.bytes_after == (tmp_path / "bank" / "adapter_model.safetensors").stat().st_size
    assert report.ratio == report.bytes_before / report.bytes_after > 10
    difference = bank_logits(tmp_path / "bank", "t5", torch.float32) - lora_logits(folders[5], base, torch.float32)
    assert float(difference.abs().max()) < 1e-4


# ---- the bank -------------------------------------------------------------------------------------------------------


def test_the_bank_says_whose_it_is(loras, base, tmp_path):
    import_loras(loras[:2], tmp_path / "bank", names=["a", "b c"])
    config = CoLoRAConfig.from_pretrained(str(tmp_path / "bank"))
    assert (config.tasks, config.scaling, config.base_model_name_or_path) == (["a", "b c"], 1.0, base)
    assert config.base_identity
    assert config.weights_sha256
    assert sorted(config.target_modules) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    assert read_bank_info(tmp_path / "bank").base == base


def test_only_the_layers_of_the_loras_are_adapted(loras, tmp_path):
    import_loras([loras[3]], tmp_path / "bank", log=(lines := []).append)
    config = CoLoRAConfig.from_pretrained(str(tmp_path / "bank"))
    assert config.target_modules == ["model.layers.1.self_attn.v_proj"]
    assert lines == ["one LoRA alone: the bank holds it, but nothing is shared"]
    with safe_open(tmp_path / "bank" / "adapter_model.safetensors", "pt") as file:
        assert len(list(file.keys())) == 3


def test_the_default_rank(loras, tmp_path):
    assert import_loras([loras[0]], tmp_path / "1").rank == 2  # no more than one LoRA needs
    assert import_loras(loras[1:2] + loras[3:], tmp_path / "2").rank == 3  # they have no layer in common
    assert import_loras(loras, tmp_path / "3").rank == 8  # twice the largest


def test_the_factors_are_balanced_for_training():
    torch.manual_seed(0)
    widths = [2, 0, 3]
    B = [torch.randn(20, r, dtype=torch.float64) for r in widths]
    A = [torch.randn(r, 30, dtype=torch.float64) for r in widths]
    for rank in (3, 5, 12):
        layer = share_layer(B, A, rank)
        eye = torch.eye(rank, dtype=torch.float64)
        assert torch.allclose(layer.A @ layer.A.T, eye / 3)
        gram = layer.B.T @ layer.B
        assert torch.allclose(gram, gram[0, 0] * eye)
        assert float(layer.cores.square().sum((1, 2)).mean()) == pytest.approx(min(rank, 5))
        assert not layer.cores[1].any()
        again = share_layer(B, A, rank)
        assert torch.equal(again.B, layer.B)


def test_nothing_of_the_size_of_a_weight_is_formed():
    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else [result]:
                self.most = max(self.most, one.numel() if isinstance(one, torch.Tensor) else 0)
            return result

    B, A = [torch.randn(700, 2) for _ in range(3)], [torch.randn(2, 900) for _ in range(3)]
    for rank in (4, 30):  # more than all updates need, too
        with Largest() as largest:
            share_layer(B, A, rank)
        assert largest.most <= 900 * max(rank, 6)


@pytest.mark.records
def test_the_record_of_large_layers():
    """Of 32 LoRAs at d = 4096: less memory than one dense update, and no more with more layers."""
    record = json.loads(
        (ROOT / "benchmarks" / "importing" / "records" / "import_large.json").read_text(encoding="utf-8")
    )
    assert (record["setting"]["width"], record["setting"]["loras"]) == (4096, 32)
    rows = record["imports"]
    assert all(row["bytes_above_base"] < record["dense_bytes_of_one_update"] for row in rows)
    assert rows[-1]["bytes_above_base"] - rows[0]["bytes_above_base"] < rows[-1]["bytes_before"] / 2
    assert all(row["ratio"] > 10 for row in rows)


def test_a_layer_without_any_update_is_as_before_training():
    layer = share_layer([torch.zeros(6, 2)] * 2, [torch.randn(2, 5)] * 2, 3)
    assert not layer.B.any()
    assert torch.equal(layer.cores, torch.eye(3).expand(2, 3, 3))
    assert torch.isfinite(layer.A).all()
    assert not layer.lost.any()


def test_errors_below_rounding_of_a_difference_are_told():
    """A difference of squared norms would give 1e-8 here, or a negative number."""
    torch.manual_seed(0)
    common, small = torch.randn(2, 40, 3, dtype=torch.float64), torch.randn(2, 40, 1, dtype=torch.float64)
    B = [torch.cat([common[0], 1e-10 * small[0]], 1), common[0] * 2]
    A = [torch.cat([common[1], small[1]], 1).T, common[1].T * 2]
    layer = share_layer(B, A, 3)
    expected = (B[0] @ A[0] - layer.B @ layer.cores[0] @ layer.A).norm() / (B[0] @ A[0]).norm()
    assert 1e-13 < float(expected) < 1e-9
    assert float((layer.lost[0] / layer.energy[0]).sqrt()) == pytest.approx(float(expected), rel=1e-3)


# ---- bad input ------------------------------------------------------------------------------------------------------

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


# name: (what is done to the folder of `billing`, what is said)
FAULTS = {
    "no folder": (shutil.rmtree, "no such folder"),
    "empty": (emptied, "adapter_config.json is missing; expected a LoRA as PEFT saves it"),
    "no config": (lambda one: (one / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "no tensors": (lambda one: (one / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "pickle": (pickled, "adapter_model.bin is a pickle, which may run code"),
    "truncated": (cut, "adapter_model.safetensors is truncated or no safetensors file"),
    "no json": (lambda one: (one / "adapter_config.json").write_text("{"), "adapter_config.json is no JSON"),
    "a list": (lambda one: (one / "adapter_config.json").write_text("[]"), "expected an object, found list"),
    "ia3": (lambda one: change_config(one, peft_type="IA3"), "peft_type: expected 'LORA', found 'IA3'"),
    "bank": (lambda one: change_config(one, peft_type="COLORA"), "peft_type: expected 'LORA', found 'COLORA'"),
    "dora": (lambda one: change_config(one, use_dora=True), "use_dora: only plain LoRAs can be imported"),
    "head": (lambda one: change_config(one, modules_to_save=["lm_head"]), "modules_to_save: only plain LoRAs"),
    "bias": (lambda one: change_config(one, bias="lora_only"), "bias: only plain LoRAs"),
    "lora bias": (lambda one: change_config(one, lora_bias=True), "lora_bias: only plain LoRAs"),
    "parameters": (lambda one: change_config(one, target_parameters=["x"]), "target_parameters: only plain LoRAs"),
    "tokens": (lambda one: change_config(one, trainable_token_indices=[1]), "trainable_token_indices: only plain"),
    "replication": (lambda one: change_config(one, layer_replication=[[0, 2]]), "layer_replication: only plain LoRAs"),
    "later peft": (lambda one: change_config(one, use_wonders={"x": 1}), "use_wonders: only plain LoRAs"),
    "pissa": (lambda one: change_config(one, init_lora_weights="pissa"), "init_lora_weights: 'pissa' changes the base"),
    "alpha": (lambda one: change_config(one, lora_alpha="big"), "lora_alpha: expected a number above 0"),
    "pattern": (lambda one: change_config(one, rank_pattern=["q"]), "rank_pattern: expected numbers above 0 by layer"),
    "rank": (lambda one: change_config(one, r=5), "q_proj: expected rank 5, as adapter_config.json"),
    "half a pair": (lambda one: change_tensors(one, **{KEY: None}), "q_proj: lora_A is missing"),
    "vector": (lambda one: change_tensors(one, **{KEY: torch.zeros(3)}), "expected a matrix of floating-point numbers"),
    "integers": (lambda one: change_tensors(one, **{KEY: torch.ones(3, 32).int()}), "found I32 [3, 32]"),
    "embedding": (
        lambda one: change_tensors(one, **{"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 9)}),
        "expected lora_A and lora_B of linear layers alone, found base_model.model.model.embed_tokens.lora_embedding_A",
    ),
    "nan": (lambda one: change_tensors(one, **{KEY: torch.full((3, 32), torch.nan)}), "q_proj holds NaN or infinity"),
    "unknown layer": (
        lambda one: change_tensors(one, **{
            KEY.replace("layers.0", "layers.7"): torch.ones(3, 32),
            KEY.replace("layers.0", "layers.7").replace("lora_A", "lora_B"): torch.ones(32, 3),
        }),
        "layer model.layers.7.self_attn.q_proj: the base model has no such layer",
    ),
    "other shape": (
        lambda one: change_tensors(one, **{KEY: torch.ones(3, 48)}),
        "layer model.layers.0.self_attn.q_proj: expected 32 x 32 as in the base model, found 32 x 48",
    ),
    "other base": (lambda one: change_config(one, base_model_name_or_path="x/y"), "billing: x/y"),
    "no base": (lambda one: change_config(one, base_model_name_or_path=None), "does not name its base model"),
    "revision": (lambda one: change_config(one, revision="v2"), "its base is revision 'v2'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_refused_by_folder_before_anything_is_written(own, tmp_path, fault):
    change, message = FAULTS[fault]
    change(own[1])
    before = content(tmp_path)
    with pytest.raises(ConfigError) as caught:
        import_loras(own, tmp_path / "bank")
    told = str(caught.value)
    assert message in told
    assert str(own[1]) in told
    assert content(tmp_path) == before
    assert not (tmp_path / "bank").exists()


def test_an_empty_file_of_tensors(own, tmp_path):
    from safetensors.torch import save_file

    save_file({}, own[0] / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="expected lora_A and lora_B of at least one layer, found no tensors"):
        import_loras(own, tmp_path / "bank")


def test_faults_of_all_folders_are_told_at_once(own, tmp_path):
    cut(own[0])
    change_config(own[1], use_dora=True, bias="all")
    with pytest.raises(ConfigError) as caught:
        import_loras([*own, tmp_path / "nowhere"], tmp_path / "bank")
    assert len(caught.value.faults) == 4


def test_another_place_of_the_base(own, base, tmp_path):
    change_config(own[1], base_model_name_or_path="x/y", revision="v2")
    lines = []
    report = import_loras(own, tmp_path / "bank", base=base, log=lines.append)
    assert report.base == base
    assert f"{own[1]} names the base x/y; taken to be the same as {base}" in lines


def test_ranks_and_outputs_that_cannot_be(own, tmp_path):
    for rank in (0, 17):
        with pytest.raises(
            ConfigError, match=rf"rank: expected 1 to 16, because layer .*k_proj is 16 x 32, found {rank}"
        ):
            import_loras(own, tmp_path / "bank", rank=rank)
    with pytest.raises(ConfigError, match="is there already"):
        import_loras(own, own[0])
    with pytest.raises(ConfigError, match="found none"):
        import_loras([], tmp_path / "bank")


def test_names(own, tmp_path):
    with pytest.raises(ConfigError, match="has the name 'legal' too"):
        import_loras([own[0], own[0]], tmp_path / "bank")
    with pytest.raises(ConfigError, match="expected a name for each of 2 LoRAs, found 1"):
        import_loras(own, tmp_path / "bank", names=["a"])
    with pytest.raises(ConfigError, match="expected a task name of"):
        import_loras(own, tmp_path / "bank", names=["a", "b/c"])
    report = import_loras([own[0], own[0]], tmp_path / "bank", names=["a", "b"])
    assert [task.name for task in report.tasks] == ["a", "b"]


def test_a_write_that_fails_leaves_nothing(own, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("colora.bank.load.write_json", full)
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match="No space left on device"):
        import_loras(own, tmp_path / "bank")
    assert content(tmp_path) == before
    assert not (tmp_path / "bank").exists()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_table(own, tmp_path):
    result = cli("import", *own, "--output", tmp_path / "bank", "--rank", 3, "--name", "a", "--name", "b")
    assert result.exit_code == 0, result.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert [row[:2] for row in rows if row[0]] == [["a", "2"], ["b", "3"]]
    assert "before: " in result.stdout
    assert "times less" in result.stdout
    assert f"bank: {tmp_path / 'bank'}" in result.stderr
    assert cli("tasks", tmp_path / "bank").exit_code == 0
    assert "is there already" in refusal("import", *own, "--output", tmp_path / "bank")
