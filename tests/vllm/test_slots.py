"""Slots of adapters: all of a step are there at once, and the one that was used least recently makes room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colora.vllm.slots import Slots


def test_slots_are_filled_and_the_least_recently_used_makes_room():
    slots = Slots(2)
    assert slots.place([7]) == [7]
    assert slots.place([8, 7]) == [8]
    assert slots.place([7]) == []
    eight = slots[8]
    assert slots.place([9]) == [9]
    assert slots[9] == eight
    assert 8 not in slots
    assert 7 in slots
    assert slots.remove(7)
    assert not slots.remove(7)
    slots.clear()
    assert len(slots) == 0
    assert slots.place([1, 2]) == [1, 2]


def test_more_than_there_are_slots_is_refused_and_changes_nothing():
    slots = Slots(2)
    slots.place([1, 2])
    with pytest.raises(ValueError, match="at most 2 adapters in a step, found 3"):
        slots.place([1, 3, 4])
    assert {1, 2} == {adapter for adapter in range(9) if adapter in slots}


@given(st.integers(1, 5), st.lists(st.lists(st.integers(1, 12), max_size=5, unique=True), max_size=30))
def test_no_two_adapters_share_a_slot_and_none_has_slot_zero(number, steps):
    slots = Slots(number)
    for step in steps:
        before = {adapter: slots[adapter] for adapter in range(13) if adapter in slots}
        if len(step) > number:
            with pytest.raises(ValueError, match="adapters in a step"):
                slots.place(step)
            continue
        placed = slots.place(step)
        there = [slots[adapter] for adapter in range(13) if adapter in slots]
        assert len(set(there)) == len(there) <= number
        assert all(1 <= slot <= number for slot in there)
        assert all(adapter in slots for adapter in step)
        assert set(placed) == set(step) - before.keys()
        assert all(slots[adapter] == before[adapter] for adapter in step if adapter in before)
