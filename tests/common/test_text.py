"""Long lists in messages."""

import pytest

from colora.common.text import listed, shortened


@pytest.mark.parametrize(
    ("items", "most", "shown"),
    [
        ([], 2, []),
        (["a"], 2, ["a"]),
        (["a", "b"], 2, ["a", "b"]),
        (["a", "b", "c"], 2, ["a", "b", "... and 1 more"]),
        (["a", "b", "c"], 0, ["... and 3 more"]),
    ],
)
def test_what_is_left_out_is_counted(items, most, shown):
    assert shortened(items, most) == shown
    assert shortened(iter(items), most) == shown
    assert listed(items, most) == ", ".join(shown)
