"""A folder as a user might have it: four date tasks of 16 examples as JSONL files, and a run file.

    python -m benchmarks.compare.own_tasks FOLDER
    colora compare FOLDER/run.yaml --minutes 15

On two idle cores the second command is to end in a verdict within its 15 minutes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from colora.tasks.families.make import make_tasks

__all__ = ["write_own_tasks"]

TASKS = ("date-es", "date-pt", "date-it", "date-ca")
TRAIN, TEST = 16, 24


def write_own_tasks(
    folder: Path, tasks: Sequence[str] = TASKS, train: int = TRAIN, test: int = TEST, **run: Any
) -> Path:
    """Write the task files and the run file, with these fields in it, and return the run file."""
    for task in make_tasks(tasks, examples=train, val=0, test=test, seed=0, regime="implicit"):
        (folder / task.name).mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            rows = [{"input": one.input, "output": one.outputs[0]} for one in task.splits[split]]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / task.name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    # Without validation files none are drawn: 16 examples are few, and rates are chosen by cross-validation.
    value = {
        "base": "smollm2",
        "chat_template": False,
        "output": str(folder / "run"),
        "tasks": [{"path": name, "val": 0} for name in tasks],
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(value | run), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write_own_tasks(Path(sys.argv[1])))
