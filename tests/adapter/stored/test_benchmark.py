"""The benchmark of stores, as small as can be: it measures every place, and its table has every column."""

import subprocess
import sys

from tests.helpers.import_graph import ROOT
from tests.helpers.run_files import save_base


def test_the_benchmark_of_stores_measures_all_places(tmp_path):
    base, record = save_base(tmp_path / "base"), tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.adapter.stored", "--base", base, "--folder", tmp_path]
    command += ["--tasks", "8", "20", "--rounds", "1", "--record", record]
    told = subprocess.run([*map(str, command)], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    assert lines[0] == [
        "tasks", "cores", "s a step, warm", "to 8 on the device", "cold", "optimiser, s", "first checkpoint",
        "next checkpoints", "bytes a task, untrained", "peak memory, GB",
    ]  # fmt: skip
    places = {(line[0], line[1]) for line in lines[2:]}
    assert places == {(tasks, place) for tasks in ("8", "20") for place in ("device", "memory", "disk")}
    for line in lines[2:]:
        empty = [name for name, cell in zip(lines[0], line, strict=True) if not cell]
        assert empty == ([] if line[1] == "disk" else ["cold"])
        if line[1] != "device":
            assert 20 < float(line[8]) < 100
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("colora-stored")] == []
