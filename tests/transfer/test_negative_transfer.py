"""Which tasks suffer negative transfer: the paired comparison, what is said of it, and whole runs."""

import json
import math

import pytest

from colora.bank.edit import forget_tasks
from colora.bank.load import load_bank
from colora.errors import ConfigError
from colora.evaluation.nll import token_nll
from colora.evaluation.settings import EvaluationSettings
from colora.training.resolve import read_run_tasks
from colora.training.run_folder import run_config
from colora.transfer.negative_transfer import PairedDifference, TaskTransfer, measure_transfer, paired_difference
from tests.helpers.run_files import cli, config_of, content, refusal, run_file, save_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def tasks_of(folder, val=4):
    return [{"path": write_task(folder, name, 14), "val": val, "test": 2} for name in ("red", "blue")]


# ---- planted numbers ------------------------------------------------------------------------------------------------


def test_the_difference_of_means_over_tokens_and_its_error():
    found = paired_difference([4.0, 1.0, 6.0], [2.0, 2.0, 3.0], [2, 1, 3])
    assert (found.together, found.alone) == (pytest.approx(11 / 6), pytest.approx(7 / 6))
    assert found.difference == pytest.approx(4 / 6)
    left = [2 - 2 * 4 / 6, -1 - 4 / 6, 3 - 3 * 4 / 6]
    assert found.error == pytest.approx(math.sqrt(1.5 * sum(one**2 for one in left)) / 6)


def test_the_error_at_equal_weights_is_the_ordinary_standard_error():
    values = [0.5, -0.25, 1.0, 0.0]
    found = paired_difference(values, [0.0] * 4, [1.0] * 4)
    mean = sum(values) / 4
    assert found.error == pytest.approx(math.sqrt(sum((one - mean) ** 2 for one in values) / 3 / 4))


@pytest.mark.parametrize(
    ("nll", "verdict", "sentence"),
    [
        (
            PairedDifference(1.01, 0.8, 0.21, 0.05),
            "loses",
            "task hr loses 0.21 ± 0.05 nats per token in the common bank (1.01; alone 0.80): train it alone",
        ),
        (
            PairedDifference(0.5, 0.8, -0.3, 0.05),
            "gains",
            "task hr gains 0.30 ± 0.05 nats per token in the common bank (0.50; alone 0.80)",
        ),
        (PairedDifference(0.9, 0.8, 0.1, 0.05), "even", "task hr: no clear difference (0.90; alone 0.80)"),
        (
            PairedDifference(2.0, 1.0, 1.0, None),
            "even",
            "task hr: no clear difference (2.00; alone 1.00, too few examples to tell)",
        ),
        (PairedDifference(1.0, 1.0, 0.0, 0.0), "even", "task hr: no clear difference (1.00; alone 1.00)"),
        (
            PairedDifference(1.5, 1.0, 0.5, 0.0),
            "loses",
            "task hr loses 0.50 ± 0.00 nats per token in the common bank (1.50; alone 1.00): train it alone",
        ),
    ],
)
def test_verdict_and_sentence_of_a_comparison(nll, verdict, sentence):
    found = TaskTransfer("hr", 12, nll)
    assert (found.verdict, found.sentence()) == (verdict, sentence)


def test_a_task_that_loses_is_named(base, tmp_path, monkeypatch):
    """Nats of blue are raised by half in the bank, as if red had harmed it."""
    real, seen = token_nll, []

    def planted(model, tokenizer, rows, *args):
        found = real(model, tokenizer, rows, *args)
        seen.append(rows[0].name)
        if seen == ["red/0", "blue/0"]:
            found = {name: type(one)(one.sum + 0.5 * one.tokens, one.tokens) for name, one in found.items()}
        return found

    monkeypatch.setattr("colora.transfer.negative_transfer.token_nll", planted)
    file = run_file(tmp_path, base, tasks_of(tmp_path))
    result = cli("transfer", file)
    assert result.exit_code == 0, result.stderr
    assert seen == ["red/0", "blue/0", "red/0", "blue/0"]
    line = next(line for line in result.stdout.splitlines() if line.startswith("task blue"))
    assert line.startswith("task blue loses 0.")
    assert line.endswith(": train it alone")


# ---- whole runs -----------------------------------------------------------------------------------------------------


