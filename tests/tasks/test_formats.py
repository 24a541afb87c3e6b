"""Every form a task file may have, and what lies just outside of each: read right, or one clear fault."""

import csv
import gzip
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colora.tasks.schema import Example, TaskSource
from tests.helpers.task_files import everything, faults_of, read, rows, write

CELL = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
NASTY = [
    Example('a "quoted", one', ("b\tc",)),
    Example("two\nlines", ("x",), "Do it."),
    Example("é\u2028ü 🟥", ("  kept  ", "other"), "Do."),
    Example("\ufeffinside\r\nout", ("'",)),
]


def contents():
    """The same examples in every form that can hold lists and missing instructions; CSV gets the first outputs."""
    lines = [
        {"input": e.input, "output": list(e.outputs)} | ({"instruction": e.instruction} if e.instruction else {})
        for e in NASTY
    ]
    flat = [[e.input, e.outputs[0], e.instruction or ""] for e in NASTY]
    jsonl = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def table(separator):
        from io import StringIO

        out = StringIO(newline="")
        writer = csv.writer(out, delimiter=separator)
        writer.writerows([["input", "output", "instruction"], *flat])
        return out.getvalue()

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([line | {"instruction": line.get("instruction")} for line in lines]), sink)
    return {
        "jsonl": jsonl.encode(), "ndjson": jsonl.encode(), "json": json.dumps(lines).encode(),
        "csv": table(",").encode(), "tsv": table("\t").encode(), "parquet": sink.getvalue().to_pybytes(),
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_all_forms_give_the_same_examples_packed_or_not_in_any_case(tmp_path, suffix):
    content = contents()[suffix]
    expected = set(NASTY)
    if suffix in ("csv", "tsv"):
        expected = {Example(e.input, e.outputs[:1], e.instruction) for e in NASTY}
    for name, packed in ((suffix, content), (f"{suffix}.gz", gzip.compress(content)), (suffix.upper(), content),
                         (f"{suffix.upper()}.GZ", gzip.compress(content))):  # fmt: skip
        path = write(tmp_path / f"red.v1.{name}", packed)
        task = read(path)
        assert task.name == "red.v1"
        assert everything(task) == expected


def test_a_folder_may_mix_them(tmp_path):
    write(tmp_path / "train.jsonl.gz", gzip.compress(json.dumps(rows(1)[0]).encode()))
    write(tmp_path / "validation.tsv", "input\toutput\na\tb\n")
    write(tmp_path / "test.parquet", contents()["parquet"])
    assert {split: len(found) for split, found in read(str(tmp_path)).splits.items()} == {
        "train": 1, "val": 1, "test": 4,
    }  # fmt: skip
    write(tmp_path / "train.csv.gz", b"")
    assert (
        'expected one train file, found "train.csv.gz", "train.jsonl.gz"'
        in faults_of(TaskSource(path=str(tmp_path)))[0]
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(
        st.tuples(CELL, CELL),
        min_size=1, max_size=5, unique_by=lambda pair: pair[0],
    ),
    separator=st.sampled_from(",\t"),
)  # fmt: skip
def test_whatever_the_csv_module_writes_is_read_back(tmp_path, pairs, separator):
    path = tmp_path / ("t.csv" if separator == "," else "t.tsv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["input", "output"], *pairs])
    assert read(str(path), val=0, test=0).splits["train"] == tuple(Example(a, (b,)) for a, b in pairs)


# Cells and numbers of any size


def test_a_cell_may_be_of_any_size_and_the_process_keeps_its_limit(tmp_path):
    before = csv.field_size_limit()
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        text = f"input{separator}output\n" + "".join(f'"{"x" * 200_000}{n}"{separator}b\n' for n in range(3))
        task = read(write(tmp_path / f"t.{suffix}", text), val=0, test=0)
        assert [len(e.input) for e in task.splits["train"]] == [200_001] * 3
    assert csv.field_size_limit() == before


def test_files_read_in_several_threads_do_not_take_the_limit_from_each_other(tmp_path):
    path = write(tmp_path / "t.csv", "input,output\n" + "".join(f"{'x' * 200_000}{n},b\n" for n in range(8)))
    small = write(tmp_path / "s.csv", "input,output\na,b\n")
    failed = []

    def run(name):
        try:
            for _ in range(8):
                read(name, val=0, test=0)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in (path, small) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert csv.field_size_limit() == 131_072


CASES = {
    "NaN": (
        "t.jsonl",
        '{"input": "a", "output": NaN}',
        ':1: expected text or a list of texts in "output", found the number nan',
    ),
    "escaped NUL": (
        "t.jsonl",
        '{"input": "a\\u0000", "output": "b"}',
        ':1: expected Unicode text in "input", found the character NUL',
    ),
    "NUL in CSV": ("t.csv", "input,output\na,b\0\n", ':2: expected Unicode text in "output", found the character NUL'),
    "raw NUL": (
        "t.jsonl",
        '{"input": "a\0", "output": "b"}',
        ":1: expected a JSON object, found bad JSON: Invalid control",
    ),
    "UTF-16": (
        "t.jsonl",
        '{"input": "a"}'.encode("utf-16"),
        ":1: expected UTF-8 text, found the byte 0xff at byte offset 0: UTF-16 text; save it as UTF-8",
    ),
    "UTF-16 without mark": (
        "t.csv",
        "input,output\na,b\n".encode("utf-16-le"),
        ":1: expected UTF-8 text, found NUL characters",
    ),
    "gzip without suffix": (
        "t.jsonl",
        gzip.compress(b"{}"),
        ":1: expected UTF-8 text, found the byte 0x8b at byte offset 1: gzip data; name the file with .gz",
    ),
    "a spreadsheet": (
        "t.csv",
        b"PK\x03\x04\xff",
        ":1: expected UTF-8 text, found the byte 0xff at byte offset 4: a zip archive",
    ),
    "no gzip": ("t.jsonl.gz", b'{"input": 1}', ": expected gzip data, found Not a gzipped file"),
    "half a gzip": ("t.jsonl.gz", gzip.compress(b"x" * 999)[:20], ": expected gzip data, found"),
    "broken gzip": ("t.csv.gz", b"\x1f\x8b\x08\x00" + b"\xff" * 40, ": expected gzip data, found"),
    "no parquet": ("t.parquet", b"PAR1", ": expected a parquet file, found"),
    "text as parquet": ("t.parquet", b'{"input": "a"}' * 9, ": expected a parquet file, found"),
    "over several lines": (
        "t.jsonl",
        '{\n "input": "a",\n "output": "b"\n}\n',
        ":1: expected a JSON object a line, found one over several lines",
    ),
    "a list over lines": (
        "t.jsonl",
        '[\n{"input": "a", "output": "b"}\n]\n',
        ":1: expected a JSON object a line, found one over several lines",
    ),
    "a list in a line": (
        "t.jsonl",
        '[{"input": "a", "output": "b"}]',
        ":1: expected a JSON object, found a list of 1; write each example on a line",
    ),
    "lines in JSON": (
        "t.json",
        '{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n',
        ":2: expected JSON, found Extra data at column 1; is it JSON Lines",
    ),
    "semicolons": (
        "t.csv",
        "input;output\na;b\n",
        ':1: expected columns separated by commas, found "input;output" with semicolons; save it with commas',
    ),
    "tabs": ("t.csv", "input\toutput\na\tb\n", ":1: expected columns separated by commas, found"),
    "commas": (
        "t.tsv",
        "input,output\na,b\n",
        ':1: expected columns separated by tabs, found "input,output" with commas',
    ),
    "two headers": (
        "t.csv",
        "input,output\na,b\n\ufeffinput,output\nc,d\n",
        ":3: expected a row, found the header again",
    ),
    "TSV column": (
        "t.tsv",
        "text\toutput\na\tb\n",
        ':1: expected a field "input" for the input, found "text", "output"',
    ),
    "TSV quote": ("t.tsv", 'input\toutput\n"a" b\tc\n', ":2: expected TSV, found"),
    "TSV in gzip": ("t.tsv.gz", gzip.compress(b"text\toutput\na\tb\n"), ':1: expected a field "input" for the input'),
}


@pytest.mark.parametrize("case", CASES)
def test_what_lies_just_outside_is_one_clear_fault(tmp_path, case):
    name, content, expected = CASES[case]
    path = write(tmp_path / name, content)
    (fault,) = faults_of(TaskSource(path=path))
    assert fault.startswith(path + expected), fault


def test_odd_but_right_files_are_read(tmp_path):
    lines = "".join(f'{{"input": "a{n}", "output": "b"}}\n' for n in range(4))
    expected = {Example(f"a{n}", ("b",)) for n in range(4)}
    for name, content in {
        "cr.jsonl": lines.replace("\n", "\r"), "crlf.jsonl": lines.replace("\n", "\r\n"),
        "bom.ndjson": "\ufeff" + lines,
        "blank.jsonl": "\n" + lines.replace("\n", "\n\n \n"),
        "index.csv": ",input,output\n" + "".join(f"{n},a{n},b\n" for n in range(4)),
        "empty.csv": "input,output,,\n" + "".join(f"a{n},b,,\n" for n in range(4)),
        "cr.csv": "input,output\r" + "".join(f"a{n},b\r" for n in range(4)),
        "extra.jsonl": lines.replace('"b"', '"b", "score": NaN, "deep": {"x": [1]}'),
    }.items():  # fmt: skip
        assert everything(read(write(tmp_path / name, content))) == expected, name


# Names of columns


def test_dotted_names_go_down_into_objects_and_lists(tmp_path):
    lines = [
        {"q": {"text": f"a{n}"}, "answers": {"text": [f"b{n}", "c"]}, "meta": {"who": [{"id": n // 2}]}}
        for n in range(8)
    ]
    fields = {"input": "q.text", "output": "answers.text"}
    expected = {Example(f"a{n}", (f"b{n}", "c")) for n in range(8)}
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "t.parquet")
    write(tmp_path / "t.jsonl", lines)
    write(tmp_path / "t.json", json.dumps(lines))
    for name in ("t.parquet", "t.jsonl", "t.json"):
        assert everything(read(str(tmp_path / name), fields=fields, group_by="meta.who.0.id")) == expected
    first = read(str(tmp_path / "t.jsonl"), fields=fields | {"output": "answers.text.0"})
    assert {e.outputs for e in everything(first)} == {(f"b{n}",) for n in range(8)}
    # A column of that very name comes first.
    literal = write(tmp_path / "l.csv", "q.text,answers.text\na,b\n")
    assert everything(read(literal, fields=fields)) == {Example("a", ("b",))}
    path = write(tmp_path / "x.jsonl", [*lines[:1], {"q": "flat", "answers": {"text": ["b"]}}])
    assert faults_of(TaskSource(path=path, fields=fields)) == [
        f'{path}:2: expected a field "q.text", found "q", "answers"'
    ]
    path = write(tmp_path / "y.jsonl", lines)
    assert (
        f'{path}:1: expected the column "x.text" for the input'
        in faults_of(TaskSource(path=path, fields=fields | {"input": "x.text"}))[0]
    )


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_prompt_and_completion_are_input_and_output(tmp_path, form):
    path = tmp_path / f"t.{form}"
    lines = [{"prompt": f"a{n}", "completion": " b"} for n in range(3)]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    else:
        write(path, lines if form == "jsonl" else "prompt,completion\na0, b\na1, b\na2, b\n")
    assert everything(read(str(path))) == {Example(f"a{n}", (" b",)) for n in range(3)}
    # Beside an input and an output they are columns like any other.
    both = write(tmp_path / "both.jsonl", [{"input": "i", "output": "o", "prompt": "p", "completion": "c"}])
    assert everything(read(both)) == {Example("i", ("o",))}


def test_a_dotted_name_that_no_row_has_is_told_also_for_instructions(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"input": "a", "output": "b", "q": {"task": "Do."}}])
    assert faults_of(TaskSource(path=path, fields={"instruction": "q.tsak"})) == [
        f'{path}:1: expected the column "q.tsak" for the instruction, found "input", "output", "q"'
    ]
    (example,) = read(path, fields={"instruction": "q.task"}, val=0, test=0).splits["train"]
    assert example.instruction == "Do."


def test_columns_of_parquet_that_nobody_reads_may_be_of_any_type_and_those_read_stand_once(tmp_path):
    odd = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    table = pa.table({"m": odd, "input": ["a"], "output": ["b"], "q.text": ["c"], "d": [pa.scalar(1.5)]})
    pq.write_table(table, tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    assert read(path, val=0, test=0).splits["train"] == (Example("a", ("b",)),)
    assert read(path, val=0, test=0, fields={"input": "q.text"}).splits["train"] == (Example("c", ("b",)),)
    assert '"m", "input", "output", "q.text", "d"' in faults_of(TaskSource(path=path, fields={"input": "x"}))[0]
    twice = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["input", "output", "input"])
    pq.write_table(twice, tmp_path / "t.parquet")
    assert faults_of(TaskSource(path=path)) == [f'{path}: expected column names that differ, found "input" twice']


def test_a_quotation_mark_at_the_start_of_a_cell_is_explained(tmp_path):
    path = write(tmp_path / "t.tsv", 'input\toutput\n"hi" she said\tb\n')
    (fault,) = faults_of(TaskSource(path=path))
    assert fault.startswith(f"{path}:2: expected TSV, found ")
    assert "a cell that begins with a quotation mark has to end with one, and those inside stand twice" in fault
