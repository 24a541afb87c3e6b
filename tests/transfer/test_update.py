"""More examples for a task of a bank: its core alone goes on, and only if that is better on examples set aside."""

import json

import pytest
import torch
from safetensors.torch import load_file

from colora.bank.core_file import extract_core, read_core
from colora.bank.layout import read_bank_info
from colora.bank.load import load_bank
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError, TaskIdError
from colora.tasks.schema import TaskSource
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import read_one_task
from colora.transfer.onboarding.update import update
from tests.helpers.run_files import cli, content, refusal, write_task
from tests.helpers.servers import make_bank

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TASKS = ["legal", "billing", "sales"]
QUICK = Settings(steps=12, rows=4, lr=0.1)


@pytest.fixture
def saved(tmp_path):
    return make_bank(tmp_path, TASKS)


@pytest.fixture
def examples(tmp_path):
    return tmp_path / write_task(tmp_path, "billing", 12)


def tensors(bank):
    return load_file(bank / "adapter_model.safetensors")


def test_the_core_of_the_task_alone_moves_and_gets_better(saved, examples):
    before, seen = tensors(saved), read_bank_info(saved)
    found = update(saved, examples, settings=QUICK)
    assert (found.task, found.bank, found.kept, found.trained, found.validation) == ("billing", saved, True, 9, 3)
    assert found.after < found.before
    after = tensors(saved)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if "colora_core" in name:
            assert torch.equal(value[[0, 2]], after[name][[0, 2]])
            assert not torch.equal(value[1], after[name][1])
        else:
            assert torch.equal(value, after[name])
    info = read_bank_info(saved)
    assert info.examples == {"billing": 9}
    assert info.seen == {"billing": 48}
    assert info.prompt == seen.prompt
    SavedBank(saved).check()


def test_a_file_whose_columns_have_other_names(saved, examples, tmp_path):
    renamed = tmp_path / "other" / "billing.jsonl"
    renamed.parent.mkdir()
    renamed.write_text(examples.read_text().replace('"input"', '"tweet text"').replace('"output"', '"Stance"'))
    expected = update(saved, examples, settings=QUICK, output=tmp_path / "one")
    fields = {"input": "tweet text", "output": "Stance"}
    found = update(saved, TaskSource(path=str(renamed), fields=fields), settings=QUICK, output=tmp_path / "two")
    assert (found.after, found.trained, found.validation) == (expected.after, 9, 3)
    told = refusal("update", saved, renamed)
    assert "or `--field input=COLUMN` of a command, names another" in told
    options = ("--field", "input=tweet text", "--field", "output=Stance")
    done = cli(
        "update", saved, renamed, "--output", tmp_path / "three", "--steps", 12, "--rows", 4, "--lr", 0.1, *options
    )
    assert done.exit_code == 0, done.stderr
    assert (
        content(tmp_path / "one")["adapter_model.safetensors"][0]
        == content(tmp_path / "three")["adapter_model.safetensors"][0]
    )


def test_what_it_says_is_what_the_bank_gives_afterwards(saved, examples):
    found = update(saved, examples, settings=QUICK)
    task = read_one_task(examples, None, 0, validation=3)
    again = update(saved, examples, settings=Settings(steps=1, rows=1, lr=1e-9), force=True)
    assert len(task.splits["val"]) == 3
    assert again.before == pytest.approx(found.after, rel=1e-5)


def test_a_core_that_got_worse_is_not_kept_unless_that_is_asked_for(saved, examples):
    update(saved, examples, settings=QUICK)
    before = content(saved)
    wild = Settings(steps=6, rows=4, lr=30.0)
    found = update(saved, examples, settings=wild)
    assert (found.kept, found.after > found.before) == (False, True)
    assert content(saved) == before
    assert update(saved, examples, settings=wild, force=True).kept
    assert content(saved) != before


def test_another_output_leaves_the_bank(saved, examples, tmp_path):
    before = content(saved)
    update(saved, examples, settings=QUICK, output=tmp_path / "new")
    assert content(saved) == before
    extract_core(saved, "billing", tmp_path / "one")
    extract_core(tmp_path / "new", "billing", tmp_path / "other")
    bank = SavedBank(saved)
    shape = {name: tuple(layer.cores.shape[1:]) for name, layer in bank.layers.items()}
    one, other = (read_core((tmp_path / name).read_bytes(), shape, bank.shared_sha256)[0] for name in ("one", "other"))
    assert not any(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ConfigError, match="is there already"):
        update(saved, examples, settings=QUICK, output=tmp_path / "new")


def test_a_folder_with_a_val_file_is_validated_on_that(saved, tmp_path):
    folder = tmp_path / "billing"
    folder.mkdir()
    for split, count in (("train", 6), ("val", 2)):
        text = "".join(
            json.dumps({"input": f"{split} {i}", "output": "zahl" * (1 + i % 2)}) + "\n" for i in range(count)
        )
        (folder / f"{split}.jsonl").write_text(text)
    found = update(saved, folder, settings=QUICK)
    assert (found.trained, found.validation) == (6, 2)


def test_what_cannot_be_updated_is_told(saved, examples, tmp_path):
    with pytest.raises(TaskIdError, match="no task 'other'"):
        update(saved, examples, name="other")
    with pytest.raises(ConfigError, match="keeps its rank"):
        update(saved, examples, settings=Settings(extend=2))
    one = tmp_path / write_task(tmp_path, "sales", 1)
    with pytest.raises(ConfigError, match="at least two examples"):
        update(saved, one)
    before = content(saved)
    assert "no task 'other'" in refusal("update", saved, examples, "--name", "other")
    assert content(saved) == before


def test_the_command_tells_what_it_did(saved, examples):
    result = cli("update", saved, examples, "--steps", 12, "--rows", 4, "--lr", 0.1)
    assert result.exit_code == 0, result.output
    assert "billing" in result.output
    assert "on 3 others" in " ".join(result.output.split())
    before = content(saved)
    result = cli("update", saved, examples, "--steps", 6, "--rows", 4, "--lr", 30)
    assert result.exit_code == 1
    assert "the bank is unchanged" in " ".join(result.output.split())
    assert content(saved) == before
    model, _, _ = load_bank(saved)
    assert model.tasks == TASKS