def test_every_task_is_trained_alone_at_equal_cost_and_once(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path), evaluation={"limit": 3})
    found = measure_transfer(config, rouge=True)
    assert [(one.task, one.examples) for one in found] == [("red", 3), ("blue", 3)]
    out = tmp_path / "out"
    settings = EvaluationSettings(split="val", max_length=96, limit=3)
    for place, one in enumerate(found):
        assert one.nll.difference == pytest.approx(one.nll.together - one.nll.alone)
        assert one.rouge is not None
        assert 0 <= one.rouge.together <= 100
        whole, alone = load_bank(out), load_bank(out / "alone" / one.task)
        assert alone[2].seen == {one.task: whole[2].seen[one.task]}
        (task,) = (task for task in read_run_tasks(config) if task.name == one.task)
        for (model, tokenizer, _), index, value in ((whole, place, one.nll.together), (alone, 0, one.nll.alone)):
            exact = token_nll(model, tokenizer, [task], settings, {one.task: index})[one.task].mean
            assert value == pytest.approx(exact, abs=1e-5)
    written = json.loads((out / "transfer.json").read_text())
    assert written["split"] == "val"
    assert [one["verdict"] for one in written["tasks"]] == [one.verdict for one in found]
    (out / "transfer.json").rename(out / "company.json")  # the name that older releases gave it
    before = content(out)
    assert measure_transfer(config, rouge=True) == found
    assert {name: one for name, one in content(out).items() if name != "transfer.json"} == before


def test_a_task_alone_has_the_splits_that_it_has_in_the_run(base, tmp_path):
    for number, name in enumerate(("red", "blue")):
        rows = [{"input": f"text {text}", "output": name} for text in range(7 * number, 7 * number + 20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tasks = [{"path": f"{name}.jsonl", "val": 4} for name in ("red", "blue")]
    note = "val inputs are training inputs of other tasks"
    for shared in (False, True):
        out = tmp_path / str(shared)
        config = config_of(tmp_path, base, tasks, training={"steps": 1}, shared_splits=shared, output=str(out))
        lines = []
        measure_transfer(config, log=lines.append)
        assert any(note in line for line in lines) != shared
        for task in read_run_tasks(config):
            assert read_run_tasks(run_config(out / "alone" / task.name))[0].splits == task.splits


def test_the_command_takes_the_folder_of_a_run(base, tmp_path):
    assert cli("train", run_file(tmp_path, base, tasks_of(tmp_path))).exit_code == 0
    result = cli("transfer", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "red alone" in result.stderr
    assert all(word in result.stdout for word in ("red", "blue", "together", "alone", "difference"))
    assert (tmp_path / "out" / "alone" / "blue" / "run.yaml").is_file()


def test_help_explains_the_command(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(cli("transfer", "--help").stdout.replace("│", " ").split())
    for words in ("RUN|RUN.yaml", "--rouge", "RUN/alone", "two standard errors", "Test examples are never used"):
        assert words in text


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_tasks_without_validation_examples_are_refused(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path, val=0))
    with pytest.raises(ConfigError, match=r"expected validation examples .* found none for red, blue; test"):
        measure_transfer(config)
    assert not (tmp_path / "out").exists()


def test_one_task_and_runs_in_groups_are_refused(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path))
    with pytest.raises(ConfigError, match="found only 'red': transfer is between tasks"):
        measure_transfer(config.model_copy(update={"tasks": config.tasks[:1]}))
    with pytest.raises(ConfigError, match="name the run of one group"):
        measure_transfer(config.model_copy(update={"grouping": "auto"}))


def test_a_task_that_the_bank_has_forgotten_is_refused(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path))
    measure_transfer(config)
    forget_tasks(tmp_path / "out", ["red"], False)
    with pytest.raises(ConfigError, match=r"but it has no red \(any more\)"):
        measure_transfer(config)


@pytest.mark.parametrize("arguments", [(), ("out",), ("run.yaml", "training.lr=1", "--rouge"), ("--help",)])
def test_the_former_name_of_the_command_names_the_new_one(arguments):
    assert refusal("company", *arguments) == "error: colora company is colora transfer now\n"
    assert "company" not in cli("--help").stdout


def test_fields_are_changed_in_run_files_only(base, tmp_path):
    assert "not a run file" in refusal("transfer", tmp_path, "training.lr=1")
