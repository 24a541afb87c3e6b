"""Every fault of task files, with its place, what was expected and what was found."""

import json

import pytest

from colora.errors import TaskFileError
from colora.tasks.read import read_tasks
from colora.tasks.schema import TaskSource
from tests.helpers.task_files import everything, faults_of, read, rows, write

TEXTS = "expected text or a list of texts"
OTHER_JSON = 'expected a list of examples or a Natural Instructions object with "Definition" and "Instances"'
JSON_KEYS = 'found "question", "output"'
CASES = {
    "bad json": (
        "t.jsonl",
        '{"input": "a", "output": "b"}\n{"input": \n',
        ":2: expected a JSON object, found bad JSON",
    ),
    "endless brackets": ("t.jsonl", "[" * 100_000, ":1: expected a JSON object, found bad JSON"),
    "a key twice": (
        "t.jsonl",
        '{"input": "a", "output": "b"}\n{"input": "a", "input": "b", "output": "c"}\n',
        ':2: expected a JSON object, found bad JSON: the key "input" twice in one object',
    ),
    "a key twice in a list": (
        "t.json",
        '[{"input": "a", "output": "b"},\n{"input": "a", "output": {"x": 1,\n "x": 2}}]',
        ':3: expected JSON, found the key "x" twice in one object, in lines 2 and 3',
    ),
    "a definition twice": (
        "t.json",
        '{"Definition": "a",\n"Definition": "b",\n"Instances": [{"input": "a", "output": "b"}]}',
        ':2: expected JSON, found the key "Definition" twice in one object, in lines 1 and 2',
    ),
    "an endless number": (
        "t.jsonl",
        '{"input": "a", "output": ' + "9" * 5000 + "}",
        ":1: expected a JSON object, found bad JSON: a number of 5000 digits",
    ),
    "not an object": (
        "t.jsonl",
        '{"input": "a", "output": "b"}\n\n[1]\n',
        ":3: expected a JSON object, found a list of 1",
    ),
    "missing everywhere": (
        "t.jsonl",
        [{"question": "a", "output": "b"}],
        f':1: expected a field "input" for the input, {JSON_KEYS}',
    ),
    "missing once": (
        "t.jsonl",
        [*rows(1), {"question": "a", "output": "b"}],
        f':2: expected a field "input", {JSON_KEYS}',
    ),
    "missing output": ("t.jsonl", [*rows(1), {"input": "a"}], ':2: expected a field "output", found "input"'),
    "both outputs": (
        "t.jsonl",
        [{"input": "a", "output": "b", "outputs": ["c"]}],
        ':1: expected one of "output", "outputs", found both',
    ),
    "empty input": (
        "t.jsonl",
        [{"input": " ", "output": "b"}],
        ':1: expected text (empty only beside an instruction) in "input", found empty text',
    ),
    "empty output": (
        "t.jsonl",
        [{"input": "a", "output": "\n"}],
        ':1: expected text or a list of texts in "output", found empty text',
    ),
    "empty list": (
        "t.jsonl",
        [{"input": "a", "output": []}],
        ':1: expected text or a list of texts in "output", found an empty list',
    ),
    "empty in list": (
        "t.jsonl",
        [{"input": "a", "output": ["b", ""]}],
        ':1: expected text in "output[1]", found empty text',
    ),
    "number": (
        "t.jsonl",
        [{"input": "a", "output": 3}],
        ':1: expected text or a list of texts in "output", found the number 3',
    ),
    "null input": (
        "t.jsonl",
        [{"input": None, "output": "b", "instruction": "c"}],
        ':1: expected text in "input", found null',
    ),
    "wrong instruction": (
        "t.jsonl",
        [{"input": "a", "output": "b", "instruction": ["c"]}],
        ':1: expected text in "instruction", found a list of 1',
    ),
    "half a character": (
        "t.jsonl",
        '{"input": "\\ud800", "output": "b"}',
        ':1: expected Unicode text in "input", found a lone surrogate',
    ),
    "not utf-8": (
        "t.jsonl",
        b'{"input": "a",\n "output": "\xe9"}',
        ":2: expected UTF-8 text, found the byte 0xe9 at byte offset 27",
    ),
    "not utf-8, bom": (
        "t.jsonl",
        b"\xef\xbb\xbfab\xff",
        ":1: expected UTF-8 text, found the byte 0xff at byte offset 5",
    ),
    "empty file": ("t.jsonl", "\n", ": expected at least one example, found none"),
    "header only": ("t.csv", "input,output\n", ": expected at least one example, found none"),
    "too few cells": ("t.csv", 'input,output\n"a\nb",c\nd\n', ":4: expected 2 columns, found 1"),
    "too many cells": ("t.csv", "input,output\na,b,c\n", ":2: expected 2 columns, found 3"),
    "open quote": ("t.csv", 'input,output\na,b\n"c,d\n', ":3: expected CSV, found unexpected end of data"),
    "repeated column": ("t.csv", "input,input\na,b\n", ':1: expected column names that differ, found "input", "input"'),
    "csv column": ("t.csv", "text,output\na,b\n", ':1: expected a field "input" for the input, found "text", "output"'),
    "bad json file": ("t.json", '{\n"Definition": }', ":2: expected JSON, found Expecting value at column 15"),
    "other json": ("t.json", '{"data": []}', f': {OTHER_JSON}, found an object with "data"'),
    "no instances": ("t.json", '{"Definition": "d", "Instances": []}', ": expected at least one example, found none"),
    "instances": ("t.json", '{"Definition": "d", "Instances": 3}', ":Instances: expected a list, found the number 3"),
    "definition": (
        "t.json",
        '{"Definition": 3, "Instances": [{"input": "a", "output": "b"}]}',
        ":Definition: expected text or a list of texts, found the number 3",
    ),
    "instance": (
        "t.json",
        '{"Definition": "d", "Instances": [{"input": "a", "output": "b"}, 3]}',
        ":Instances[1]: expected an object, found the number 3",
    ),
    "instance output": (
        "t.json",
        '{"Definition": "", "Instances": [{"input": "a", "output": []}]}',
        ':Instances[0].output: expected text or a list of texts in "output", found an empty list',
    ),
    "list item": (
        "t.json",
        '[{"input": "a", "output": [""]}]',
        ':[0].output[0]: expected text in "output[0]", found empty text',
    ),
}


