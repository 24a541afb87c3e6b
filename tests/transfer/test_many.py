"""Several new tasks: each as it would be alone, in a bank that is written as they come."""

import pytest
import torch
from safetensors.torch import load_file

from colora.bank.layout import read_bank_info
from colora.bank.load import load_bank
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError, TaskFileError, TrainingDivergedError
from colora.transfer.onboarding import many
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.many import onboard_many
from colora.transfer.onboarding.onboard import onboard
from tests.helpers.run_files import cli, content, refusal, write_task
from tests.helpers.servers import make_bank

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
NEW = ("red", "blue", "green")
QUICK = Settings(steps=6, rows=4)


@pytest.fixture
def saved(tmp_path):
    return make_bank(tmp_path, ("legal", "sales"))


@pytest.fixture
def files(tmp_path):
    return [tmp_path / write_task(tmp_path, name, 6) for name in NEW]


def cores(bank):
    saved = SavedBank(bank)
    saved.check()
    return {name: saved.core(index) for name, index in saved.index.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_each_gets_the_core_that_it_gets_alone_and_the_others_stay(saved, files, tmp_path):
    before = cores(saved)
    alone = {}
    for file in files:
        onboard(saved, file, output=tmp_path / f"only-{file.stem}", settings=QUICK)
        alone[file.stem] = cores(tmp_path / f"only-{file.stem}")[file.stem]
    found = onboard_many(saved, files, settings=QUICK)
    after = cores(saved)
    assert list(after) == ["legal", "sales", *NEW]
    for name, core in {**before, **alone}.items():
        assert_same(core, after[name])
    assert [one.task for one in found.done] == list(NEW)
    assert (found.bank, found.skipped, found.failed) == (saved, [], {})
    info = read_bank_info(saved)
    assert [info.examples[name] for name in NEW] == [6, 6, 6]
    model, _, _ = load_bank(saved)
    assert model.tasks == ["legal", "sales", *NEW]


def test_after_a_crash_the_same_command_goes_on(saved, files, tmp_path, monkeypatch):
    onboard_many(saved, files, output=tmp_path / "whole", settings=QUICK)
    calls, add = [], many.add_new_task

    def crash(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return add(*args, **options)

    monkeypatch.setattr(many, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(many, "add_new_task", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        onboard_many(saved, files, output=tmp_path / "run", settings=QUICK)
    assert list(cores(tmp_path / "run")) == ["legal", "sales", "red", "blue"]
    monkeypatch.undo()
    found = onboard_many(saved, files, output=tmp_path / "run", settings=QUICK)
    assert (found.skipped, [one.task for one in found.done]) == (["red", "blue"], ["green"])
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "run"))
    assert_same(one, other)
    assert onboard_many(saved, files, output=tmp_path / "run", settings=QUICK).done == []
    other = make_bank(tmp_path, ("other",), seed=9, name="other")
    before = content(other)
    with pytest.raises(ConfigError, match="holds another bank"):
        onboard_many(saved, files, output=other, settings=QUICK)
    assert content(other) == before


def test_one_that_cannot_be_trained_is_left_out_and_told(saved, files, monkeypatch):
    add = many.add_new_task

    def diverge(model, tokenizer, task, *args, **options):
        if task.name == "blue":
            raise TrainingDivergedError("the loss became nan in step 3: lower lr")
        return add(model, tokenizer, task, *args, **options)

    monkeypatch.setattr(many, "add_new_task", diverge)
    found = onboard_many(saved, files, settings=QUICK)
    assert found.failed == {"blue": "the loss became nan in step 3: lower lr"}
    assert list(cores(saved)) == ["legal", "sales", "red", "green"]


def test_faults_of_all_files_are_told_before_anything_is_trained(saved, files, tmp_path):
    before = content(saved)
    files[0].write_text('{"input": 3}\n')
    files[2].write_text("no json\n")
    with pytest.raises(TaskFileError) as raised:
        onboard_many(saved, files, settings=QUICK)
    assert all(any(name in fault for fault in raised.value.faults) for name in ("red.jsonl", "green.jsonl"))
    with pytest.raises(ConfigError, match="one new task at a time"):
        onboard_many(saved, files, settings=Settings(extend=2))
    (tmp_path / "other").mkdir()
    twice = [files[1], tmp_path / "other" / write_task(tmp_path / "other", "blue", 3)]
    with pytest.raises(TaskFileError, match="blue"):
        onboard_many(saved, twice, settings=QUICK)
    assert content(saved) == before


def test_the_command_takes_several_files(saved, files):
    result = cli("onboard", saved, *files, "--steps", 4, "--rows", 2)
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in NEW)
    assert "3 new tasks, 0 that it had, 0 left out" in " ".join(result.output.split())
    again = cli("onboard", saved, *files, "--steps", 4, "--rows", 2)
    assert "0 new tasks, 3 that it had" in " ".join(again.output.split())
    assert "names one task" in refusal("onboard", saved, *files, "--name", "x")
