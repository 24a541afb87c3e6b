"""What a trial is called, what its scores come to, and files of records with faults."""

import json

import pytest
from pydantic import ValidationError

from colora.errors import ColoraError
from colora.evaluation.choices import ChoiceScores, rank_correlation
from colora.experiments.trial import TaskScores, Trial, TrialRecord, read_trial_records, write_trial_records

SETTINGS = {
    "method": "colora", "group": "mine", "tasks": ("a", "b"), "regime": "implicit", "examples": 4, "seed": 3,
    "base": "tiny", "steps": 5, "lr": 1e-3,
}  # fmt: skip


def test_the_key_is_readable_and_changes_with_every_setting():
    trial = Trial(**SETTINGS)
    assert trial.key.startswith("colora-mine-implicit-k2-n4-r8-seed3-")
    assert trial.key == Trial(**SETTINGS).key
    changed = {
        "method": "local", "group": "other", "tasks": ("b", "a"), "regime": "explicit", "examples": 5, "seed": 4,
        "base": "big", "dtype": "bf16", "first_layer": 1, "rank": 4, "alpha": 4.0, "steps": 6, "rows": 1,
        "warmup_steps": 1, "local_steps": 5, "lr": 2e-3, "core_lr": 2e-3, "weight_decay": 10.0,
        "options": {"pull": 1.0}, "split": "val", "test": 3, "generate": 0, "max_length": 32,
        "max_new_tokens": 8, "prompt": "qa",
    }  # fmt: skip
    assert set(changed) == set(Trial.model_fields)
    keys = {Trial(**SETTINGS | {name: value}).key for name, value in changed.items()}
    assert len(keys | {trial.key}) == len(changed) + 1


def test_a_trial_does_not_change_and_knows_no_other_field():
    with pytest.raises(ValidationError):
        Trial(**SETTINGS).seed = 4
    with pytest.raises(ValidationError, match="experiment"):
        Trial(**SETTINGS, experiment="similarity")


def test_scores_are_means_over_examples_and_nats_per_token():
    scores = TaskScores(nll=[2.0, 4.0], tokens=[1, 5], rougeL=[50.0, 100.0, 0.0], exact_match=[0.0, 100.0, 0.0])
    assert scores.value("token_nll") == 1.0
    assert scores.value("rougeL") == 50.0
    assert scores.value("exact_match") == pytest.approx(100 / 3)
    assert TaskScores(nll=[1.0], tokens=[1]).value("rougeL") is None
    with pytest.raises(ValidationError, match="as many nll as tokens"):
        TaskScores(nll=[1.0], tokens=[])


def test_the_mean_over_tasks_needs_every_task():
    whole = TaskScores(nll=[1.0], tokens=[1], rougeL=[10.0], exact_match=[0.0])
    other = TaskScores(nll=[3.0], tokens=[1], rougeL=[30.0], exact_match=[0.0])
    record = TrialRecord(trial=Trial(**SETTINGS), scores={"a": whole, "b": other})
    assert record.mean("rougeL") == 20.0
    assert record.mean("token_nll") == 2.0
    partial = TrialRecord(trial=Trial(**SETTINGS), scores={"a": whole, "b": TaskScores(nll=[3.0], tokens=[1])})
    assert partial.mean("rougeL") is None
    assert TrialRecord(trial=Trial(**SETTINGS)).mean("token_nll") is None


def test_measures_of_choices_are_means_over_the_tasks_that_have_choices():
    """And the rank correlation is one over all examples of these."""
    free = TaskScores(nll=[1.0], tokens=[1])
    one = ChoiceScores(names=["1", "2"], right=[0, 1], nats=[[0.1, 2.4], [2.4, 0.1]])
    two = ChoiceScores(names=["1", "2"], right=[1], nats=[[0.2, 1.8]])
    chosen = {"a": TaskScores(nll=[1.0], tokens=[1], choices=one), "b": TaskScores(nll=[1.0], tokens=[1], choices=two)}
    record = TrialRecord(trial=Trial(**SETTINGS), scores=chosen | {"c": free})
    assert record.mean("accuracy") == 50.0
    assert record.mean("choice_nats") == pytest.approx((one.value("choice_nats") + two.value("choice_nats")) / 2)
    assert record.mean("rank_correlation") == pytest.approx(rank_correlation([one, two]))
    assert free.value("accuracy") is None
    assert TrialRecord(trial=Trial(**SETTINGS), scores={"a": free}).mean("rank_correlation") is None


def test_records_from_before_there_were_choices_are_read():
    assert (
        TaskScores.model_validate({"nll": [1.0], "tokens": [2], "rougeL": [3.0], "exact_match": [0.0]}).choices is None
    )


def test_records_survive_a_file_and_faults_are_told_by_line(tmp_path):
    file = tmp_path / "records.jsonl"
    records = [
        TrialRecord(
            trial=Trial(**SETTINGS), losses=[(0, 1.5)], similarity=[[1.0, 0.5], [0.5, 1.0]], bytes_up=7, rounds=1
        ),
        TrialRecord(trial=Trial(**SETTINGS | {"seed": 4}), error="ValueError: no"),
    ]
    write_trial_records(file, records)
    assert read_trial_records(file) == records
    lines = file.read_text(encoding="utf-8").splitlines()
    broken = json.loads(lines[0])
    broken["cell"]["steps"] = 0
    file.write_text("\n".join([lines[0], "", json.dumps(broken), "{", lines[1]]), encoding="utf-8")
    with pytest.raises(ColoraError) as told:
        read_trial_records(file)
    first, second = str(told.value).splitlines()
    assert first.startswith(f"{file}:3: cell.steps: ")
    assert second.startswith(f"{file}:4: ")