def instructions(**more: object) -> str:
    return json.dumps({"Definition": "d", "Instances": [{"input": "a", "output": ["b"]}]} | more)


@pytest.mark.parametrize("key", ["Positive Examples", "Negative Examples"])
def test_demonstrations_of_natural_instructions_are_checked(tmp_path, key):
    good = {"input": "a", "output": "b", "explanation": "c"}
    for right in ([], [good], [good, {"input": "", "output": ["x", "y"]}], "-", ["-"], None):
        assert len(everything(read(write(tmp_path / "t.json", instructions(**{key: right}))))) == 1
    wrong = {
        "expected a list, found an object": ({"a": 1}, ""),
        "expected an object, found text": ([good, "b"], "[1]"),
        'expected a field "output", found "input"': ([{"input": "a"}], "[0]"),
        'expected a field "input", found "output"': ([{"output": "a"}], "[0]"),
        'expected text in "input", found the number 5': ([{**good, "input": 5}], "[0].input"),
        'expected text or a list of texts in "output", found null': ([{**good, "output": None}], "[0].output"),
        'expected text or a list of texts in "output", found an empty list': ([{**good, "output": []}], "[0].output"),
        'expected text or a list of texts in "output", found a list of 2': (
            [{**good, "output": ["a", 1]}],
            "[0].output",
        ),
        'expected text in "explanation", found a list of 1': ([{**good, "explanation": ["c"]}], "[0].explanation"),
    }
    for message, (demonstrations, place) in wrong.items():
        path = write(tmp_path / "t.json", instructions(**{key: demonstrations}))
        assert faults_of(TaskSource(path=path)) == [f"{path}:{key}{place}: {message}"]


@pytest.mark.parametrize("case", CASES)
def test_fault_names_place_expectation_and_finding(tmp_path, case):
    name, content, expected = CASES[case]
    path = write(tmp_path / name, content)
    (fault,) = faults_of(TaskSource(path=path))
    assert fault.startswith(path + expected)


