"""A metric is a line in the table: evaluations, trials and reports then have it."""

import json
from io import StringIO
from statistics import fmean

import pytest
from pydantic import ValidationError
from rich.console import Console

from colora.errors import ColoraError
from colora.evaluation.evaluate import evaluate
from colora.evaluation.metrics import METRICS, Metric, exact_match, metric_options, rouge_l
from colora.evaluation.settings import EvaluationSettings
from colora.evaluation.table import comparison_markdown, records_table
from colora.experiments.methods.runner import Runner
from colora.experiments.report.gather import read_experiments
from colora.experiments.report.markdown import sections_markdown
from colora.experiments.report.sections import report_sections
from colora.experiments.trial import TaskScores, read_trial_records, write_trial_records
from colora.training.config import EvaluationSpec
from tests.helpers.method_trials import runner_trial, toy_tasks
from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama, tiny_tokenizer


def letters_right(prediction, references):
    """Per cent of the letters that stand where the first reference has them."""
    pairs = list(zip(prediction, references[0], strict=False))
    return 100 * sum(a == b for a, b in pairs) / max(1, len(references[0]))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(METRICS, "toy", Metric("toy", "letters right, %", letters_right, digits=2))


def shown(table):
    console = Console(width=160, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), tiny_llama(hidden=8, layers=2))


def test_a_further_metric_is_in_the_evaluation_and_its_table(toy):
    tasks = toy_tasks()
    done = evaluate(
        tiny_llama(), tiny_tokenizer(), tasks, EvaluationSettings(max_length=40, max_new_tokens=3), progress=False
    )
    values = {one.task: one.value for one in done.records if one.metric == "toy"}
    assert list(values) == ["red", "blue", "green"]
    for task in tasks:
        each = [letters_right(one.prediction, one.outputs) for one in done.predictions if one.task == task.name]
        assert values[task.name] == pytest.approx(fmean(each))
    text = shown(records_table(done.records))
    assert "toy" in text
    assert f"{values['red']:.2f}" in text
    assert "| task | rougeL | exact_match | token_nll | toy |" in comparison_markdown(done.records)


def test_a_further_metric_is_in_a_trial_its_file_and_the_report(toy, base, tmp_path):
    runner = Runner(base, device="cpu")
    records = [runner.run(runner_trial(base, method), toy_tasks()) for method in ("local", "colora")]
    file = tmp_path / "toy.jsonl"
    write_trial_records(file, records)
    assert read_trial_records(file) == records
    written = json.loads(file.read_text(encoding="utf-8").splitlines()[0])["scores"]["red"]
    assert list(written) == ["nll", "tokens", "rougeL", "exact_match", "toy"]
    assert len(written["toy"]) == 2
    mean = records[0].mean("toy")
    assert mean == pytest.approx(fmean(fmean(scores.texts["toy"]) for scores in records[0].scores.values()))
    report = sections_markdown(report_sections(read_experiments(file)))
    assert "letters right, %" in report
    assert "letters right, % − colora" in report
    (row,) = [line for line in report.splitlines() if line.startswith("| local | 1 |")]
    assert f"{mean:.2f}" in row


def test_without_it_a_record_of_it_is_refused():
    with pytest.raises(ValidationError, match="expected metrics of rougeL, exact_match, token_nll; found toy"):
        TaskScores.model_validate({"nll": [], "tokens": [], "toy": []})


def test_every_text_metric_has_as_many_values(toy):
    with pytest.raises(ValidationError, match="as many each of rougeL, exact_match, toy"):
        TaskScores(nll=[1.0], tokens=[1], rougeL=[1.0], exact_match=[0.0], toy=[])
    with pytest.raises(ValidationError, match="valid number"):
        TaskScores(nll=[1.0], tokens=[1], rougeL=[1.0], exact_match=[0.0], toy=["good"])


def test_what_the_table_says_of_the_three():
    assert [(one.name, one.title, one.digits, one.higher_is_better, one.weight) for one in METRICS.values()] == [
        ("rougeL", "ROUGE-L", 1, True, "examples"),
        ("exact_match", "exact match, %", 1, True, "examples"),
        ("token_nll", "token NLL", 3, False, "tokens"),
    ]
    assert list(METRICS) == [one.name for one in METRICS.values()]
    assert [one.score for one in METRICS.values()] == [rouge_l, exact_match, None]
    assert list(metric_options()) == ["rougeL", "exact_match", "nll"]


def test_run_files_name_the_metrics_of_the_table():
    assert EvaluationSpec().metrics == list(metric_options())
    assert EvaluationSpec(metrics=["nll"]).metrics == ["nll"]
    with pytest.raises(ValidationError, match="Input should be 'rougeL', 'exact_match' or 'nll'"):
        EvaluationSpec(metrics=["bleu"])
    with pytest.raises(ColoraError, match="expected some of rougeL, exact_match, nll, found 'token_nll'"):
        EvaluationSettings(metrics=["token_nll"])
