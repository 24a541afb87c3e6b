"""Tasks that share texts: nothing that one is measured on is another's training, in splits and in folds alike."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colora.errors import TaskFileError
from colora.experiments.own.folds import divide
from colora.tasks.read import read_tasks
from colora.tasks.schema import SPLITS, TaskSource
from colora.tasks.splits.joined import input_key
from colora.tasks.splits.shared import seen_elsewhere, seen_note
from tests.helpers.real_data import real_data
from tests.helpers.task_files import write


def judgements(tmp_path, texts_of, **options):
    """A file for each judge, with an answer to each of its texts."""
    sources = []
    for judge, texts in texts_of.items():
        rows = [{"input": f"text {text}", "output": f"{judge} on {text}", "author": text % 5} for text in texts]
        sources.append(TaskSource(path=write(tmp_path / f"{judge}.jsonl", rows), **options))
    return sources


def inputs(tasks, split):
    return {input_key(example) for task in tasks for example in task.splits[split]}


def assert_apart(tasks):
    test, val, train = (inputs(tasks, split) for split in ("test", "val", "train"))
    assert not test & (val | train)
    assert not val & train


def sizes(tasks):
    return [[len(task.splits[split]) for split in SPLITS] for task in tasks]


def test_tasks_on_the_same_texts_have_the_same_splits_and_lose_nothing(tmp_path):
    sources = judgements(tmp_path, {name: range(40) for name in ("a", "b", "c")})
    assert seen_elsewhere(read_tasks(sources))  # each for itself
    tasks = read_tasks(sources, shared_splits=True)
    assert sizes(tasks) == [[28, 4, 8]] * 3
    for split in SPLITS:
        (same,) = {frozenset(inputs([task], split)) for task in tasks}
        assert same
    assert not seen_elsewhere(tasks)
    assert all(task.split_seed == 0 for task in tasks)
    again = read_tasks(sources, seed=1, shared_splits=True)
    assert inputs(again, "test") != inputs(tasks, "test")


def test_what_cannot_be_kept_apart_is_left_out_of_training_and_told(tmp_path):
    (tmp_path / "given").mkdir()
    write(tmp_path / "given" / "train.jsonl", [{"input": f"text {text}", "output": "x"} for text in range(100, 110)])
    write(tmp_path / "given" / "test.jsonl", [{"input": f"TEXT {text}", "output": "x"} for text in range(10)])
    sources = [*judgements(tmp_path, {"a": range(30)}), TaskSource(path=str(tmp_path / "given"))]
    tasks = read_tasks(sources, shared_splits=True)
    assert_apart(tasks)
    assert sizes(tasks)[1][2] == 10
    (lost,) = [note for note in tasks[0].notes if "examples are left out" in note]
    assert lost.endswith("they belong together with what tasks have in test")
    assert sum(sizes(tasks)[0]) + sum(int(note.split()[0]) for note in tasks[0].notes if "left out" in note) == 30


def test_a_column_is_of_all_tasks(tmp_path):
    sources = judgements(tmp_path, {"a": range(0, 20), "b": range(20, 40)}, group_by="author")
    tasks = read_tasks(sources, shared_splits=True)
    authors = {split: {int(text.split()[1]) % 5 for text in inputs(tasks, split)} for split in SPLITS}
    assert not authors["test"] & (authors["train"] | authors["val"])
    assert not authors["val"] & authors["train"]
    assert authors["test"]


def test_a_task_of_which_nothing_is_left_is_a_fault(tmp_path):
    (tmp_path / "given").mkdir()
    write(tmp_path / "given" / "train.jsonl", [{"input": "other", "output": "x"}])
    write(tmp_path / "given" / "test.jsonl", [{"input": f"text {text}", "output": "x"} for text in range(3)])
    sources = [*judgements(tmp_path, {"a": range(3)}), TaskSource(path=str(tmp_path / "given"))]
    with pytest.raises(TaskFileError, match=r"1 examples for the train split .* 3 examples are left out"):
        read_tasks(sources, shared_splits=True)


def test_counts_are_kept_to_where_other_examples_are_left(tmp_path):
    texts = {f"t{number}": range(10 * number, 10 * number + 40) for number in range(6)}
    for val in (None, 5):
        tasks = read_tasks(judgements(tmp_path, texts, train=12, val=val), shared_splits=True)
        assert_apart(tasks)
        assert sizes(tasks) == [[12, val or 4, 8]] * 6


def test_what_a_count_cannot_have_is_told_with_what_was_left_out(tmp_path):
    sources = judgements(tmp_path, {"a": range(20), "b": range(10, 30)}, test=10, val=0, train=10)
    with pytest.raises(TaskFileError, match=r"10 examples for the train split .* left out: they belong together with"):
        read_tasks(sources, shared_splits=True)


def test_tasks_that_are_added_move_no_text(tmp_path):
    sources = judgements(tmp_path, {name: range(40) for name in ("a", "b", "c")})
    before = read_tasks(sources[:2], shared_splits=True)
    assert read_tasks(sources, shared_splits=True)[:2] == before
    assert read_tasks(sources[::-1], shared_splits=True)[:0:-1] == before


def test_training_examples_are_of_all_groups_of_a_sorted_file(tmp_path):
    texts = sorted(range(100), key=lambda text: text % 5)
    (task,) = read_tasks(judgements(tmp_path, {"a": texts}, group_by="author", train=15), shared_splits=True)
    assert len({int(example.input.split()[1]) % 5 for example in task.splits["train"]}) > 1


def test_a_value_in_two_given_splits_is_a_fault_as_it_is_otherwise(tmp_path):
    for split in ("train", "test"):
        rows = [{"input": f"{split} {text}", "output": "x", "author": text} for text in range(3)]
        write(tmp_path / f"{split}.jsonl", rows)
    source = TaskSource(path=str(tmp_path), group_by="author")
    for shared in (False, True):
        with pytest.raises(TaskFileError, match='expected the author "0" in one split'):
            read_tasks([source], shared_splits=shared)


def test_the_note_counts_test_inputs_that_others_train_on(tmp_path):
    sources = judgements(tmp_path, {"a": range(10), "b": range(10)}, test=4, val=2)
    tasks = read_tasks(sources)
    expected = {
        task.name: sum(
            input_key(example) in inputs([other], "train") | inputs([other], "val") for example in task.splits["test"]
        )
        for task, other in zip(tasks, reversed(tasks), strict=True)
    }
    assert seen_elsewhere(tasks) == {name: number for name, number in expected.items() if number}
    assert seen_note(tasks).startswith(f"{sum(expected.values())} of 8 test inputs are training or validation inputs")
    alone = read_tasks(sources[:1])
    assert seen_note(alone) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=25), min_size=1, max_size=5),
    test=st.none() | st.integers(0, 3), by=st.none() | st.just("author"), seed=st.integers(0, 3),
)  # fmt: skip
def test_whatever_the_texts_nothing_measured_is_trained_on(tmp_path, texts, test, by, seed):
    sources = judgements(tmp_path, {f"t{number}": some for number, some in enumerate(texts)}, test=test, group_by=by)
    try:
        tasks = read_tasks(sources, seed, shared_splits=True)
    except TaskFileError:
        return
    assert_apart(tasks)
    assert read_tasks(sources, seed, shared_splits=True) == tasks
    for folds in (2, 3):
        found = divide(tasks, [task.splits["train"] for task in tasks], folds)
        where = {}
        for task, of in zip(tasks, found.of, strict=True):
            for example, fold in zip(task.splits["train"], of, strict=True):
                assert where.setdefault(input_key(example), fold) == fold


def test_folds_of_the_same_texts_are_as_large_as_each_other(tmp_path):
    names = [f"t{number}" for number in range(6)]
    tasks = read_tasks(judgements(tmp_path, dict.fromkeys(names, range(30)), test=3, val=0), shared_splits=True)
    found = divide(tasks, [task.splits["train"] for task in tasks], 3)
    assert found.sizes == [[9, 9, 9]] * 6
    assert all(sorted(sizes) == [9, 9, 9] for sizes in found.sizes)


def test_folds_keep_a_column_together(tmp_path):
    (task,) = read_tasks(judgements(tmp_path, {"a": range(30)}, group_by="author", test=0, val=0))
    pool = random.Random(0).sample(task.splits["train"], len(task.splits["train"]))
    found = divide([task], [pool], 2)
    author = {example: int(example.input.split()[1]) % 5 for example in pool}
    folds = {(author[example], fold) for example, fold in zip(pool, found.of[0], strict=True)}
    assert len(folds) == 5
    assert sorted(found.sizes[0]) == [12, 18]


def test_people_who_judge_the_same_tweets(tmp_path):
    """All 20 annotators have judged all 200 tweets, as one file each: without shared splits everything leaks."""
    sources = []
    for number in range(1, 21):
        folder = real_data("annotators", f"annotator_{number:02d}")
        rows = [
            line for split in ("train", "val", "test") for line in (folder / f"{split}.jsonl").read_text().splitlines()
        ]
        (tmp_path / f"a{number}.jsonl").write_text("\n".join(rows), "utf-8")
        sources.append(TaskSource(path=str(tmp_path / f"a{number}.jsonl")))
    each = read_tasks(sources)
    assert sum(seen_elsewhere(each).values()) == sum(len(task.splits["test"]) for task in each) == 800
    apart = read_tasks(sources, shared_splits=True)
    assert not seen_elsewhere(apart)
    assert sizes(apart) == sizes(each)
    assert_apart(apart)
