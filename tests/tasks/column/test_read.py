"""Tasks that a column names: the same as in files of their own, and every fault with its line."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest

from colora.errors import TaskFileError
from colora.tasks.column import build, tables
from colora.tasks.column.examples import hashed_name
from colora.tasks.column.read import read_column_tasks
from colora.tasks.column.source import TasksSource
from colora.tasks.read import read_tasks
from colora.tasks.schema import SPLITS, TaskSource
from colora.tasks.splits.shared import seen_elsewhere, seen_note
from tests.helpers.column_files import shuffled_rows, write_apart, write_rows

ROWS = shuffled_rows(tasks=20, most=24, inputs=40)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "AT_ONCE", 16)  # so that a file is read in many parts
    monkeypatch.setattr(build, "ROWS_AT_ONCE", 50)


def read(path, **options):
    return read_column_tasks(TasksSource(task="user_id", path=str(path), **options), seed=3)


def faults_of(path, **options):
    with pytest.raises(TaskFileError) as caught:
        read(path, **options)
    return caught.value.faults


def write_table(folder: Path, kind: str) -> Path:
    """The rows in a file of this kind."""
    path = folder / f"all.{kind}"
    columns = list(ROWS[0])
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=30)
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in ("csv", "tsv"):
        sign = "," if kind == "csv" else "\t"
        lines = [sign.join(str(row[name]) for name in columns) for row in ROWS]
        path.write_text("\n".join([sign.join(columns), *lines]) + "\n")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    else:
        write_rows(path, ROWS)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "parquet", "json", "saved"])
@pytest.mark.parametrize("options", [{}, {"test": 0, "val": 0}, {"group_by": "doc"}], ids=str)
def test_tasks_are_those_of_files_of_their_own(tmp_path, kind, options):
    names = write_apart(tmp_path, ROWS)
    if kind == "saved":
        path = tmp_path / "saved"
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    else:
        path = write_table(tmp_path, kind)
    expected = read_tasks([TaskSource(path=str(tmp_path / f"{name}.jsonl"), **options) for name in names], seed=3)
    found = read(path, **options)
    assert list(found.names) == names
    assert [replace(one, source="") for one in found] == [replace(one, source="") for one in expected]
    for split in SPLITS:
        flat = [(number, example) for number, task in enumerate(expected) for example in task.splits[split]]
        assert [found.example(split, index) for index in range(len(flat))] == flat
        assert found.sizes(split).tolist() == [len(task.splits[split]) for task in expected]
    for measured in ("test", "val"):
        assert found.summary["seen"][measured] == sum(seen_elsewhere(expected, measured).values())
        assert bool(found.seen_note(measured)) == bool(seen_note(expected, measured))


def test_given_splits_are_used_as_they_are_given(tmp_path):
    (tmp_path / "all").mkdir()
    for number, split in enumerate(("train", "dev", "test")):
        write_rows(tmp_path / "all" / f"{split}.jsonl", ROWS[number::3])
    names = list(dict.fromkeys(row["user_id"] for row in ROWS[0::3]))
    for name in names:
        (tmp_path / name).mkdir()
        for number, split in enumerate(("train", "dev", "test")):
            own = [row for row in ROWS[number::3] if row["user_id"] == name]
            write_rows(tmp_path / name / f"{split}.jsonl", own)
    found = read(tmp_path / "all")
    one = next(name for name in names if all(file.read_text() for file in (tmp_path / name).iterdir()))
    (expected,) = read_tasks([TaskSource(path=str(tmp_path / one))], seed=3)
    assert replace(found[list(found.names).index(one)], source="") == replace(expected, source="")


def test_a_table_is_read_once_and_again_when_it_or_the_way_to_read_it_has_changed(tmp_path, monkeypatch):
    path, built = write_table(tmp_path, "jsonl"), []
    import colora.tasks.column.read as module

    make = module.build
    monkeypatch.setattr(module, "build", lambda *given: built.append(1) or make(*given))
    for options in ({}, {}, {"test": 2}, {"names": "hashed"}, {}):
        read(path, **options)
    assert len(built) == 3
    read_column_tasks(TasksSource(task="user_id", path=str(path)), seed=4)
    write_rows(path, ROWS[1:])
    read(path)
    assert len(built) == 5


def test_tasks_with_few_examples_are_divided_by_shares_and_counts_are_the_most(tmp_path):
    rows = [
        {"user_id": name, "input": f"{name} {n}", "output": "y"}
        for name, size in (("one", 1), ("four", 4), ("ten", 10), ("many", 60))
        for n in range(size)
    ]
    found = read(write_rows(tmp_path / "all.jsonl", rows), train=20, val=5, test=9)
    sizes = {split: found.sizes(split).tolist() for split in SPLITS}
    assert sizes == {"train": [1, 4, 7, 20], "val": [0, 0, 1, 5], "test": [0, 0, 2, 9]}


def test_tasks_that_have_nothing_to_train_on_are_left_out_and_told(tmp_path):
    (tmp_path / "all").mkdir()
    write_rows(tmp_path / "all" / "train.jsonl", [{"user_id": u, "input": f"{u} q", "output": "y"} for u in "ab"])
    tested = [{"user_id": u, "input": f"{u} q", "output": "y"} for u in "bc"]
    write_rows(tmp_path / "all" / "test.jsonl", tested)
    found = read(tmp_path / "all")
    assert list(found.names) == ["a"]
    assert "2 tasks have no training examples and are left out: b, c" in found.notes()[0]
    write_rows(tmp_path / "all" / "train.jsonl", [{"user_id": "b", "input": "b q", "output": "y"}])
    (fault,) = faults_of(tmp_path / "all")
    assert "expected a task with training examples, found none" in fault


def test_numbers_and_texts_in_other_composition_are_one_task(tmp_path):
    values = [7, "7", " 7 ", "Zoe\u0308", "Zoë"]
    rows = [{"user_id": value, "input": f"q {n}", "output": "y"} for n, value in enumerate(values)]
    assert list(read(write_rows(tmp_path / "all.jsonl", rows)).names) == ["7", "Zoë"]


def with_row(tmp_path, number, **change):
    rows = [row | change if place == number else row for place, row in enumerate(ROWS)]
    return write_rows(tmp_path / "all.jsonl", rows)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"user_id": "anna@example.org"},
            'expected in "user_id" a task name of.*found "anna@example.org"; names: hashed',
        ),
        ({"user_id": None}, r'expected a text or a whole number in "user_id" \(tasks_from.task\), found null'),
        ({"user_id": ["a"]}, "found a list of 1"),
        ({"input": ""}, 'expected text .* in "input", found empty text'),
        ({"output": 3}, 'expected text or a list of texts in "output", found the number 3'),
        ({"output": "a\0b"}, "found the character NUL"),
    ],
)
def test_a_fault_of_a_row_is_told_with_its_line(tmp_path, change, told):
    import re

    (fault,) = faults_of(with_row(tmp_path, 99, **change))
    assert fault.startswith(f"{tmp_path / 'all.jsonl'}:100: ")
    assert re.search(told, fault), fault


def test_all_faults_are_told_at_once_and_nothing_is_kept(tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    lines[4], lines[40], lines[77] = "{", '{"user_id": "x"}', "[1]"
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n")
    faults = faults_of(tmp_path / "all.jsonl")
    assert [fault.split(":")[1] for fault in faults] == ["5", "41", "41", "78"]
    assert not list((tmp_path / "cache" / "tasks").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("all.csv", "user_id,input,output\na,b,c\na,b\n", "all.csv:3: expected 3 columns, found 2"),
        ("all.csv", 'user_id,input,output\na,b,"c\n', "all.csv:2: expected CSV, found"),
        ("all.jsonl", b'{"user_id": "a", "input": "b", "output": "c"}\n\xff\n', "all.jsonl:2: expected UTF-8 text"),
        ("all.jsonl", "", "expected at least one example, found none"),
        ("all.jsonl.gz", b"no gzip", "expected gzip data"),
        ("all.parquet", b"PAR1", "expected a parquet file"),
        ("all.txt", "x", "expected a file ending in"),
        ("all.jsonl", '{"user": "a", "input": "b", "output": "c"}\n', 'found "user", "input", "output"'),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert told in faults_of(tmp_path / name)[0]


def test_a_file_that_is_not_there_is_told(tmp_path):
    assert "expected a file or a folder, found none" in faults_of(tmp_path / "all.jsonl")[0]


def test_names_that_differ_in_case_alone_are_refused_with_a_way_out(tmp_path):
    rows = [{"user_id": name, "input": f"q {name}", "output": "y"} for name in ("aB3", "ab3", "c")]
    path = write_rows(tmp_path / "all.jsonl", rows)
    (fault,) = faults_of(path)
    assert '"aB3" and "ab3"; names: hashed in tasks_from takes both' in fault
    assert list(read(path, names="hashed").names) == [hashed_name(name) for name in ("aB3", "ab3", "c")]


def test_a_value_of_group_by_in_two_given_splits_is_a_fault(tmp_path):
    (tmp_path / "all").mkdir()
    for split in ("train", "test"):
        row = {"user_id": "a", "input": f"q {split}", "output": "y", "doc": "one"}
        write_rows(tmp_path / "all" / f"{split}.jsonl", [row])
    (fault,) = faults_of(tmp_path / "all", group_by="doc")
    assert 'expected the doc "one" of task "a" in one split' in fault


def test_what_stays_in_memory_is_bytes_a_task(tmp_path):
    """Counted in what Python and numpy allocate: no object stays for a task."""
    import tracemalloc

    rows = [{"user_id": f"user-{n}", "input": "q", "output": "y"} for n in range(6000)]
    path = write_rows(tmp_path / "all.jsonl", rows)
    read(path, val=0, test=0)
    tracemalloc.start()
    try:
        found = read(path, val=0, test=0)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 6000
    assert kept < 6000 * 40
