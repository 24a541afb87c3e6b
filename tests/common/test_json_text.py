"""JSON that people write: what one object says twice, and what a reader's limits would hide."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colora.common.json_text import JsonFault, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([None, 1]))
def test_what_is_said_once_is_read_as_json_reads_it(value, indent):
    assert parse_json(json.dumps(value, indent=indent)) == value


@given(st.text(max_size=4), VALUES, st.text(max_size=6), st.integers(0, 3))
def test_a_key_said_twice_is_found_with_its_lines_wherever_it_stands(key, value, other, depth):
    pair = f"{json.dumps(key)}: {json.dumps(value)}"
    inner = f'{{{pair},\n{json.dumps("x" + key + other)}: [1, {{"]": "{{"}}],\n{pair}}}'
    text = "[" * depth + inner + "]" * depth
    with pytest.raises(JsonFault) as caught:
        parse_json(text)
    assert str(caught.value) == f'the key "{key}" twice in one object, in lines 1 and 3'
    assert caught.value.line == 3


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ('{"a": 1,\n "b" 2}', "Expecting ':' delimiter", 2, 6),
        ("[" * 100_000, "brackets nested too deeply", 0, 0),
        ("[" * 100_000 + "]" * 100_000, "brackets nested too deeply", 0, 0),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits", 0, 0),
        ('{"a": 1, "\\u0061": 2}', 'the key "a" twice in one object', 1, 0),
    ],
)
def test_faults(text, message, line, column):
    with pytest.raises(JsonFault) as caught:
        parse_json(text)
    assert (caught.value.message, caught.value.line, caught.value.column) == (message, line, column)
