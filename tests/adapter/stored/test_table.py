"""`CoreTable` against a dict."""

import os

import numpy as np
import pytest

from colora.adapter.stored.table import BLOCK_ROWS, CoreTable
from colora.errors import CheckpointError

WIDTH = 5


@pytest.fixture(params=["memory", "file"])
def make(request, tmp_path):
    """A function that makes an empty table."""
    return lambda tasks: CoreTable(WIDTH, tasks, np.float64, tmp_path if request.param == "file" else None)


def test_rows_are_those_that_were_written_last_whatever_comes_and_goes(make):
    generator = np.random.default_rng(0)
    table, expected = make(50), [None] * 50
    for _ in range(300):
        match generator.integers(4):
            case 0:
                table.append(2)
                expected += [None, None]
            case 1 if len(expected) > 1:
                gone = int(generator.integers(len(expected)))
                table.remove(gone)
                del expected[gone]
            case _:
                some = generator.permutation(len(expected))[:4]
                rows = generator.normal(size=(len(some), WIDTH))
                table.write(some, rows)
                for task, row in zip(some.tolist(), rows, strict=True):
                    expected[task] = row
        everything = np.arange(len(expected))
        assert len(table) == len(expected)
        assert table.written(everything).tolist() == [row is not None for row in expected]
        assert np.array_equal(table.read(everything), [np.zeros(WIDTH) if row is None else row for row in expected])


def test_more_rows_than_a_block(make):
    table, some = make(10_000), np.arange(0, 10_000, 11)
    assert len(some) > 3 * BLOCK_ROWS
    table.write(some, np.outer(some, np.ones(WIDTH)))
    assert np.array_equal(table.read(some[::-1])[:, 0], some[::-1])


def test_a_file_takes_the_room_of_the_rows_that_were_written(tmp_path):
    table = CoreTable(1000, 1_000_000, folder=tmp_path)
    table.write(np.array([999_999, 3]), np.ones((2, 1000)))
    assert os.fstat(table._shelves[0].rows.file.fileno()).st_size == 2 * 1000 * 4
    assert not list(tmp_path.iterdir())  # nothing is left behind by a process that is killed


def test_a_file_that_is_cut_short_or_cannot_be_written_is_told(tmp_path):
    table = CoreTable(WIDTH, 3, folder=tmp_path)
    table.write(np.array([0, 1]), np.ones((2, WIDTH)))
    table._shelves[0].rows.file.truncate(30)
    with pytest.raises(CheckpointError, match="cut short at row 1"):
        table.read(np.array([0, 1]))
    (tmp_path / "plain").write_text("")
    with pytest.raises(CheckpointError, match="plain: cores cannot be written there"):
        CoreTable(WIDTH, 3, folder=tmp_path / "plain")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_told_and_rows_of_before_stay(tmp_path):
    table = CoreTable(WIDTH, 3, folder=tmp_path)
    table.write(np.array([0]), np.ones((1, WIDTH)))
    kept = table._shelves[0].rows.file
    with (
        open("/dev/full", "r+b", buffering=0) as table._shelves[0].rows.file,
        pytest.raises(CheckpointError, match="No space"),
    ):
        table.write(np.array([1]), np.ones((1, WIDTH)))
    table._shelves[0].rows.file = kept
    assert table.written(np.arange(3)).tolist() == [True, False, False]
    assert table.read(np.array([0])).sum() == WIDTH
