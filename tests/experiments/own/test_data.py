"""Folds and pools of a user's tasks."""

from dataclasses import replace

import pytest

from colora.errors import TaskFileError
from colora.experiments.own.data import OwnTasks
from colora.tasks.splits.joined import input_key
from tests.helpers.own_tasks import example_task, final_trial, texts


def of(data, group, examples=100, seed=0):
    return data.of(final_trial("base", group=group, examples=examples, seed=seed))


@pytest.mark.parametrize("folds", [2, 3])
def test_folds_divide_the_pool_and_hold_nothing_twice(folds):
    data = OwnTasks([example_task("a", 7), example_task("b", 4, val=2)])
    assert not data.has_validation
    held = {"a": [], "b": []}
    for part in data.parts(folds):
        for task, whole in zip(of(data, part), data.tasks, strict=True):
            pool = {*whole.splits["train"], *whole.splits["val"]}
            train, val = set(task.splits["train"]), set(task.splits["val"])
            assert train | val == pool
            assert not train & val
            assert train
            assert task.splits["test"] == whole.splits["test"]
            held[task.name] += task.splits["val"]
    for whole in data.tasks:
        assert len(held[whole.name]) == len(set(held[whole.name])) == len(whole.splits["train"] + whole.splits["val"])


def test_equal_inputs_are_in_one_fold():
    train = texts("one", "One ", "two", "TWO", "three", "four")
    data = OwnTasks([replace(example_task("a"), splits={"train": train, "val": (), "test": texts("x")})])
    assert data.most_folds(10) == 4
    for part in data.parts(2):
        (task,) = of(data, part)
        inputs = [{one.input.strip().casefold() for one in task.splits[split]} for split in ("train", "val")]
        assert not inputs[0] & inputs[1]


def test_one_fold_is_half_of_the_pool():
    data = OwnTasks([example_task("a", 8)])
    (half,) = data.parts(1)
    assert half.startswith(data.group)
    assert half.endswith("-fold1of2")
    assert data.parts(0) == []
    (task,) = of(data, data.parts(1)[0])
    assert (len(task.splits["train"]), len(task.splits["val"])) == (4, 4)
    assert data.validation_examples(1) == 4


def test_a_validation_split_that_is_large_enough_is_used():
    data = OwnTasks([example_task("a", 5, val=8), example_task("b", 5, val=9)])
    assert data.has_validation
    assert data.parts(3) == [f"{data.group}-val"]
    for task, whole in zip(of(data, f"{data.group}-val"), data.tasks, strict=True):
        assert {split: set(task.splits[split]) for split in task.splits} == {
            split: set(whole.splits[split]) for split in whole.splits
        }
    assert data.validation_examples(1) == 9


def test_the_final_training_has_everything_but_the_test():
    data = OwnTasks([example_task("a", 5, val=8)])
    (task,) = of(data, data.group)
    assert (len(task.splits["train"]), len(task.splits["val"])) == (13, 0)
    assert data.pool_sizes == [13]


def test_fewer_examples_are_among_more_and_differ_by_seed():
    data = OwnTasks([example_task("a", 20), example_task("b", 3)])
    small, large = (of(data, data.group, number)[0].splits["train"] for number in (4, 9))
    assert (len(small), len(large)) == (4, 9)
    assert large[:4] == small
    assert of(data, data.group, 4, seed=1)[0].splits["train"] != small
    assert len(of(data, data.group, 4)[1].splits["train"]) == 3


def test_files_that_are_sorted_are_not_taken_from_their_beginning():
    data = OwnTasks([example_task("a", 20, test=50)])
    (task,) = of(data, data.group)
    assert task.splits["train"] != data.tasks[0].splits["train"]  # which is the order of examples in a prompt
    assert set(task.splits["train"]) == set(data.tasks[0].splits["train"])
    few = [
        data.of(final_trial(method, group=data.group, seed=seed, test=10))[0].splits["test"]
        for method, seed in (("base", 0), ("local", 2))
    ]
    assert few[0] == few[1]  # the same for all, or differences would not be paired
    assert len(few[0]) == 10
    assert not set(few[0]) <= set(task.splits["test"][:25])


def test_other_examples_or_another_prompt_are_another_group():
    groups = {
        OwnTasks(tasks, style).group
        for tasks, style in [
            ([example_task("a")], "qa"),
            ([example_task("a")], "chat"),
            ([example_task("a", 7)], "qa"),
            ([example_task("a", test=4)], "qa"),
        ]
    }
    assert len(groups) == 4
    assert OwnTasks([example_task("a")], "qa").group in groups


def test_tasks_without_test_examples_are_refused():
    with pytest.raises(
        TaskFileError, match=r'a.jsonl: expected test examples for task "a", found none.* five examples'
    ):
        OwnTasks([example_task("a", test=0), example_task("b")])


def test_trials_of_another_division_of_the_same_examples_have_another_name():
    task = example_task("a")
    groups = {input_key(example): number % 2 for number, example in enumerate(task.splits["train"])}
    plain, grouped = OwnTasks([task]), OwnTasks([replace(task, groups=groups)])
    assert plain.group == grouped.group
    assert set(plain.parts(2)).isdisjoint(grouped.parts(2))
