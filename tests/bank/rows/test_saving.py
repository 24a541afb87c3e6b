"""A bank in rows is, on a model or read core by core, the bank that was saved."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel

import colora
from colora.adapter.lookup import only_bank
from colora.bank.layout import BankInfo
from colora.bank.load import attach_bank, load_bank, save_bank
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, TaskIdError
from tests.helpers.dense_oracle import make_bank, make_inputs
from tests.helpers.row_banks import base_in, row_bank, same, stored_bank
from tests.helpers.tiny import tiny_llama

NAMES = ["ada", "bo", "cy", "dé", "ed", "fy"]


def logits(model, task_ids):
    with torch.no_grad():
        return model(**make_inputs(), task_ids=task_ids).logits


@pytest.fixture
def saved(tmp_path):
    sources = {name: {"split_seed": 1} for name in NAMES}
    info = BankInfo(base_in(tmp_path), chat_template=False, max_length=96, seen={"fy": 3, "ada": 4}, sources=sources)
    return row_bank(tmp_path, NAMES, info)


def test_every_core_is_read_as_it_was(saved):
    folder, cores = saved
    bank = SavedBank(folder)
    bank.check()
    assert list(bank.tasks) == NAMES
    assert (bank.index["dé"], "nobody" in bank.index, bank.core_rank(3)) == (3, False, 4)
    for number, name in enumerate(NAMES):
        assert same(bank.core(number), cores[name])


def test_a_loaded_bank_gives_the_same_logits_and_cores(saved):
    folder, cores = saved
    model, _, _ = load_bank(folder)
    whole = make_bank(tiny_llama(), NAMES)
    ids = [5, 0, 3, 0]
    assert torch.equal(logits(model, task_ids=ids), logits(whole, task_ids=ids))
    assert list(model.base_model.tasks) == NAMES
    assert all(same(model.base_model.core(name), cores[name]) for name in NAMES)


def test_some_tasks_are_loaded_as_a_small_bank(saved):
    folder, cores = saved
    model, _, info = load_bank(folder, tasks=["fy", "bo"])
    assert model.base_model.tasks == ["fy", "bo"]
    assert only_bank(model)[1].stored == {}
    assert same(model.base_model.core("fy"), cores["fy"])
    assert torch.equal(
        logits(model, task_ids=["fy", "bo", "fy", "bo"]), logits(make_bank(tiny_llama(), NAMES), task_ids=[5, 1, 5, 1])
    )
    save_bank(model, folder.parent / "small", info)
    small = SavedBank(folder.parent / "small")
    assert (small.rows, list(small.tasks)) == (None, ["fy", "bo"])
    assert (small.info.seen, small.info.sources) == ({"fy": 3}, {"fy": {"split_seed": 1}, "bo": {"split_seed": 1}})
    assert same(small.core(1), cores["bo"])
    save_bank(model, folder.parent / "same", SavedBank(folder).info)  # that of all
    assert (folder.parent / "same" / "bank.json").read_bytes() == (folder.parent / "small" / "bank.json").read_bytes()
    with pytest.raises(TaskIdError, match="has no task 'zed'"):
        load_bank(folder, tasks=["fy", "zed"])


def test_some_tasks_of_a_bank_in_stacks_are_loaded_too(tmp_path):
    save_bank(make_bank(tiny_llama(), NAMES), tmp_path / "bank", BankInfo(base_in(tmp_path), chat_template=False))
    model, _, _ = load_bank(tmp_path / "bank", tasks=["cy"])
    assert same(model.base_model.core("cy"), make_bank(tiny_llama(), NAMES).base_model.core("cy"))


def test_saving_what_was_loaded_is_the_same_bytes(saved, tmp_path):
    model, _, info = load_bank(saved[0])
    folder = tmp_path / "first"
    save_bank(model, folder, info)
    model, _, info = load_bank(folder)
    save_bank(model, tmp_path / "again", info)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes(), file


def test_what_was_changed_is_saved_and_the_rest_comes_from_the_old_files(saved, tmp_path):
    folder, cores = saved
    model, _, info = load_bank(folder)
    new = {name: torch.full_like(core, 0.5) for name, core in cores["cy"].items()}
    model.base_model.set_core("cy", new)
    save_bank(model, folder, info)  # in the place of the files that it reads from
    bank = SavedBank(folder)
    assert same(bank.core(2), new)
    assert all(same(bank.core(bank.index[name]), cores[name]) for name in NAMES if name != "cy")
    assert all(same(model.base_model.core(name), cores[name]) for name in NAMES if name != "cy")


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = stored_bank(NAMES)
    before = {name: model.base_model.core(name) for name in NAMES}
    save_bank(model, tmp_path / "bank", BankInfo("base"))
    assert list(model.base_model.tasks) == NAMES
    assert list(model.peft_config["default"].tasks) == NAMES
    assert only_bank(model)[1].stored["default"] is not None
    assert all(same(model.base_model.core(name), before[name]) for name in NAMES)


def test_tasks_are_added_and_removed_after_loading(saved, tmp_path):
    folder, cores = saved
    model, _, info = load_bank(folder)
    tuner = model.base_model
    tuner.add_tasks(["gus"], init="mean")
    tuner.remove_task("bo")
    mean = {key: torch.stack([cores[name][key].double() for name in NAMES]).mean(0) for key in cores["bo"]}
    assert all(torch.allclose(core.double(), mean[key], atol=1e-6) for key, core in tuner.core("gus").items())
    save_bank(model, tmp_path / "after", info)
    bank = SavedBank(tmp_path / "after")
    assert list(bank.tasks) == ["ada", "cy", "dé", "ed", "fy", "gus"]
    assert all(same(bank.core(bank.index[name]), cores[name]) for name in NAMES if name != "bo")


def test_numbers_and_sources_of_tasks_come_back_and_what_is_common_stands_once(tmp_path):
    info = BankInfo(
        base_in(tmp_path),
        examples={"ada": 3, "cy": 0},
        seen=dict.fromkeys(NAMES, 7),
        sources={name: {"split_seed": 5 if name == "bo" else 1} for name in NAMES if name != "fy"},
        prompts={"ed": "{input} is {output}"},
    )
    folder, _ = row_bank(tmp_path, NAMES, info)
    written = json.loads((folder / "bank.json").read_text())
    assert (written["source"], written["sources"]) == ({"split_seed": 1}, {"bo": {"split_seed": 5}, "fy": None})
    assert not {"examples", "seen"} & written.keys()
    found = SavedBank(folder).info
    assert dict(found.examples) == {"ada": 3, "cy": 0}
    assert dict(found.seen) == dict.fromkeys(NAMES, 7)
    assert found.source_of("cy") == {"split_seed": 1}
    assert found.source_of("bo") == {"split_seed": 5}
    assert found.source_of("fy") is None
    few = found.of_tasks(["cy", "ed", "fy"])
    assert few.examples == {"cy": 0}
    assert few.sources == {"cy": {"split_seed": 1}, "ed": {"split_seed": 1}}
    assert few.prompts == {"ed": "{input} is {output}"}


def test_a_bank_of_few_tasks_on_the_model_is_written_as_before(tmp_path):
    save_bank(make_bank(tiny_llama(), NAMES), tmp_path / "bank", BankInfo("base"))
    config = json.loads((tmp_path / "bank" / "adapter_config.json").read_text())
    assert (config["format_version"], config["tasks"]) == (1, NAMES)
    assert not (tmp_path / "bank" / "cores").exists()


def test_the_config_has_no_list_of_names(saved):
    config = json.loads((saved[0] / "adapter_config.json").read_text())
    assert (config["format_version"], config["cores"]["tasks"]) == (2, 6)
    assert "tasks" not in config


def test_peft_alone_refuses_a_bank_in_rows_by_name(saved):
    folder, _ = saved
    with pytest.raises(BankFileError, match=r"in rows \(format version 2\).*colora.load_bank"):
        PeftModel.from_pretrained(tiny_llama(), folder)
    with pytest.raises(BankFileError, match=r"colora\.attach_bank"):
        PeftConfig.from_pretrained(folder)
    model = make_bank(tiny_llama())
    with pytest.raises(BankFileError, match="in rows"):
        model.load_adapter(folder, "second")


def test_an_attached_bank_can_be_trained_and_saved(saved, tmp_path):
    folder, cores = saved
    model = attach_bank(tiny_llama(), folder, trainable=True, room=2)
    optimizer = colora.TaskAdamW(colora.parameter_groups(model, lr=1e-2, core_lr=1e-1))
    ids = torch.arange(8).view(2, 4)
    with colora.tasks_at_hand(model, ["bo", "ed"], optimizer):
        model(input_ids=ids, labels=ids, task_ids=["bo", "ed"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_bank(model, tmp_path / "after", SavedBank(folder).info)
    after = SavedBank(tmp_path / "after")
    for name in NAMES:
        assert same(after.core(after.index[name]), cores[name]) == (name not in ("bo", "ed"))
