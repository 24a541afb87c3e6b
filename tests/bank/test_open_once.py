"""A saved bank has one reader: nothing else opens its files, and whoever needs a bank opens it once."""

import ast
import json

import pytest
import torch

import colora.bank.load
import colora.bank.tensors as reader
from colora.adapter.digest import tensors_sha256
from colora.bank.edit import forget_tasks, merge_tasks
from colora.bank.keys import split_key, tensor_key
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank, save_bank
from colora.bank.overview import bank_overview
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError
from colora.serving.store import CoreStore
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import onboard
from colora.transfer.similarity import bank_similarity
from tests.helpers.dense_oracle import make_bank
from tests.helpers.import_graph import modules
from tests.helpers.run_files import save_base, write_task
from tests.helpers.tiny import tiny_llama

TASKS = ["billing", "legal", "sales"]


@pytest.fixture
def bank(tmp_path):
    base = save_base(tmp_path / "base", chat=False)
    save_bank(
        make_bank(tiny_llama(), TASKS), tmp_path / "bank", BankInfo(base=base, chat_template=False, max_length=96)
    )
    return tmp_path / "bank"


@pytest.fixture
def counts(monkeypatch):
    """How often the config is parsed, the file of tensors opened, and the tensors hashed."""
    found = {"config": 0, "tensors": 0, "digest": 0}

    def counting(name, function):
        def counted(*args, **kwargs):
            found[name] += 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(reader, "read_fields", counting("config", reader.read_fields))
    monkeypatch.setattr(reader, "safe_open", counting("tensors", reader.safe_open))
    monkeypatch.setattr("colora.adapter.model.tensors_sha256", counting("digest", tensors_sha256))
    monkeypatch.setattr(reader, "tensors_sha256", counting("digest", reader.tensors_sha256))
    return found


def test_loading_opens_a_bank_once(bank, counts):
    load_bank(bank)
    assert counts == {"config": 1, "tensors": 1, "digest": 1}


def test_looking_at_a_bank_reads_no_digest(bank, counts):
    assert bank_overview(bank).tasks == TASKS
    assert counts == {"config": 1, "tensors": 1, "digest": 0}


def test_similarity_opens_a_bank_once(bank, counts):
    bank_similarity(bank)
    assert counts == {"config": 1, "tensors": 1, "digest": 1}


def test_serving_opens_a_bank_once(bank, counts):
    store = CoreStore(bank)
    for task in TASKS:
        store.read(task)
    assert counts == {"config": 1, "tensors": 1, "digest": 2}  # of all tensors, and of A and B, which cores name


def test_onboarding_opens_a_bank_once(bank, counts, tmp_path):
    examples = tmp_path / write_task(tmp_path, "red", 4)
    onboard(bank, examples, settings=Settings(steps=2, rows=2))
    assert counts == {"config": 1, "tensors": 1, "digest": 2}  # of what was read, and of what is written


def test_nothing_else_opens_the_tensors_of_a_bank():
    """Other files of tensors: core files, checkpoints, those of federations, plain LoRAs to import, a comparison's."""
    opening = set()
    for path, module, _ in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("safe_open", "load_file"):
                opening.add(module.removeprefix("colora."))
    assert opening == {
        "bank.tensors", "bank.rows.index", "bank.rows.read", "bank.core_file", "bank.importing.read",
        "training.loop.checkpoint", "training.loop.core_files", "federated.storage", "experiments.own.handover.weights",
        "vllm.checkpoint",
    }  # fmt: skip


def test_names_of_tensors_are_taken_apart_as_they_were_put_together():
    for part in ("A", "B", "core"):
        assert split_key(tensor_key("model.layers.0.mlp.up_proj", part)) == ("model.layers.0.mlp.up_proj", part)
    assert split_key("base_model.model.lm_head.weight") is None


def test_tensors_are_read_when_they_are_asked_for(bank):
    saved = SavedBank(bank)
    layers = saved.layers
    assert list(layers) == sorted(layers)
    for name, layer in layers.items():
        assert torch.equal(layer.A, saved[tensor_key(name, "A")])
        assert torch.equal(layer.cores[1], saved.core(1)[name])
    with pytest.raises(KeyError):
        saved["base_model.model.nothing.colora_A"]


def test_a_bank_without_a_factor_is_refused_by_name(bank):
    contents = SavedBank(bank).load()
    name = next(key for key in contents.tensors if key.endswith("colora_B"))
    del contents.tensors[name]
    contents.config.pop("weights_sha256")
    reader.write_bank(contents, bank)
    layer, _ = split_key(name)
    with pytest.raises(BankFileError, match=f"{layer}: expected A and B of rank 4, found .* and none"):
        bank_overview(bank)


def test_a_config_that_is_none_is_refused_by_name(bank):
    for text, told in [("{", "damaged"), ("[]", "expected an object, found list"), ("{}", "an adapter of type None")]:
        (bank / "adapter_config.json").write_text(text)
        with pytest.raises(BankFileError, match=told):
            SavedBank(bank)


def test_a_newer_format_is_refused_by_name(bank):
    fields = json.loads((bank / "adapter_config.json").read_text())
    (bank / "adapter_config.json").write_text(json.dumps(fields | {"format_version": 99}))
    with pytest.raises(BankFileError, match=r"adapter_config.json: this bank has format version 99.*upgrade colora"):
        SavedBank(bank)


def test_every_fault_of_the_tensors_is_told(bank):
    contents = SavedBank(bank).load()
    contents.config.pop("weights_sha256")
    contents.config["tasks"] = [*TASKS, "one more"]
    name = next(key for key in contents.tensors if key.endswith("colora_core"))
    del contents.tensors[name]
    reader.write_bank(contents, bank)
    with pytest.raises(BankFileError) as caught:
        bank_overview(bank)
    told = str(caught.value)
    assert "14 faults" in told
    assert f"{name}: expected (4, 4, 4), found none" in told
    assert "expected (4, 4, 4), found (3, 4, 4)" in told
    assert "... and 9 more" in told


def test_a_bank_that_is_replaced_while_its_base_is_loaded_is_the_one_that_was_opened(bank, monkeypatch):
    """Another process may merge and forget tasks: names and cores must still be those of one bank."""
    contents = SavedBank(bank).load()
    contents.config.pop("weights_sha256")
    reader.write_bank(contents, bank)
    before, load_base = SavedBank(bank).core(0), colora.bank.load.load_base

    def slowly(*args, **kwargs):
        merge_tasks(bank, "mixed", {"legal": 1.0})
        forget_tasks(bank, ["billing"])
        return load_base(*args, **kwargs)

    monkeypatch.setattr(colora.bank.load, "load_base", slowly)
    model, _, _ = load_bank(bank)
    assert model.tasks == TASKS
    assert all(torch.equal(core, before[name]) for name, core in model.core("billing").items())
    assert SavedBank(bank).tasks == ["legal", "sales", "mixed"]


def test_a_lora_is_refused_with_what_to_do(bank):
    (bank / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(BankFileError, match="found an adapter of type LORA; `colora import` makes a bank"):
        load_bank(bank)
