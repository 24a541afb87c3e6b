"""Which tasks lose in company: the paired comparison, what is said of it, and whole runs."""

import json
import math

import pytest

from colora.bank.edit import forget_tasks
from colora.bank.load import load_bank
from colora.errors import ConfigError
from colora.evaluation.nll import token_nll
from colora.evaluation.settings import EvaluationSettings
from colora.training.resolve import read_run_tasks
from colora.transfer.negative_transfer import Paired, TaskCompany, company, paired
from tests.helpers.run_files import cli, config_of, content, refusal, run_file, save_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def tasks_of(folder, val=4):
    return [{"path": write_task(folder, name, 14), "val": val, "test": 2} for name in ("red", "blue")]


# ---- planted numbers ------------------------------------------------------------------------------------------------


def test_the_difference_of_means_over_tokens_and_its_error():
    found = paired([4.0, 1.0, 6.0], [2.0, 2.0, 3.0], [2, 1, 3])
    assert (found.together, found.alone) == (pytest.approx(11 / 6), pytest.approx(7 / 6))
    assert found.difference == pytest.approx(4 / 6)
    left = [2 - 2 * 4 / 6, -1 - 4 / 6, 3 - 3 * 4 / 6]
    assert found.error == pytest.approx(math.sqrt(1.5 * sum(one**2 for one in left)) / 6)


def test_with_equal_weights_it_is_the_ordinary_standard_error():
    values = [0.5, -0.25, 1.0, 0.0]
    found = paired(values, [0.0] * 4, [1.0] * 4)
    mean = sum(values) / 4
    assert found.error == pytest.approx(math.sqrt(sum((one - mean) ** 2 for one in values) / 3 / 4))


@pytest.mark.parametrize(
    ("nll", "verdict", "sentence"),
    [
        (Paired(1.01, 0.8, 0.21, 0.05), "loses",
         "task hr loses 0.21 ± 0.05 nats a token in company (1.01; alone 0.80): train it alone"),
        (Paired(0.5, 0.8, -0.3, 0.05), "gains", "task hr gains 0.30 ± 0.05 nats a token in company (0.50; alone 0.80)"),
        (Paired(0.9, 0.8, 0.1, 0.05), "even", "task hr: no clear difference (0.90; alone 0.80)"),
        (Paired(2.0, 1.0, 1.0, None), "even",
         "task hr: no clear difference (2.00; alone 1.00, too few examples to tell)"),
        (Paired(1.0, 1.0, 0.0, 0.0), "even", "task hr: no clear difference (1.00; alone 1.00)"),
        (Paired(1.5, 1.0, 0.5, 0.0), "loses",
         "task hr loses 0.50 ± 0.00 nats a token in company (1.50; alone 1.00): train it alone"),
    ],
)  # fmt: skip
def test_what_is_said(nll, verdict, sentence):
    found = TaskCompany("hr", 12, nll)
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
    result = cli("company", file)
    assert result.exit_code == 0, result.stderr
    assert seen == ["red/0", "blue/0", "red/0", "blue/0"]
    line = next(line for line in result.stdout.splitlines() if line.startswith("task blue"))
    assert line.startswith("task blue loses 0.")
    assert line.endswith(": train it alone")


# ---- whole runs -----------------------------------------------------------------------------------------------------


def test_every_task_is_trained_alone_at_equal_cost_and_once(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path), evaluation={"limit": 3})
    found = company(config, rouge=True)
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
    written = json.loads((out / "company.json").read_text())
    assert written["split"] == "val"
    assert [one["verdict"] for one in written["tasks"]] == [one.verdict for one in found]
    before = {name: one for name, one in content(out).items() if name != "company.json"}
    assert company(config, rouge=True) == found
    assert {name: one for name, one in content(out).items() if name != "company.json"} == before


def test_the_command_takes_the_folder_of_a_run(base, tmp_path):
    assert cli("train", run_file(tmp_path, base, tasks_of(tmp_path))).exit_code == 0
    result = cli("company", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "red alone" in result.stderr
    assert all(word in result.stdout for word in ("red", "blue", "together", "alone", "difference"))
    assert (tmp_path / "out" / "alone" / "blue" / "run.yaml").is_file()


def test_help_teaches(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(cli("company", "--help").stdout.replace("│", " ").split())
    for words in ("RUN|RUN.yaml", "--rouge", "RUN/alone", "two standard errors", "Test examples are never used"):
        assert words in text


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_without_validation_examples(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path, val=0))
    with pytest.raises(ConfigError, match=r"expected validation examples .* found none for red, blue; test"):
        company(config)
    assert not (tmp_path / "out").exists()


def test_one_task_and_runs_in_groups(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path))
    with pytest.raises(ConfigError, match="found 'red' alone, which has no company"):
        company(config.model_copy(update={"tasks": config.tasks[:1]}))
    with pytest.raises(ConfigError, match="name the run of one group"):
        company(config.model_copy(update={"grouping": "auto"}))


def test_a_task_that_the_bank_has_forgotten(base, tmp_path):
    config = config_of(tmp_path, base, tasks_of(tmp_path))
    company(config)
    forget_tasks(tmp_path / "out", ["red"], False)
    with pytest.raises(ConfigError, match=r"but it has no red \(any more\)"):
        company(config)


def test_fields_are_changed_in_run_files_only(base, tmp_path):
    assert "no run file" in refusal("company", tmp_path, "training.lr=1")
