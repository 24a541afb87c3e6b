"""Record files and the tables made of them."""

import json
import os
from dataclasses import asdict

import pytest
from rich.console import Console

from colora.common import jsonl
from colora.common.provenance import environment
from colora.errors import ColoraError
from colora.evaluation.records import Record, append_records, read_records
from colora.evaluation.table import comparison_markdown, records_table


def record(**changes):
    plain = {"run": "r", "method": "CoLoRA", "task": "ca", "split": "test", "metric": "rougeL", "value": 50.0}
    return Record(**plain | {"n": 10, "seed": 0} | changes)


def test_records_round_trip_and_append(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    first, second = [record(task="català"), record(value=1)], [record(metric="token_nll", value=0.1 + 0.2)]
    append_records(path, first)
    append_records(path, second)
    assert read_records(path) == first + second
    lines = path.read_text(encoding="utf-8").splitlines()
    assert list(json.loads(lines[0])) == ["run", "method", "task", "split", "metric", "value", "n", "seed"]
    assert [entry.name for entry in path.parent.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"value": float("nan")}, "value: expected a finite number, found nan"),
        ({"value": float("inf")}, "value: expected a finite number, found inf"),
        ({"value": "7"}, "value: expected a finite number, found '7'"),
        ({"n": 0}, "n: expected a positive integer, found 0"),
        ({"seed": 1.5}, "seed: expected an integer, found 1.5"),
        ({"task": None}, "task: expected a text, found None"),
    ],
)
def test_a_record_refuses_what_it_cannot_hold(changes, fault):
    with pytest.raises(ColoraError, match=fault):
        record(**changes)


def test_faulty_lines_are_named(tmp_path):
    path = tmp_path / "records.jsonl"
    good = json.dumps(asdict(record()))
    short = {key: value for key, value in asdict(record()).items() if key != "seed"}
    nan = good.replace("50.0", "NaN")
    path.write_bytes("\n".join([good, good[:30], "", json.dumps(short), nan, "[1]"]).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ColoraError) as caught:
        read_records(path)
    faults = str(caught.value).splitlines()
    assert [fault.removeprefix(f"{path}:").split(":")[0] for fault in faults] == ["2", "4", "5", "6", "7"]
    assert 'expected a JSON object, found \'{"run"' in faults[0]
    assert "metric, value, n, seed, found run, method, task, split, metric, value, n" in faults[1]
    assert "value: expected a finite number, found nan" in faults[2]
    assert "expected a JSON object, found '[1]'" in faults[3]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_an_interrupted_append_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "records.jsonl"
    append_records(path, [record()])
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jsonl.os, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            append_records(path, [record(seed=1)])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["records.jsonl"]
    append_records(path, [record(seed=1)])
    assert [one.seed for one in read_records(path)] == [0, 1]


def test_append_follows_links_and_completes_a_last_line(tmp_path):
    path, link = tmp_path / "records.jsonl", tmp_path / "link"
    path.write_text(json.dumps(asdict(record())))  # no newline at the end
    link.symlink_to(path)
    append_records(link, [record(seed=1)])
    assert link.is_symlink()
    assert len(read_records(path)) == 2


def test_environment_is_json():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"date", "python", "torch", "transformers", "peft", "colora", "platform", "git_revision"} < set(found)
    assert found["threads"] >= 1
    assert environment("cpu")["device"] == "cpu"


def rows():
    return [
        record(method=method, task=task, metric=metric, seed=seed, value=value + seed * step)
        for method, value in (("CoLoRA", 80.0), ("local LoRA", 70.0))
        for task, step in (("ca", 2), ("pt [br]", 4))
        for metric in ("rougeL", "token_nll")
        for seed in (0, 1)
    ]


def test_markdown_means_over_seeds_and_tasks():
    assert comparison_markdown(rows()) == (
        "| task | CoLoRA rougeL | CoLoRA token_nll | local LoRA rougeL | local LoRA token_nll |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| ca | 81.0 ± 1.4 | 81.000 ± 1.414 | 71.0 ± 1.4 | 71.000 ± 1.414 |\n"
        "| pt [br] | 82.0 ± 2.8 | 82.000 ± 2.828 | 72.0 ± 2.8 | 72.000 ± 2.828 |\n"
        "| mean | 81.5 ± 2.1 | 81.500 ± 2.121 | 71.5 ± 2.1 | 71.500 ± 2.121 |\n"
    )


def test_markdown_median():
    values = [record(seed=seed, value=value) for seed, value in enumerate([1, 10, 2])]
    text = comparison_markdown(values, centre="median")
    assert "| ca | 2.0 [1.0, 10.0] |" in text
    assert "| mean | 2.0 [1.0, 10.0] |" in text


def test_a_mean_covers_only_the_tasks_that_every_column_has():
    partial = [record(value=80), record(task="hard", value=0), record(method="other", value=70)]
    text = comparison_markdown(partial)
    assert "| hard | 0.0 | – |" in text
    assert "| mean of 1 common tasks | 80.0 | 70.0 |" in text


def test_the_later_of_two_equal_records_counts():
    assert "| ca | 60.0 |" in comparison_markdown([record(value=50), record(value=60)])


def test_splits_are_not_mixed():
    mixed = [record(), record(split="dev", value=20)]
    with pytest.raises(ColoraError, match="one split, found test, dev"):
        comparison_markdown(mixed)
    assert "| ca | 20.0 |" in comparison_markdown(mixed, split="dev")
    with pytest.raises(ColoraError, match="split 'train', found test, dev"):
        comparison_markdown(mixed, split="train")
    with pytest.raises(ColoraError, match="no records"):
        comparison_markdown([])


def test_terminal_table():
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(records_table(rows(), title="[six] tasks"))
    text = console.export_text()
    for expected in ("[six] tasks", "pt [br]", "local LoRA", "token_nll", "81.0 ± 1.4", "mean"):
        assert expected in text
