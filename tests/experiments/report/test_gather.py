"""Records to experiments, places and rows: what is put side by side, how it is labelled, and what is refused."""

import pytest

from colora.errors import ColoraError
from colora.experiments.report.gather import Experiment, Place, read_experiments, reference_row
from colora.experiments.trial import write_trial_records
from tests.helpers.trial_records import record


def labels(records, **place):
    experiment = Experiment.of("x", records)
    (rows,) = [r for p, r in experiment.places.items() if all(getattr(p, k) == v for k, v in place.items())]
    return [row.label for row in rows]


def test_places_tell_regimes_examples_and_tasks_apart():
    records = [record(regime="explicit"), record(), record(examples=8), record(tasks=("red",)), record("local")]
    experiment = Experiment.of("x", records)
    assert list(experiment.places) == [
        Place("dates", "implicit", 16, 1),
        Place("dates", "implicit", 8, 3),
        Place("dates", "implicit", 16, 3),
        Place("dates", "explicit", 16, 3),
    ]
    assert [row.label for row in experiment.places[Place("dates", "implicit", 16, 3)]] == ["local", "colora"]
    assert next(iter(experiment.places)).title == "dates · implicit · 16 examples a task · 1 task"


def test_what_is_measured_on_tells_places_apart():
    experiment = Experiment.of("x", [record(split="val"), record(split="test"), record(base="other")])
    assert [place.rest for place in experiment.places] == [
        ("base=other", "split=test"), ("base=tiny", "split=test"), ("base=tiny", "split=val"),
    ]  # fmt: skip


def test_seeds_make_one_row_and_settings_make_several():
    records = [record(seed=seed, core_lr=rate, lr=2e-3) for seed in (0, 1) for rate in (0.06, 0.02, 0.2)]
    found = labels([*records, record("local", lr=1e-3)])
    assert found == ["local", "colora, core_lr=0.02", "colora, core_lr=0.06", "colora, core_lr=0.2"]
    assert labels([record(core_lr=None), record(core_lr=0.1)]) == ["colora, core_lr=as lr", "colora, core_lr=0.1"]


def test_options_that_differ_are_in_the_label():
    assert labels([record(options={"penalty": 0.5}), record()]) == ["colora, penalty=none", "colora, penalty=0.5"]


def test_a_setting_that_follows_the_place_is_in_no_label():
    records = [record(examples=n, steps=10 * n, seed=seed) for n in (8, 16) for seed in (0, 1)]
    assert labels(records, examples=8) == labels(records, examples=16) == ["colora"]


def test_a_label_tells_apart_within_a_group_only():
    records = [record(rank=2, group="a"), record(rank=4, group="a"), record(group="b")]
    assert labels(records, group="a") == ["colora, rank=2", "colora, rank=4"]
    assert labels(records, group="b") == ["colora"]


def test_known_methods_come_in_order_and_unknown_ones_last():
    names = ["zebra", "fedit", "colora-mean", "colora", "pooled", "local-matched", "local", "base"]
    assert labels([record(name) for name in names]) == [*reversed(names[1:]), "zebra"]


def test_the_last_record_of_a_trial_counts_and_failed_ones_are_apart():
    experiment = Experiment.of("x", [record(error="died"), record(quality=70), record("local", error="NaN")])
    assert [(one.trial.method, one.error) for one in experiment.failed] == [("local", "NaN")]
    assert [one.mean("rougeL") for one in experiment.records] == pytest.approx([70])
    assert experiment.repeated == 1


def test_the_reference_is_the_best_colora():
    def reference(*records):
        (rows,) = Experiment.of("x", records).places.values()
        found = reference_row(rows)
        return found and found.label

    assert reference(record("local"), record("fed-colora"), record("colora")) == "colora"
    assert reference(record("local"), record("fed-colora")) == "fed-colora"
    assert reference(record("local"), record("colora-mean")) is None
    assert reference(record(quality=40, rank=2), record(quality=60, rank=4), record(rank=8)) == "colora, rank=4"


# ---- reading -----------------------------------------------------------------------------------------------------


def test_a_folder_gives_an_experiment_a_file(tmp_path):
    write_trial_records(tmp_path / "two.jsonl", [record(), record("local")])
    write_trial_records(tmp_path / "one.jsonl", [record()])
    (tmp_path / "notes.txt").write_text("not a record")
    found = read_experiments(tmp_path)
    assert [(one.name, len(one.records)) for one in found] == [("one", 1), ("two", 2)]


def test_mixed_codes_within_an_experiment_are_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    write_trial_records(file, [record(), record("local", code="beef"), record("pooled", code="beef")])
    with pytest.raises(ColoraError, match=r"a.jsonl.*beef \(2 trials\), c0de \(1 trial\).*--mixed"):
        read_experiments(file)
    (found,) = read_experiments(file, mixed=True)
    assert found.codes == {"beef": 2, "c0de": 1}


def test_experiments_of_different_codes_may_stand_on_one_page(tmp_path):
    write_trial_records(tmp_path / "a.jsonl", [record()])
    write_trial_records(tmp_path / "b.jsonl", [record(code="beef")])
    assert [one.codes for one in read_experiments(tmp_path)] == [{"c0de": 1}, {"beef": 1}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "x.jsonl: expected a JSONL file of trial records or a folder of them, found neither"),
        ("", "x.jsonl: expected a trial record on each line, found an empty file"),
        ("\n\n", "found an empty file"),
        ("hello\n", r"x.jsonl: expected a trial record on each line, found\n.*x.jsonl:1: .*JSON"),
        ('{"run": 1}\n' * 9, r"(?s)x.jsonl:3: .*\.\.\. and 6 more"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "x.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ColoraError, match=message):
        read_experiments(file)


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(ColoraError, match="expected JSONL files of trial records in this folder, found none"):
        read_experiments(tmp_path)
