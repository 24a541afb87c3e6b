"""The benchmark of a million tasks, as small as can be: real processes, real kills."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.import_graph import ROOT
from tests.helpers.run_files import save_base


@pytest.mark.slow
def test_a_killed_run_of_very_many_tasks_equals_one_of_the_drawn_tasks_alone(tmp_path):
    base, record = save_base(tmp_path / "base"), tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.adapter.million", "--folder", tmp_path / "x", "--record", record]
    command += ["--base", base, "--tasks", "2000", "--steps", "200", "--save-every", "20", "--compared", "30"]
    environment = os.environ | {
        "COLORA_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": f"{ROOT / 'src'}",
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(record.read_text())
    assert found["compared"]["equal"], found["compared"]["differing"]
    assert found["compared"]["tasks_compared"] == 30
    assert len(found["run"]["lives"]) == 2
    assert found["run"]["steps"] == 200
    whole, last = found["run"]["checkpoints"][0], found["run"]["checkpoints"][-1]
    assert 0 < last["bytes_of_cores"] < last["bytes_of_all_trained"] < whole["bytes_of_all_tasks"]
    assert (tmp_path / "x" / "alone.safetensors").is_file()
