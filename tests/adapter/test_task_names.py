"""`TaskNames` is a dict from names to ids in little memory."""

import copy
import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colora import CoLoRAConfig
from colora.adapter.task_names import TaskNames, TaskSequence

UNIQUE = st.lists(st.text(max_size=12), unique=True, max_size=40)


@given(UNIQUE, st.lists(st.text(max_size=12), max_size=5))
def test_it_is_the_dict_of_the_names(names, others):
    found, expected = TaskNames(names), {name: number for number, name in enumerate(names)}
    assert dict(found) == expected
    assert list(found) == names
    assert [found.name(number) for number in range(len(names))] == names
    for name in others:
        assert (name in found) == (name in expected)
        assert found.get(name) == expected.get(name)
    assert dict(pickle.loads(pickle.dumps(found))) == expected
    assert dict(copy.deepcopy(found)) == expected


@given(UNIQUE, st.integers(0, 40))
def test_more_names_leave_the_first_as_they_were(names, cut):
    first = TaskNames(names[:cut])
    whole = first.extended(names[cut:])
    assert list(first) == names[:cut]
    assert dict(whole) == {name: number for number, name in enumerate(names)}


def test_names_of_one_hash_are_told_apart(monkeypatch):
    import colora.adapter.task_names as module

    monkeypatch.setattr(module, "_hashes", lambda names: np.full(len(names), 7))
    names = TaskNames(["a", "b", "c"])
    assert [names[name] for name in "abc"] == [0, 1, 2]
    assert "d" not in names


def test_what_is_no_name_is_absent():
    names = TaskNames(["a"])
    assert 0 not in names
    with pytest.raises(IndexError, match="no task 1"):
        names.name(1)
    with pytest.raises(IndexError):
        names.name(-1)


def test_a_sequence_of_names_is_a_list_where_it_is_copied_or_written():
    sequence = TaskSequence(TaskNames(["a", "b", "c"]))
    assert (sequence[0], sequence[-1], sequence[1:], len(sequence), "b" in sequence) == ("a", "c", ["b", "c"], 3, True)
    config = CoLoRAConfig(tasks=["x"])
    config.tasks = sequence
    assert json.dumps(asdict(config)["tasks"]) == '["a", "b", "c"]'
    assert copy.deepcopy(config).tasks == ["a", "b", "c"]
