"""Several new tasks: each as it would be alone, in a bank that is written as they come."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from colora.bank.layout import read_bank_info
from colora.bank.load import load_bank
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError, TaskFileError
from colora.tasks.schema import TaskSource
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


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    assert all(float((one[key] - other[key]).abs().max()) < tolerance for key in one)


def test_files_whose_columns_have_other_names(saved, files, tmp_path):
    onboard_many(saved, files, output=tmp_path / "one", settings=QUICK, dtype="float32")
    for file in files:
        file.write_text(file.read_text().replace('"input"', '"text"'))
    sources = [TaskSource(path=str(file), fields={"input": "text"}) for file in files]
    onboard_many(saved, sources, output=tmp_path / "two", settings=QUICK, dtype="float32")
    one, two = cores(tmp_path / "one"), cores(tmp_path / "two")
    assert list(one) == list(two)
    for name, core in one.items():
        assert_same(core, two[name])


def test_each_gets_the_core_that_it_gets_alone_and_the_others_stay(saved, files, tmp_path):
    before = cores(saved)
    alone, told = {}, {}
    for file in files:
        told[file.stem] = onboard(saved, file, output=tmp_path / f"only-{file.stem}", settings=QUICK)
        alone[file.stem] = cores(tmp_path / f"only-{file.stem}")[file.stem]
    found = onboard_many(saved, files, settings=QUICK, dtype="float32")
    after = cores(saved)
    assert list(after) == ["legal", "sales", *NEW]
    for name, core in before.items():
        assert_same(core, after[name])
    for name, core in alone.items():
        assert_close(core, after[name], 1e-4)
    assert [one.task for one in found.done] == list(NEW)
    assert (found.bank, found.skipped, found.failed) == (saved, [], {})
    for one in found.done:
        other = told[one.task]
        assert (one.start.name, one.examples, one.validation) == (other.start.name, 6, None)
        assert one.after == pytest.approx(other.after, rel=1e-3)
        assert one.advice == other.advice
    info = read_bank_info(saved)
    assert [info.examples[name] for name in NEW] == [6, 6, 6]
    model, _, _ = load_bank(saved)
    assert model.tasks == ["legal", "sales", *NEW]


def test_the_order_of_the_files_changes_no_core(saved, files, tmp_path):
    onboard_many(saved, files, output=tmp_path / "one", settings=QUICK, dtype="float32")
    onboard_many(saved, files[::-1], output=tmp_path / "other", settings=QUICK, dtype="float32")
    one, other = cores(tmp_path / "one"), cores(tmp_path / "other")
    assert list(other) == ["legal", "sales", *reversed(NEW)]
    for name in one:
        assert_close(one[name], other[name], 1e-4)


def test_bfloat16_is_near_float32_and_the_cores_are_float32(saved, files, tmp_path):
    exact = onboard_many(saved, files, output=tmp_path / "exact", settings=QUICK, dtype="float32")
    rough = onboard_many(saved, files, output=tmp_path / "rough", settings=QUICK, dtype="bfloat16")
    for one, other in zip(exact.done, rough.done, strict=True):
        assert other.after == pytest.approx(one.after, rel=0.03)
    dtypes = {core.dtype for core in cores(tmp_path / "rough")["red"].values()}
    assert dtypes == {torch.float32}
    for name, core in cores(saved).items():
        assert_same(core, cores(tmp_path / "rough")[name])
    with pytest.raises(ConfigError, match="expected float32 or bfloat16, found float16"):
        onboard_many(saved, files, output=tmp_path / "no", settings=QUICK, dtype="float16")


@pytest.fixture
def one_by_one(monkeypatch):
    """Cohorts of one task, and the bank written after each."""
    monkeypatch.setattr(many, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(many, "most_tokens_of", lambda device: 1)


def test_after_a_crash_the_same_command_goes_on(saved, files, tmp_path, monkeypatch, one_by_one):
    onboard_many(saved, files, output=tmp_path / "whole", settings=QUICK)
    calls, add = [], many.GrowingBank.add_all

    def crash(*args):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        add(*args)

    monkeypatch.setattr(many.GrowingBank, "add_all", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        onboard_many(saved, files, output=tmp_path / "run", settings=QUICK)
    done = list(cores(tmp_path / "run"))
    assert done[:2] == ["legal", "sales"]
    assert len(done) == 4
    monkeypatch.setattr(many.GrowingBank, "add_all", add)
    found = onboard_many(saved, files, output=tmp_path / "run", settings=QUICK)
    assert sorted(found.skipped) == sorted(done[2:])
    assert [one.task for one in found.done] == [name for name in NEW if name not in done]
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "run"))
    assert_same(one, other)
    assert onboard_many(saved, files, output=tmp_path / "run", settings=QUICK).done == []
    other = make_bank(tmp_path, ("other",), seed=9, name="other")
    before = content(other)
    with pytest.raises(ConfigError, match="holds another bank"):
        onboard_many(saved, files, output=other, settings=QUICK)
    assert content(other) == before


def test_what_is_done_when_ctrl_c_comes_is_kept(saved, files, monkeypatch):
    monkeypatch.setattr(many, "most_tokens_of", lambda device: 1)
    calls, add = [], many.GrowingBank.add_all

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(*args)

    monkeypatch.setattr(many.GrowingBank, "add_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onboard_many(saved, files, settings=QUICK)
    assert len(cores(saved)) == 4


KILLED = """
import sys
from colora.transfer.onboarding import many
from colora.transfer.onboarding.fit import Settings
many.SAVE_SECONDS, many.most_tokens_of = 0.0, lambda device: 1
bank, output, *files = sys.argv[1:]
settings = Settings(steps=6, rows=4)
many.onboard_many(bank, files, output=output, settings=settings, log=lambda line: print(line, flush=True))
"""


def test_a_process_that_is_killed_leaves_a_whole_bank_and_the_rest_is_made_up_for(saved, tmp_path, one_by_one):
    files = [tmp_path / write_task(tmp_path, f"new-{number}", 6) for number in range(12)]
    onboard_many(saved, files, output=tmp_path / "whole", settings=QUICK)
    arguments = [sys.executable, "-c", KILLED, saved, tmp_path / "run", *files]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, lines
    kept = list(cores(tmp_path / "run"))
    assert 2 < len(kept) < 14
    found = onboard_many(saved, files, output=tmp_path / "run", settings=QUICK)
    assert len(found.skipped) == len(kept) - 2
    assert len(found.done) == 14 - len(kept)
    whole, run = cores(tmp_path / "whole"), cores(tmp_path / "run")
    assert whole.keys() == run.keys()
    for name in whole:
        assert_close(whole[name], run[name], 1e-4)


def test_one_that_cannot_be_trained_is_left_out_and_told(saved, files, tmp_path):
    (tmp_path / "long").mkdir()
    long = tmp_path / "long" / "long.jsonl"
    long.write_text(json.dumps({"input": "x", "output": "y" * 300}) + "\n")
    found = onboard_many(saved, [*files, long], settings=QUICK)
    assert list(found.failed) == ["long"]
    assert "expected at most 96 tokens, found 304" in found.failed["long"]
    assert list(cores(saved)) == ["legal", "sales", *NEW]
    result = cli("onboard", saved, *files, long, "--steps", 4)
    assert result.exit_code == 1
    assert "left out" in result.output


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
    assert result.output.count("added") == 3
    assert "3 new tasks, 0 that it had, 0 left out" in " ".join(result.output.split())
    again = cli("onboard", saved, *files, "--steps", 4, "--rows", 2)
    assert "0 new tasks, 3 that it had" in " ".join(again.output.split())
    assert again.output.count("was there") == 3
    assert "works with a single task" in refusal("onboard", saved, *files, "--name", "x")
