"""The numbers of a run whose file names none go by the accelerator, which is stood in for: what computes is the CPU."""

import pytest
import torch
from safetensors.torch import load_file

import colora.training.hardware
from colora.bank.load import load_bank
from colora.errors import ConfigError
from colora.training.config import FederationConfig, RunConfig
from colora.training.measure import evaluate_bank
from colora.training.run import train
from colora.training.run_folder import run_config
from tests.helpers.run_files import bank_tensors, config_of, save_base

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
UNNAMED = {"precision": None, "base_dtype": None}


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


@pytest.fixture
def accelerator(monkeypatch):
    """Says, when called, whether there is an accelerator that computes in bfloat16; there is one to begin with."""

    def is_there(there):
        monkeypatch.setattr(colora.common.device, "computes_bfloat16", lambda: there)

    is_there(True)
    return is_there


def training(**fields):
    return RunConfig(output="out", tasks=[{"path": "a.jsonl"}], training=fields).training


def test_on_an_accelerator_base_and_computation_are_bfloat16_unless_the_file_says_otherwise(accelerator):
    spec = training()
    assert (spec.precision, spec.base_dtype) == ("bf16", "bf16")
    spec = training(precision="fp32")
    assert (spec.precision, spec.base_dtype) == ("fp32", "bf16")
    spec = training(device="cpu")
    assert (spec.precision, spec.base_dtype) == ("fp32", "fp32")
    accelerator(False)
    spec = training()
    assert (spec.precision, spec.base_dtype) == ("fp32", "fp32")


def test_a_federation_has_the_same_numbers_on_all_devices(accelerator):
    config = RunConfig(output="out", tasks=[{"path": "a.jsonl"}])
    spec = FederationConfig.of(config).training
    assert (spec.precision, spec.base_dtype) == ("fp32", "fp32")


def named_by_device(folder, base):
    """The config of a small run whose file names no numbers."""
    config = config_of(folder, base)
    fields = config.model_dump(mode="json", exclude_unset=True)
    fields["training"] = {name: value for name, value in fields["training"].items() if name not in UNNAMED}
    return RunConfig.model_validate(fields)


def test_cores_factors_and_moments_are_float32_on_a_base_that_is_bfloat16_by_default(accelerator, base, tmp_path):
    result = train(named_by_device(tmp_path, base))
    assert result.model.get_base_model().dtype == torch.bfloat16
    assert {value.dtype for value in bank_tensors(tmp_path / "out").values()} == {torch.float32}
    moments = load_file(tmp_path / "out" / "checkpoints" / "checkpoint-4" / "optimizer.safetensors")
    assert {value.dtype for value in moments.values()} == {torch.float32}
    written = run_config(tmp_path / "out").training
    assert (written.precision, written.base_dtype) == ("bf16", "bf16")


def test_a_run_goes_on_elsewhere_in_the_numbers_that_it_began_with(accelerator, base, tmp_path):
    train(named_by_device(tmp_path, base))
    accelerator(False)
    again = train(named_by_device(tmp_path, base))
    assert again.reused
    assert again.run.config.training.base_dtype == "bf16"
    assert evaluate_bank(tmp_path / "out", progress=False).records
    explicit = named_by_device(tmp_path, base)
    explicit.training = explicit.training.model_copy(update={"base_dtype": "fp32"})
    with pytest.raises(ConfigError, match=r"training\.base_dtype: it has 'bf16', this run 'fp32'"):
        train(explicit)


def test_a_bank_is_loaded_on_a_base_of_the_device_s_numbers(accelerator, base, tmp_path, monkeypatch):
    train(config_of(tmp_path, base))
    assert load_bank(tmp_path / "out")[0].get_base_model().dtype == torch.float32
    monkeypatch.setattr("colora.bank.load.base_dtype_on", lambda device: torch.bfloat16)
    model, _, _ = load_bank(tmp_path / "out")
    assert model.get_base_model().dtype == torch.bfloat16
    assert {one.dtype for name, one in model.named_parameters() if "colora_" in name} == {torch.float32}