def test_missing_file_suggests_similar_names(tmp_path):
    write(tmp_path / "irony_train.jsonl", rows(1))
    missing = str(tmp_path / "irony_tran.jsonl")
    assert faults_of(TaskSource(path=missing)) == [
        f'{missing}: expected a file or a folder, found none; similar names there: "irony_train.jsonl"'
    ]
    assert "nor the folder" in faults_of(TaskSource(path=str(tmp_path / "no" / "such.csv")))[0]


def test_an_unknown_suffix_lists_the_suffixes(tmp_path):
    path = write(tmp_path / "t.xlsx", "input\toutput\n")
    wanted = ".jsonl, .ndjson, .csv, .tsv, .json, .parquet (or .gz after one of these)"
    assert faults_of(TaskSource(path=path)) == [f'{path}: expected a file ending in {wanted}, found ".xlsx"']
    for name, found in (("t.zip.gz", '".gz"'), ("t", "no suffix"), (".jsonl", "no suffix")):
        path = write(tmp_path / name, "input\toutput\n")
        assert faults_of(TaskSource(path=path, name="t")) == [
            f"{path}: expected a file ending in {wanted}, found {found}"
        ]


def test_a_folder_without_or_with_two_train_files_is_a_fault(tmp_path):
    path = str(tmp_path)
    write(tmp_path / "test.jsonl", rows(1))
    wanted = "expected train.jsonl or train.csv (and val and test, if given)"
    assert faults_of(TaskSource(path=path)) == [f'{path}: {wanted}, found "test.jsonl"']
    write(tmp_path / "train.jsonl", rows(1, start=1))
    write(tmp_path / "train.csv", "input,output\na,b\n")
    assert faults_of(TaskSource(path=path)) == [f'{path}: expected one train file, found "train.csv", "train.jsonl"']


def test_unknown_columns_and_fields_are_faults(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,b\n")
    assert faults_of(TaskSource(path=path, fields={"input": "tweet", "output": "label", "instruction": "how"})) == [
        f'{path}:1: expected the column "tweet" for the input, found "text", "label"; did you mean \'text\'?',
        f'{path}:1: expected the column "how" for the instruction, found "text", "label"',
    ]
    assert faults_of(TaskSource(path=path, fields={"inputs": "text"})) == [
        f'{path}: expected "input", "output" or "instruction" in fields, found "inputs"'
    ]


def test_columns_of_other_names_are_hinted_at(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,b\n")
    assert faults_of(TaskSource(path=path)) == [
        f'{path}:1: expected a field "{field}" for the {field}, found "text", "label"; '
        f"`fields: {{{field}: COLUMN}}` in a run file, or `--field {field}=COLUMN` of a command, names another"
        for field in ("input", "output")
    ]


def test_a_column_that_is_nearly_one_of_the_file_is_suggested(tmp_path):
    path = write(tmp_path / "t.csv", "tweet text,Stance\na,b\n")
    assert faults_of(TaskSource(path=path, fields={"input": "tweet_text", "output": "Stance"})) == [
        f'{path}:1: expected the column "tweet_text" for the input, found "tweet text", "Stance"; '
        "did you mean 'tweet text'?"
    ]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"input": "a, b", "output": "c"}\n{"input": "a", "output": "c"}\n' * 30, "JSON Lines? Then name it .jsonl"),
        ('\n{"input":"a","output":"c"}\n' * 30, "JSON Lines? Then name it .jsonl"),
        ('[{"input": "a", "output": "c"},\n{"input": "a", "output": "c"}]\n', "JSON? Then name it .json"),
        ('{\n"input": "a",\n"output": "c"}\n', "JSON? Then name it .json"),
    ],
)
def test_json_named_as_a_table_is_one_fault(tmp_path, ending, text, hint):
    path = write(tmp_path / f"t.{ending}", text)
    (fault,) = faults_of(TaskSource(path=path))
    assert fault.startswith(
        f"{path}:{1 + text.startswith(chr(10))}: expected a header with the names of columns, found "
    )
    assert fault.endswith(f"; is it {hint}")


def test_a_header_with_brackets_is_a_header(tmp_path):
    path = write(tmp_path / "t.csv", "input,output,[note],{x}\na,b,c,d\n")
    assert read(path, val=0, test=0).splits["train"][0].outputs == ("b",)


