"""Writes small task files and reads them back, for the tests of reading."""

import json
from pathlib import Path

import pytest

from colora.errors import TaskFileError
from colora.tasks.read import read_tasks
from colora.tasks.schema import SPLITS, Example, Task, TaskSource

__all__ = ["everything", "faults_of", "read", "rows", "write"]


def write(path: Path, content: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return str(path)


def rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"input": f"question {i}", "output": f"answer {i}"} for i in range(start, start + count)]


def read(path: str, **options: object) -> Task:
    (task,) = read_tasks([TaskSource(path=path, **options)])
    return task


def faults_of(*sources: TaskSource) -> list[str]:
    with pytest.raises(TaskFileError) as caught:
        read_tasks(sources)
    return caught.value.faults


def everything(task: Task) -> set[Example]:
    return {example for split in SPLITS for example in task.splits[split]}
