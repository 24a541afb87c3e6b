"""Splits never tear apart what belongs together, and are what they were where nothing does."""

import json
import random
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colora.tasks.faults import Faults
from colora.tasks.read import read_tasks
from colora.tasks.schema import SPLITS, Example, TaskSource
from colora.tasks.splits.draw import Grouping, make_splits
from colora.training import resolve
from colora.training.config_file import load_config
from colora.training.resolve import read_run_tasks
from tests.helpers.run_files import cli, refusal, run_file, save_base
from tests.helpers.task_files import everything, faults_of, read, write


def sizes(task):
    return [len(task.splits[split]) for split in SPLITS]


def plain(text):
    return " ".join(text.casefold().split())


def assert_apart(splits, key):
    where = {}
    for split, examples in splits.items():
        for example in examples:
            assert where.setdefault(key(example), split) == split, f"{key(example)!r} is in two splits"


def as_before(examples, name="t", seed=0, test=None, val=None, train=None):
    """The rule of the first version, for examples whose inputs all differ."""
    pool = random.Random(f"{seed}:{name}").sample(examples, len(examples))
    test, val = (len(pool) // 5 if test is None else test), (len(pool) // 10 if val is None else val)
    return {"test": pool[:test], "val": pool[test : test + val], "train": pool[test + val :][:train]}


@pytest.mark.parametrize("count", [1, 4, 9, 10, 33, 100])
@pytest.mark.parametrize("sizes", [{}, {"test": 2, "val": 1}, {"test": 0}, {"train": 2}, {"test": 1, "train": 1}])
def test_splits_of_inputs_that_differ_are_what_they_were(count, sizes):
    examples = [Example(f"q {number}", ("x", f"{number % 3}"), "Do.") for number in range(count)]
    faults = Faults()
    splits, _ = make_splits({"train": examples}, TaskSource(path="p", **sizes), "t", 0, faults)
    expected = as_before(examples, **sizes)
    if not len(faults):
        assert {split: list(found) for split, found in splits.items()} == expected


@pytest.mark.parametrize(
    "other", ["question 3", "Question 3", " question\t3\n", "QUESTION  3"], ids=["same", "case", "space", "both"]
)
def test_equal_inputs_are_drawn_into_one_split_whatever_their_outputs(tmp_path, other):
    lines = [{"input": f"question {n}", "output": "a"} for n in range(20)]
    lines += [{"input": other, "output": f"b{n}"} for n in range(5)]
    for seed in range(8):
        task = read(write(tmp_path / "t.jsonl", lines), name=f"task {seed}")
        assert sizes(task) == [18, 2, 5]
        assert_apart(task.splits, lambda example: plain(example.input))


def test_composed_and_decomposed_inputs_are_equal_and_without_inputs_the_instructions_count():
    faults = Faults()
    examples = [Example("caf\u00e9", ("a",)), Example("cafe\u0301", ("b",))] * 2
    examples += [Example("", (f"{n}",), f"Do {n // 4}.") for n in range(36)]
    splits, _ = make_splits({"train": examples}, TaskSource(path="p"), "t", 0, faults)
    assert not len(faults)
    assert_apart(splits, lambda example: example.instruction or "cafe")
    assert len(splits["test"]) + len(splits["val"]) > 4


def test_one_input_alone_stays_in_training_and_check_says_so(tmp_path):
    task = read(write(tmp_path / "t.jsonl", [{"input": "same", "output": f"o{n}"} for n in range(10)]))
    assert sizes(task) == [10, 0, 0]
    assert "10 examples share their input with others; equal inputs are drawn into one split" in task.notes
    assert "test has 0 examples, not 2: what belongs together is not torn apart" in task.notes


def test_an_input_that_is_tested_is_not_trained_on_with_another_output(tmp_path):
    write(tmp_path / "train.jsonl", [{"input": f"q{n}", "output": "a"} for n in range(6)])
    write(tmp_path / "val.jsonl", [{"input": " q1", "output": "b"}, {"input": "v", "output": "b"}])
    write(tmp_path / "test.jsonl", [{"input": "q2 ", "output": "c"}, {"input": "v", "output": "c"}])
    task = read(str(tmp_path))
    assert [e.input for e in task.splits["train"]] == ["q0", "q3", "q4", "q5"]
    assert [e.input for e in task.splits["val"]] == [" q1"]
    assert task.notes == (
        "1 val examples are left out: their inputs are also in test",
        "2 train examples are left out: their inputs are also in test or val",
    )


def test_given_inputs_that_differ_in_case_are_kept_for_case_may_be_the_task(tmp_path):
    write(tmp_path / "train.jsonl", [{"input": "USA", "output": "capitals"}, {"input": "x", "output": "small"}])
    write(tmp_path / "test.jsonl", [{"input": "usa", "output": "small"}])
    task = read(str(tmp_path), val=0)
    assert sizes(task) == [2, 0, 1]
    assert task.notes == ("1 train inputs differ from some in test in case alone",)


# A field that splits are drawn by


def people(count, each, **more):
    return [
        {"input": f"{person} {n}", "output": "x", "person": f"p{person}"} | more
        for person in range(count)
        for n in range(each)
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv", "json"])
def test_a_group_is_never_torn_apart(tmp_path, form):
    lines = people(12, 5)
    content = {
        "jsonl": lines,
        "csv": "input,output,person\n" + "".join(f"{r['input']},{r['output']},{r['person']}\n" for r in lines),
        "json": json.dumps(lines),
    }[form]
    path = write(tmp_path / f"t.{form}", content)
    for name in "abcdef":
        task = read(path, name=name, group_by="person")
        assert sizes(task) == [45, 5, 10]
        assert_apart(task.splits, lambda example: example.input.split()[0])
    assert task.notes == ("splits are drawn by person: 12 groups that have no input in common",)
    assert read(path, name="a", group_by="person").splits != read(path, name="b", group_by="person").splits


def test_few_large_groups_still_leave_something_to_test(tmp_path):
    task = read(write(tmp_path / "t.jsonl", people(3, 10)), group_by="person")
    assert sizes(task) == [10, 10, 10]
    one = read(write(tmp_path / "one.jsonl", people(1, 10)), group_by="person")
    assert sizes(one) == [10, 0, 0]


def test_counts_are_kept_to_and_the_rest_of_a_group_is_in_no_split(tmp_path):
    path = write(tmp_path / "t.jsonl", people(6, 10))
    task = read(path, group_by="person", test=13, val=3)
    assert sizes(task) == [30, 3, 13]
    assert_apart(task.splits, lambda example: example.input.split()[0])
    assert task.notes[-2:] == (
        "7 examples are in no split: they belong together with some of the 13 in test",
        "7 examples are in no split: they belong together with some of the 3 in val",
    )
    fewer = read(path, group_by="person", test=13, val=3, train=4)
    assert fewer.splits["train"] == task.splits["train"][:4]
    assert fewer.splits["test"] == task.splits["test"]
    assert "found 30 left of 60" in faults_of(TaskSource(path=path, group_by="person", test=13, val=3, train=31))[0]


def test_an_input_in_two_groups_joins_them(tmp_path):
    lines = [*people(10, 2), {"input": "0 0", "output": "y", "person": "p1"}]
    for name in "abcdef":
        task = read(write(tmp_path / "t.jsonl", lines), name=name, group_by="person")
        assert_apart(task.splits, lambda example: max(int(example.input.split()[0]), 1))


def test_groups_in_two_given_splits_are_a_fault(tmp_path):
    write(tmp_path / "train.jsonl", people(3, 2))
    write(tmp_path / "test.jsonl", [{"input": "other", "output": "x", "person": "p1"}])
    assert faults_of(TaskSource(path=str(tmp_path), group_by="person")) == [
        f'{tmp_path}: expected the person "p1" in one split, found it in train and test; give one file, of which '
        "splits are drawn, or leave group_by out"
    ]


@pytest.mark.parametrize(("value", "found"), [(None, "null"), (" ", "empty text"), (1.5, "the number 1.5"), ([], "an")])
def test_a_group_is_a_text_or_a_whole_number(tmp_path, value, found):
    path = write(tmp_path / "t.jsonl", [*people(2, 2), {"input": "a", "output": "b", "person": value}])
    (fault,) = faults_of(TaskSource(path=path, group_by="person"))
    assert fault.startswith(f'{path}:5: expected a text or a whole number in "person" (group_by), found {found}')
    assert 'found "input", "output", "person"' in faults_of(TaskSource(path=path, group_by="someone"))[0]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 6)), min_size=2, max_size=60),
    test=st.none() | st.integers(0, 8), val=st.none() | st.integers(0, 8), seed=st.integers(0, 3),
)  # fmt: skip
def test_whatever_the_groups_nothing_is_torn_and_counts_hold(pairs, test, val, seed):
    examples = [Example(f"text {text}", (f"{number}",)) for number, (text, _) in enumerate(pairs)]
    group = {example: person for example, (_, person) in zip(examples, pairs, strict=True)}
    faults = Faults()
    source = TaskSource(path="p", test=test, val=val, group_by="person")
    groups = {"train": [person for _, person in pairs]}
    splits, _ = make_splits({"train": examples}, source, "t", seed, faults, Grouping(groups))
    assert_apart(splits, lambda example: example.input)
    assert_apart(splits, group.get)
    found = [example for split in SPLITS for example in splits[split]]
    assert len(found) == len(set(found)) <= len(examples)
    if not len(faults):
        assert splits["train"]
        for split, asked in (("test", test), ("val", val)):
            assert asked is None or len(splits[split]) == asked
        if test is None and val is None:
            assert len(found) == len(examples)