@pytest.mark.parametrize(("separator", "ending"), [(",", "csv"), ("\t", "tsv")])
def test_a_table_named_jsonl_is_one_fault(tmp_path, separator, ending):
    path = write(tmp_path / "t.jsonl", separator.join(["input", "output"]) + "\n" + separator.join("ab") + "\n" * 30)
    (fault,) = faults_of(TaskSource(path=path))
    assert fault.startswith(f'{path}:1: expected a JSON object a line, found a line without "{{": \'input')
    assert fault.endswith("is it a table? Then name it .csv (commas) or .tsv (tabs)")
    (tmp_path / f"t.{ending}").write_text((tmp_path / "t.jsonl").read_text())
    assert read_tasks([TaskSource(path=str(tmp_path / f"t.{ending}"), val=0, test=0)])[0].splits["train"]


def test_counts_beyond_the_examples_are_faults(tmp_path):
    path = write(tmp_path / "t.jsonl", rows(10))
    head = f"{path}: expected"
    assert faults_of(TaskSource(path=path, train=11, val=0, test=0)) == [
        f'{head} 11 examples for the train split of task "t", found 10'
    ]
    assert faults_of(TaskSource(path=path, train=10))[0].startswith(
        f'{head} 10 examples for the train split of task "t", found 7 left of 10 after those for test and val'
    )
    assert faults_of(TaskSource(path=path, test=12))[0] == (
        f'{head} 12 examples for the test split of task "t", found 10'
    )
    assert faults_of(TaskSource(path=path, train=0)) == [
        f'{head} 1 examples for the train split of task "t", found none'
    ]
    assert faults_of(TaskSource(path=path, train=-1)) == [f"{path}: expected train to be 0 or more, found -1"]
    write(tmp_path / "f" / "train.jsonl", rows(3))
    write(tmp_path / "f" / "test.jsonl", rows(2, start=5))
    folder = str(tmp_path / "f")
    assert faults_of(TaskSource(path=folder, test=3)) == [
        f'{folder}: expected 3 examples for the test split of task "f", found 2'
    ]


def test_task_names_that_are_unfit_or_repeated_are_faults(tmp_path):
    path = write(tmp_path / "t.jsonl", rows(1))
    for bad in ("", "a/b", "..", " a", "x" * 101, "a\n"):
        (fault,) = faults_of(TaskSource(path=path, name=bad))
        assert fault.startswith(f"{path}: expected a task name of 1 to 100")
    assert read(path, name="Übung 1.2: a+b-c_d").name == "Übung 1.2: a+b-c_d"
    other = write(tmp_path / "other.jsonl", rows(1))
    assert faults_of(TaskSource(path=path), TaskSource(path=other, name="T")) == [
        f'{other}: expected task names that differ (not only in case), found "T" for both {path} and {other}'
    ]


def test_a_source_is_either_a_path_or_a_dataset():
    assert faults_of(TaskSource(name="a"), TaskSource(path="p", dataset="d")) == [
        "a: expected a path or a dataset, found neither",
        'p: expected a path or a dataset, found both "p" and "d"',
    ]
    with pytest.raises(TaskFileError, match="at least one task source"):
        read_tasks([])


def test_all_faults_of_all_sources_come_at_once_and_long_lists_are_cut(tmp_path):
    first = write(tmp_path / "a.jsonl", [{"input": "a", "output": 1}] * 25)
    second = write(tmp_path / "b.csv", "input,output\na,b,c\nd,e,f\n")
    good = write(tmp_path / "c.jsonl", rows(3))
    gone = str(tmp_path / "gone.json")
    # The broken file twice: each fault is listed once, and neither source counts as read.
    sources = [TaskSource(path=path) for path in (first, second, good, gone)] + [TaskSource(path=first, name="again")]
    faults = faults_of(*sources)
    assert [fault.split(": ")[0] for fault in faults] == [
        *(f"{first}:{line}" for line in range(1, 21)), first, f"{second}:2", f"{second}:3", gone
    ]  # fmt: skip
    assert faults[20] == f"{first}: ... and 5 more"
