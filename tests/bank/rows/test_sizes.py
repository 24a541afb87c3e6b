"""A bank of many tasks on disk: its memory is that of an index and of a few cores, and single tasks are read alone."""

import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

import colora
from colora.adapter.task_names import TaskNames, TaskSequence
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.bank.overview import task_page
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.transfer.neighbours import nearest_tasks
from colora.transfer.similarity import bank_similarity
from tests.helpers.dense_oracle import make_bank
from tests.helpers.row_banks import base_in
from tests.helpers.run_files import cli, refusal
from tests.helpers.tiny import tiny_llama

TASKS = 40_000
NUMBERS = 14  # of a core: one of each layer


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Of 40 000 tasks with random cores 1 × 1."""
    folder = tmp_path_factory.mktemp("many")
    model = make_bank(tiny_llama(), [f"user-{number}" for number in range(4)], r=1)
    stored = colora.store_cores(model, room=4)
    model.base_model.add_tasks([f"user-{number}" for number in range(4, TASKS)])
    rows = np.zeros((TASKS, stored.table.width), dtype=np.float32)
    rows[:, :NUMBERS] = np.random.default_rng(0).standard_normal((TASKS, NUMBERS))
    stored.set_rows(np.arange(TASKS), rows)
    save_bank(model, folder / "bank", BankInfo(base_in(folder), chat_template=False, max_length=96))
    return folder / "bank"


def used(work):
    """The most memory of Python and NumPy that some work takes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_looking_up_and_listing_makes_no_object_a_task(bank):
    saved = SavedBank(bank)
    saved.check()

    def work():
        for number in range(0, TASKS, 400):
            assert saved.index[f"user-{number}"] == number
        assert "nobody" not in saved.index
        assert task_page(saved.tasks, 300).names[0] == "user-29900"
        assert task_page(saved.tasks, 1, "user-1234*").found == 11

    assert used(work) < TASKS * 8  # a list of them alone has eight bytes for each


def test_opening_and_checking_makes_no_object_a_task(bank):
    def work():
        saved = SavedBank(bank)
        saved.check()
        assert saved.info.examples.get("user-7") is None

    work()  # what is imported is not counted
    assert used(work) < TASKS * 40  # less than a string for each


def test_names_are_the_same_in_another_process(bank):
    """The hashes are of a file."""
    code = f"from colora.bank.tensors import SavedBank; print(SavedBank({str(bank)!r}).index['user-31415'])"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        assert done.stdout == "31415\n"


def test_the_index_of_a_task_is_small(bank):
    """Letters, end, hash, order, shard, row, rank, digest, examples, seen."""
    size = (bank / "cores" / "tasks.safetensors").stat().st_size
    assert size < TASKS * 80
    rows = sum(one.stat().st_size for one in (bank / "cores").glob("*") if one.name != "tasks.safetensors")
    assert rows < TASKS * NUMBERS * 4 * 1.01
    beside = sum(one.stat().st_size for one in bank.glob("*") if one.is_file())
    assert beside < 100_000


MEMORY = """
import re, sys
from pathlib import Path
from colora.bank.load import load_bank, save_bank
def own():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
model, _, info = load_bank(Path(sys.argv[1]), tasks=["user-1"])
before = own()
model, _, info = load_bank(Path(sys.argv[1]))
loaded = own()
model.base_model.core("user-39999")
print(loaded - before, own() - loaded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_memory_of_what_is_kept_of_a_task(bank):
    done = subprocess.run([sys.executable, "-c", MEMORY, bank], check=True, capture_output=True, text=True)
    loading, reading = map(int, done.stdout.split())
    assert loading < TASKS * 100 + 20e6
    assert reading < 2e6


def test_names_without_some_are_those_of_the_rest():
    names = [f"n{number}" * (number % 3 + 1) for number in range(500)]
    gone = [0, 17, 18, 499]
    left = TaskNames(names).without(gone)
    expected = [name for number, name in enumerate(names) if number not in gone]
    assert list(left) == expected
    assert [left[name] for name in expected] == list(range(496))
    assert all(names[number] not in left for number in gone)
    assert TaskSequence(left)[-1] == expected[-1]


# ---- similarity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [False, True])
def test_neighbours_are_those_of_all_cosines(bank, tmp_path, centred, monkeypatch):
    monkeypatch.setattr("colora.transfer.neighbours.CHUNK_BYTES", 8 * 4 * 4 * 14 * 3)  # three tasks at a time
    names = [f"t{number}" for number in range(11)]
    save_bank(make_bank(tiny_llama(), names), tmp_path / "bank", BankInfo("base"))
    whole = bank_similarity(tmp_path / "bank", angles=False)
    whole = whole.centred() if centred else whole
    found = nearest_tasks(tmp_path / "bank", ["t4", "t9"], 3, centred=centred)
    assert found.tasks == 11
    assert list(found.nearest) == ["t4", "t9"]
    for name, others in found.nearest.items():
        expected = whole.nearest(name)[:3]
        assert [other for other, _ in others] == [other for other, _ in expected]
        assert [value for _, value in others] == pytest.approx([value for _, value in expected], abs=1e-9)


def test_neighbours_of_many_tasks_are_found_in_chunks(bank):
    saved = SavedBank(bank)
    found = nearest_tasks(saved, ["user-20"], 2)
    cores = torch.stack([torch.cat([one.flatten() for one in saved.core(k).values()]) for k in range(0, 2000)]).double()
    lengths = torch.stack([layer.A.double().norm() * layer.B.double().norm() for layer in saved.layers.values()])
    flat = torch.nn.functional.normalize(cores * lengths, dim=1)
    cosines = flat @ flat[20]
    cosines[20] = -1
    best = max(value for _, value in found.nearest["user-20"])
    assert best >= float(cosines.max()) - 1e-9
    assert re.fullmatch(r"user-\d+", found.nearest["user-20"][0][0])
    assert len(nearest_tasks(saved, sample=3).nearest) == 3


def test_too_many_tasks_are_not_compared_each_with_each(bank):
    with pytest.raises(ConfigError, match=r"has 40000 tasks, more than 2000.*nearest_tasks"):
        bank_similarity(bank)
    told = cli("similarity", bank, "--task", "user-7")
    assert told.exit_code == 0
    assert "nearest of 40000 tasks, for 1 of them" in " ".join(told.output.split())
    assert "only nearest neighbours are computed" in refusal("similarity", bank, "--groups", "3")