def test_check_tells_what_is_unusual_about_splits(tmp_path):
    base = save_base(tmp_path / "base")
    path = write(tmp_path / "t.jsonl", people(12, 5))
    run = run_file(tmp_path, base, [{"path": path, "group_by": "person"}])
    found = cli("check", run)
    assert found.exit_code == 0
    assert "task t: splits are drawn by person: 12 groups" in found.stdout.replace("\n", " ")
    assert len(everything(read(path, group_by="person"))) == 60


def test_one_person_as_a_number_and_as_a_text_is_one_group(tmp_path):
    ways = [7, "7", " 7 ", "\u00e9", "e\u0301"]
    lines = [{"input": f"q {n}", "output": "x", "person": ways[n % 5]} for n in range(40)]
    lines += people(8, 5)
    for name in "abcdef":
        task = read(write(tmp_path / "t.jsonl", lines), name=name, group_by="person")
        where = {key: set() for key in "7e"}
        for split, examples in task.splits.items():
            for example in examples:
                if example.input.startswith("q "):
                    where["7" if int(example.input[2:]) % 5 < 3 else "e"].add(split)
        assert [len(splits) for splits in where.values()] == [1, 1]


# Runs that the first version began, whose examples have inputs in common


def run_with_repeats(folder):
    """A run file of two tasks with each input twice."""
    tasks = []
    for name in ("red", "blue"):
        lines = [{"input": f"{name} {n % 12}", "output": "x" * (1 + n // 12)} for n in range(24)]
        tasks.append({"path": write(folder / f"{name}.jsonl", lines)})
    return run_file(folder, save_base(folder / "base"), tasks)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_of_the_first_version_keeps_its_splits_and_says_so(tmp_path, monkeypatch):
    run = run_with_repeats(tmp_path)
    pool = [Example(f"red {n % 12}", ("x" * (1 + n // 12),)) for n in range(24)]
    before, now = as_before(pool, name="red"), read_run_tasks(load_config(run))
    assert set(before["test"]) != set(now[0].splits["test"])
    with monkeypatch.context() as patch:
        patch.setattr(resolve, "read_tasks", partial(read_tasks, together=False))
        trained = cli("train", run)
    assert trained.exit_code == 0
    manifest = (tmp_path / "out" / "tasks.json").read_text()

    for command in (("evaluate", tmp_path / "out"), ("train", run), ("transfer", tmp_path / "out")):
        found = cli(*command)
        assert found.exit_code == 0, found.output
        told = " ".join(found.stderr.split())
        assert 'the splits of "blue", "red" are kept as an earlier version drew them' in told
    with pytest.warns(UserWarning, match="train in another folder"):
        red, _ = read_run_tasks(load_config(run), tmp_path / "out")
    assert {split: list(examples) for split, examples in red.splits.items()} == before
    assert (tmp_path / "out" / "tasks.json").read_text() == manifest
    # Elsewhere nothing is torn apart, and other examples are refused as ever.
    assert_apart(read_run_tasks(load_config(run), tmp_path / "elsewhere")[0].splits, lambda example: example.input)
    write(tmp_path / "red.jsonl", [{"input": f"red {n}", "output": "x"} for n in range(24)])
    message = refusal("evaluate", tmp_path / "out")
    assert "give it the old files again, or choose another output" in message
    assert "task 'red', split test" in message
    assert "'blue'" not in message
