"""Merging and forgetting tasks of a saved bank: exact, byte for byte, and whole or not at all."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

import colora.bank.edit
import colora.bank.tensors
from colora.adapter.config import CoLoRAConfig
from colora.bank.edit import forget_tasks, merge_tasks
from colora.bank.layout import BankInfo, read_bank_info
from colora.bank.load import load_bank, save_bank
from colora.bank.tensors import SavedBank, write_bank
from colora.errors import BankFileError, CheckpointError, ConfigError, TaskIdError
from colora.models.base import load_base
from tests.helpers.run_files import cli, content, refusal, run_file, save_base
from tests.helpers.tiny import VOCAB, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["legal", "billing", "sales"]
IDS = torch.randint(6, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), tiny_llama(dtype=torch.float64))


def make_bank(base, dtype=torch.float64, **options):
    torch.manual_seed(1)
    config = CoLoRAConfig(
        **{"r": 3, "tasks": TASKS, "lora_alpha": 5, "init_weights": False, "task_type": "CAUSAL_LM"} | options
    )
    return get_peft_model(load_base(base, dtype=dtype)[0], config)


def info(base, tasks, **more):
    return BankInfo(
        base=base, examples={name: len(name) for name in tasks}, seen=dict.fromkeys(tasks, 7),
        sources={name: {"split_seed": 0} for name in tasks} | more,
    )  # fmt: skip


@pytest.fixture
def bank(base, tmp_path):
    save_bank(make_bank(base), tmp_path / "b", info(base, TASKS))
    return tmp_path / "b"


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def updates(folder, task):
    model, _, _ = load_bank(folder, dtype=torch.float64)
    number = model.tasks.index(task)
    layers = colora.adapter.model.bank_layers(model, "default")
    return {name: layer.get_delta_weight("default", number).detach() for name, layer in layers.items()}


# ---- the files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"target_modules": ["q_proj"]}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reading_and_writing_changes_no_byte(base, tmp_path, options, dtype):
    save_bank(make_bank(base, dtype, **options), tmp_path / "b", info(base, TASKS))
    write_bank(SavedBank(tmp_path / "b").load(), tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "b")


def test_what_else_lies_in_the_folder_is_kept(bank):
    (bank / "notes").mkdir()
    (bank / "notes" / "bank.json").write_text("mine")
    merge_tasks(bank, "both", {"legal": 1})
    assert (bank / "notes" / "bank.json").read_text() == "mine"


def test_a_bank_without_bank_json_stays_without(base, tmp_path):
    make_bank(base).save_pretrained(str(tmp_path / "b"), save_embedding_layers=False)
    forget_tasks(tmp_path / "b", ["legal"])
    merge_tasks(tmp_path / "b", "both", {"billing": 2})
    assert not (tmp_path / "b" / "bank.json").exists()
    assert load_bank(tmp_path / "b", dtype=torch.float64)[0].tasks == ["billing", "sales", "both"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def swapped(path):
    save_file({key: value + 1 for key, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bank: cut(bank / "adapter_model.safetensors"), "truncated or no safetensors file"),
        (lambda bank: swapped(bank / "adapter_model.safetensors"), "digest weights_sha256"),
        (lambda bank: (bank / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda bank: (bank / "adapter_config.json").write_text("{"), "damaged"),
        (lambda bank: (bank / "bank.json").write_text("{"), "damaged"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_damaged_bank_is_refused(bank, change, message):
    change(bank)
    before = files(bank)
    for edit in (lambda: merge_tasks(bank, "both", {"legal": 1}), lambda: forget_tasks(bank, ["legal"])):
        with pytest.raises(BankFileError, match=message):
            edit()
    assert files(bank) == before


def test_another_adapter_is_no_bank(base, tmp_path):
    from tests.helpers.lora_folders import save_lora

    save_lora(tmp_path / "lora", base)
    with pytest.raises(BankFileError, match="expected a bank, found an adapter of type"):
        merge_tasks(tmp_path / "lora", "both", {"legal": 1})


# ---- merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights", [{"legal": 0.5, "billing": 0.5}, {"sales": 1, "legal": -1}, {"legal": 3.0, "billing": 0.25, "sales": -2}]
)
def test_the_new_update_is_the_weighted_sum(bank, tmp_path, weights):
    before = content(bank)
    assert merge_tasks(bank, "new one", weights, tmp_path / "out") == tmp_path / "out"
    assert content(bank) == before
    parts = {task: updates(bank, task) for task in weights}
    for name, found in updates(tmp_path / "out", "new one").items():
        expected = sum(weight * parts[task][name] for task, weight in weights.items())
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    for task in TASKS:
        assert all(torch.equal(one, updates(bank, task)[name]) for name, one in updates(tmp_path / "out", task).items())
    assert read_bank_info(tmp_path / "out").sources["new one"] == {"merged": weights}


def test_a_copy_of_a_task_gives_its_logits_to_the_last_bit(base, tmp_path):
    save_bank(make_bank(base, torch.float32), tmp_path / "b", info(base, TASKS))
    merge_tasks(tmp_path / "b", "copy", {"billing": 1.0})
    model, _, _ = load_bank(tmp_path / "b")
    with torch.no_grad():
        logits = model(IDS, task_ids=["billing", "copy"]).logits
        assert torch.equal(model(IDS, task_ids=["billing"] * 2).logits, model(IDS, task_ids=["copy"] * 2).logits)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("legal", {"billing": 1}, ConfigError, "'legal' is already a task of"),
        ("a/b", {"billing": 1}, ConfigError, "expected a task name of"),
        ("new", {"pink": 1}, TaskIdError, "has no task 'pink'; it has legal, billing, sales"),
        ("new", {}, ConfigError, "the weight of at least one task, found none"),
        ("new", {"legal": float("nan")}, ConfigError, "expected a finite number, found nan"),
    ],
)
def test_merging_refuses(bank, name, weights, error, message):
    before = content(bank)
    with pytest.raises(error, match=message):
        merge_tasks(bank, name, weights)
    assert content(bank) == before


def test_an_output_that_is_there_is_not_replaced(bank, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    for output in (tmp_path / "mine", tmp_path / "mine" / "x", bank):
        with pytest.raises(ConfigError, match="is there already"):
            merge_tasks(bank, "new", {"legal": 1}, output)


# ---- forgetting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [["legal"], ["billing"], ["sales", "legal"]])
def test_the_bank_is_one_that_holds_only_the_others(base, tmp_path, gone):
    """Byte for byte what stock saving writes of a bank whose tasks were removed in memory."""
    model = make_bank(base)
    save_bank(model, tmp_path / "b", info(base, TASKS))
    for name in gone:
        model.remove_task(name)
    left = [name for name in TASKS if name not in gone]
    save_bank(model, tmp_path / "expected", info(base, left))
    done = forget_tasks(tmp_path / "b", gone)
    assert done.tasks == left
    assert files(tmp_path / "b") == files(tmp_path / "expected")
    text = b"".join(files(tmp_path / "b").values())
    assert not any(name.encode() in text for name in gone)


def test_merging_and_forgetting_the_mixture_changes_no_byte(bank):
    before = files(bank)
    merge_tasks(bank, "both", {"legal": 0.5, "billing": 0.5})
    assert files(bank) != before
    forget_tasks(bank, ["both"])
    assert files(bank) == before


def test_mixtures_of_what_is_to_be_forgotten_go_with_it(bank):
    merge_tasks(bank, "both", {"legal": 0.5, "billing": 0.5})
    merge_tasks(bank, "more", {"both": 2})
    before = content(bank)
    with pytest.raises(ConfigError) as caught:
        forget_tasks(bank, ["legal"])
    assert caught.value.faults == ["both: merged from legal", "more: merged from both"]
    assert content(bank) == before
    assert forget_tasks(bank, ["legal", "both", "more"]).tasks == ["billing", "sales"]


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        (["pink", "legal"], TaskIdError, "has no task 'pink'"),
        (TASKS, ConfigError, "no task would be left"),
        ([], ConfigError, "found none"),
    ],
)
def test_forgetting_refuses(bank, tasks, error, message):
    before = content(bank)
    with pytest.raises(error, match=message):
        forget_tasks(bank, tasks)
    assert content(bank) == before


@pytest.mark.parametrize("edit", [merge_tasks, forget_tasks])
def test_a_write_that_fails_leaves_the_bank_as_it_was(bank, monkeypatch, edit):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(colora.bank.tensors, "save_file", full)
    before = content(bank)
    with pytest.raises(CheckpointError, match="No space left on device"):
        edit(bank, *(("new", {"legal": 1}) if edit is merge_tasks else (["legal"],)))
    assert content(bank) == before
    assert [path.name for path in bank.parent.iterdir()] == [bank.name]


# ---- the commands, on a run -----------------------------------------------------------------------------------------


@pytest.fixture
def run(base, tmp_path):
    result = cli("train", run_file(tmp_path, base, ("red", "blue", "green")))
    assert result.exit_code == 0, result.stderr
    return tmp_path / "out"


def test_forgetting_tells_what_the_run_still_holds(run):
    result = cli("forget", run, "red")
    assert result.exit_code == 0, result.stderr
    assert f"forgotten: red; 2 tasks are left in {run / 'bank'}" in result.stderr
    assert f"warning: {run / 'checkpoints'} still holds the cores; remove it with --purge" in result.stderr
    for name in ("run.yaml", "tasks.json", "records.jsonl"):
        assert f"warning: {run / name} still names them" in result.stderr
    assert (run / "checkpoints").is_dir()
    assert read_bank_info(run / "bank").examples.keys() == {"blue", "green"}


def test_a_run_is_measured_without_what_it_has_forgotten(run):
    forget_tasks(run, ["red"])
    result = cli("evaluate", run)
    assert result.exit_code == 0, result.stderr
    assert "not measured: red: not in the bank (any more)" in result.stderr
    assert [word for word in ("red", "blue", "green") if word in result.stdout] == ["blue", "green"]
    assert "has ended before" in cli("train", run.parent / "run.yaml").stderr


def test_a_link_to_a_bank_and_the_current_folder(bank, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(bank)
    forget_tasks(tmp_path / "link", ["legal"])
    assert (tmp_path / "link").is_symlink()
    assert SavedBank(bank).load().tasks == ["billing", "sales"]
    monkeypatch.chdir(bank)
    merge_tasks(".", "both", {"sales": 1})
    assert SavedBank(bank).load().tasks == ["billing", "sales", "both"]


def test_purging_removes_the_checkpoints(run):
    result = cli("forget", run / "bank", "red", "blue", "--purge")
    assert result.exit_code == 0, result.stderr
    assert f"removed: {run / 'checkpoints'}" in result.stderr
    assert not (run / "checkpoints").exists()
    assert json.loads((run / "bank" / "adapter_config.json").read_text())["tasks"] == ["green"]
    assert "no task would be left" in refusal("forget", run, "green")


def test_a_bank_that_is_none_of_a_run_has_nothing_beside_it(bank):
    (bank.parent / "checkpoints").mkdir()
    bank = bank.rename(bank.parent / "bank")
    done = forget_tasks(bank, ["legal"], purge=True)
    assert (done.purged, done.cores_left, done.names_left) == ([], [], [])
    assert (bank.parent / "checkpoints").is_dir()


def test_checkpoints_that_cannot_be_removed_are_told(run, monkeypatch):
    remove = colora.bank.edit.shutil.rmtree

    def refuse(folder, **options):
        if folder.name == "checkpoints":
            raise PermissionError(13, "Permission denied")
        remove(folder, **options)

    monkeypatch.setattr(colora.bank.edit.shutil, "rmtree", refuse)
    assert "checkpoints: could not be removed" in refusal("forget", run, "red", "--purge")


def test_merging_by_the_command(bank, tmp_path):
    result = cli("merge", bank, "both", "legal=0.5", "billing=-2", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert f"written: {tmp_path / 'out'}" in result.stderr
    assert read_bank_info(tmp_path / "out").sources["both"] == {"merged": {"legal": 0.5, "billing": -2.0}}
    assert "both" in cli("tasks", tmp_path / "out").stdout
    for part in ("legal", "legal=much", "=1"):
        assert f"expected TASK=WEIGHT, such as legal=0.5, found '{part}'" in refusal("merge", bank, "x", part)
    assert "'legal' stands twice" in refusal("merge", bank, "x", "legal=1", "legal=2")
