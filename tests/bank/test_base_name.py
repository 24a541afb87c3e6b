"""What banks and exported LoRAs call their base: as stock PEFT finds it on the hub, and beside it as we do."""

import json
import warnings
from pathlib import Path

import pytest
import transformers
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.bank.export import export_lora
from colora.bank.layout import read_bank_info
from colora.bank.load import load_bank
from colora.models.base import DEFAULT_HUB_ID, hub_name, load_base
from tests.helpers.run_files import cli, run_file, save_base

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def default_base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("somewhere") / "else")


@pytest.fixture(autouse=True)
def a_machine_with_the_default_model(default_base, monkeypatch, tmp_path):
    """Where the hub cannot be had, and the default model lies in a folder."""
    monkeypatch.setenv("COLORA_SMOLLM2", default_base)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))
    real = transformers.AutoConfig.from_pretrained

    def offline(name, *args, **kwargs):
        if name == DEFAULT_HUB_ID:
            raise OSError("no connection")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)


def named(folder: Path) -> str:
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


@pytest.fixture
def out(tmp_path):
    cli("train", str(run_file(tmp_path, "smollm2")))
    return tmp_path / "out"


def test_a_trained_bank_has_both_names(out, default_base):
    assert named(out / "bank") == DEFAULT_HUB_ID
    assert read_bank_info(out / "bank").base == "smollm2"
    assert default_base not in (out / "bank" / "adapter_config.json").read_text()
    assert cli("generate", str(out), "--task", "red", "red 1").exit_code == 0


def test_stock_peft_asks_the_hub_for_its_own_id(out, default_base, monkeypatch):
    asked = []
    real = transformers.AutoModelForCausalLM.from_pretrained

    def hub(name, *args, **kwargs):
        asked.append(name)
        return real(default_base, *args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", hub)
    cli("export", str(out), str(out / "loras"))
    for folder in (out / "bank", out / "loras" / "red"):
        assert isinstance(AutoPeftModelForCausalLM.from_pretrained(str(folder)), PeftModel)
    assert asked == [default_base, DEFAULT_HUB_ID, DEFAULT_HUB_ID], "the first is our own export"


def test_a_bank_saved_by_peft_alone_is_found_again(tmp_path):
    model, _ = load_base("smollm2")
    get_peft_model(model, CoLoRAConfig(r=4, tasks=["a", "b"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "bank")
    assert named(tmp_path / "bank") == DEFAULT_HUB_ID
    assert read_bank_info(tmp_path / "bank").base == "smollm2"
    assert load_bank(tmp_path / "bank")[2].base == "smollm2"


def test_a_bank_that_starts_from_another(out, tmp_path):
    file = run_file(tmp_path, "smollm2", output=str(tmp_path / "next"), start_from=str(out))
    assert cli("train", str(file)).exit_code == 0
    assert named(tmp_path / "next" / "bank") == DEFAULT_HUB_ID


def test_an_older_bank_is_read_and_its_exports_have_the_hubs_name(out, tmp_path):
    config = json.loads((out / "bank" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "smollm2"
    del config["base_identity"]["loaded_as"]
    (out / "bank" / "adapter_config.json").write_text(json.dumps(config))
    (out / "bank" / "bank.json").unlink()
    model, _, info = load_bank(out)
    assert info.base == "smollm2"
    export_lora(model, "red", tmp_path / "lora")
    assert named(tmp_path / "lora") == DEFAULT_HUB_ID


def test_loras_of_the_default_base_are_imported_without_the_hub(out, tmp_path):
    cli("export", str(out), str(tmp_path / "loras"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loras = [str(tmp_path / "loras" / name) for name in ("red", "blue")]
        assert cli("import", *loras, "--output", str(tmp_path / "imported")).exit_code == 0
    assert named(tmp_path / "imported") == DEFAULT_HUB_ID
    assert load_bank(tmp_path / "imported")[2].base == "smollm2"


def test_the_hubs_id_falls_back_on_this_machine_with_a_warning():
    with pytest.warns(UserWarning, match=f"{DEFAULT_HUB_ID} cannot be downloaded from the hub: using 'smollm2'"):
        model, _ = load_base(DEFAULT_HUB_ID)
    assert model.name_or_path == "smollm2"


@pytest.mark.parametrize("name", ["org/model", "/a/folder", "some.gguf", "", None])
def test_all_other_names_stay(name):
    assert hub_name(name) == name


def test_a_folder_is_called_by_its_path(tmp_path):
    base = save_base(tmp_path / "base")
    cli("train", str(run_file(tmp_path, base)))
    cli("export", str(tmp_path / "out"), str(tmp_path / "loras"))
    assert named(tmp_path / "out" / "bank") == named(tmp_path / "loras" / "red") == base
    assert "loaded_as" not in PeftConfig.from_pretrained(str(tmp_path / "out" / "bank")).base_identity
