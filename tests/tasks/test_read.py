"""Reading tasks: every format, and splits that never leak."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colora.tasks.faults import Faults
from colora.tasks.read import read_tasks
from colora.tasks.schema import SPLITS, Example, TaskSource
from colora.tasks.splits.draw import make_splits
from tests.helpers.real_data import real_data
from tests.helpers.task_files import everything, faults_of, read, rows, write

# Formats


def test_jsonl_holds_one_or_many_outputs_and_instructions(tmp_path):
    lines = [
        {"input": "a\u2028b", "output": "A"},  # a line separator that str.splitlines would split at
        {"input": "b", "output": ["B", "b"], "instruction": "Say it."},
        {"input": "", "outputs": ["C"], "instruction": "Say C."},
    ]
    task = read(write(tmp_path / "letters.jsonl", lines), val=0, test=0)
    assert task.name == "letters"
    assert task.split_seed is None
    assert task.splits["train"] == (
        Example("a\u2028b", ("A",)),
        Example("b", ("B", "b"), "Say it."),
        Example("", ("C",), "Say C."),
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_with_quoted_lines_and_byte_order_mark(tmp_path, newline):
    text = newline.join(["input,output", '"two', 'lines",x', "", "é,y", ""])
    task = read(write(tmp_path / "t.csv", text.encode("utf-8-sig")), val=0, test=0)
    assert task.splits["train"] == (Example(f"two{newline}lines", ("x",)), Example("é", ("y",)))


def test_fields_and_instruction_of_the_source(tmp_path):
    path = write(tmp_path / "t.csv", "tweet,label,output\nhi,yes,ignored\n")
    task = read(path, fields={"input": "tweet", "output": "label"}, instruction="Is it?")
    assert task.splits["train"] == (Example("hi", ("yes",), "Is it?"),)


@pytest.mark.parametrize("definition", ["Add.", ["Add."]])
def test_natural_instructions_are_read_with_their_definition(tmp_path, definition):
    content = {"Definition": definition, "Positive Examples": [], "Instances": [{"input": "1 1", "output": ["2"]}]}
    assert everything(read(write(tmp_path / "t.json", json.dumps(content)))) == {Example("1 1", ("2",), "Add.")}


def test_a_json_list_of_examples_is_read(tmp_path):
    assert len(everything(read(write(tmp_path / "t.json", json.dumps(rows(7)))))) == 7


@pytest.mark.parametrize("val", ["val", "validation", "dev"])
def test_folder_of_splits_is_used_as_given(tmp_path, val):
    folder = tmp_path / "my.task"
    write(folder / "train.jsonl", rows(5))
    write(folder / f"{val}.csv", "input,output\nv,w\n")
    write(folder / "test.jsonl", rows(2, start=10))
    write(folder / "README.md", "not a split")
    task = read(str(folder))
    assert task.name == "my.task"
    assert task.split_seed is None
    assert {split: len(task.splits[split]) for split in SPLITS} == {"train": 5, "val": 1, "test": 2}
    assert [e.input for e in task.splits["train"]] == [row["input"] for row in rows(5)]
    assert read(str(folder), train=5, test=2).split_seed is None
    assert read(str(folder), train=3).split_seed == 0
    fewer = read(str(folder), test=1)
    assert fewer.split_seed == 0
    assert len(fewer.splits["test"]) == 1


def test_saved_datasets_and_class_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 1, 0]}, features=features)
    fields = {"input": "text", "output": "label"}
    data.save_to_disk(tmp_path / "one")
    assert everything(read(str(tmp_path / "one"), fields=fields)) == {
        Example("a", ("no",)), Example("b", ("yes",)), Example("c", ("yes",)), Example("d", ("no",))
    }  # fmt: skip
    hidden = datasets.Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    datasets.DatasetDict(train=data, validation=data.select([0]), test=hidden).save_to_disk(tmp_path / "three")
    path = str(tmp_path / "three")
    assert faults_of(TaskSource(path=path, fields=fields)) == [
        f'{path}:test[0].label: expected text or a list of texts in "label", found the number -1'
    ]
    task = read(path, fields=fields, test=0)
    assert [len(task.splits[split]) for split in SPLITS] == [3, 1, 0]
    fault = faults_of(TaskSource(path=path, test=0, val=0))[0]
    assert fault == f'{path}:train[0]: expected a field "input" for the input, found "text", "label"; ' + (
        "`fields: {input: COLUMN}` in a run file, or `--field input=COLUMN` of a command, names another"
    )


def test_load_dataset_takes_a_local_folder_and_reports_what_does_not_load(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "data" / "train.jsonl", rows(10))
    (task,) = read_tasks([TaskSource(dataset=str(tmp_path / "data"))])
    assert task.name == "data"
    assert len(everything(task)) == 10
    missing = str(tmp_path / "nothing")
    (fault,) = faults_of(TaskSource(dataset=missing))
    assert fault.startswith(f"{missing}: expected a dataset that loads, found ")


# Splits


def test_shares_of_drawn_splits_and_of_one_example(tmp_path):
    task = read(write(tmp_path / "t.jsonl", rows(33)))
    assert [len(task.splits[split]) for split in SPLITS] == [24, 3, 6]
    assert task.split_seed == 0
    one = read(write(tmp_path / "one.jsonl", rows(1)))
    assert [len(one.splits[split]) for split in SPLITS] == [1, 0, 0]


def test_missing_split_of_a_folder_is_drawn_from_training(tmp_path):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "test.jsonl", rows(4, start=18))  # two of them are training examples as well
    task = read(str(tmp_path))
    assert [len(task.splits[split]) for split in SPLITS] == [17, 1, 4]
    assert task.split_seed == 0
    assert sum(len(task.splits[split]) for split in SPLITS) == len(everything(task))


def test_draws_depend_on_seed_and_name_but_not_on_other_tasks(tmp_path):
    path = write(tmp_path / "t.jsonl", rows(40))
    a, b = (TaskSource(path=path, name=name) for name in "ab")
    (both_a, both_b), (alone,), (other,) = read_tasks([a, b]), read_tasks([b]), read_tasks([b], seed=1)
    assert both_b == alone
    assert both_a.splits != both_b.splits
    assert other.splits != alone.splits
    assert (alone.split_seed, other.split_seed) == (0, 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pool=st.lists(st.integers(0, 40), min_size=1, max_size=60), seed=st.integers(0, 5),
    test=st.none() | st.integers(0, 8), val=st.none() | st.integers(0, 8), data=st.data(),
)  # fmt: skip
def test_drawn_splits_are_disjoint_and_stable(pool, seed, test, val, data):
    examples = [Example(str(i), ("x",)) for i in pool]

    def draw(train):
        faults = Faults()
        splits, _ = make_splits(
            {"train": examples}, TaskSource(path="p", train=train, val=val, test=test), "t", seed, faults
        )
        return splits, faults

    whole, faults = draw(None)
    if len(faults):
        assert (test or 0) + (val or 0) + 1 > len(set(pool)) * 0.7
        return
    assert sum(map(len, whole.values())) == len(set(pool)) == len(set().union(*whole.values()))
    size = len(set(pool))
    assert len(whole["test"]) == (size // 5 if test is None else test)
    assert len(whole["val"]) == (size // 10 if val is None else val)
    train = data.draw(st.integers(1, len(whole["train"])))
    most, (fewer, faults) = draw(len(whole["train"]))[0], draw(train)
    assert not len(faults)
    assert fewer == {**most, "train": most["train"][:train]}
    # The same examples; where nothing at all is drawn they stay in the file's order.
    assert {split: set(examples) for split, examples in most.items()} == {s: set(e) for s, e in whole.items()}


# Real data


def test_real_natural_instructions():
    folder = real_data("natural_instructions")
    paths = sorted(folder.glob("*.json"))
    tasks = read_tasks([TaskSource(path=str(path), train=16, val=5, test=20) for path in paths])
    assert [task.name for task in tasks] == [path.stem for path in paths]
    for task in tasks:
        assert [len(task.splits[split]) for split in SPLITS] == [16, 5, 20]
        assert all(example.instruction and example.outputs for example in everything(task))


def test_real_tweeteval():
    task = read(str(real_data("tweeteval", "irony")), instruction="Is the tweet ironic?")
    assert task.name == "irony"
    assert task.split_seed is None
    assert [len(task.splits[split]) for split in SPLITS] == [2862, 955, 784]
    assert {e.outputs for e in everything(task)} == {("irony",), ("non_irony",)}
