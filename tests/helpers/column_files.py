"""A table whose column names the task of a row, and the same rows as files of their own."""

import json
import random
from pathlib import Path
from typing import Any

__all__ = ["shuffled_rows", "write_apart", "write_rows"]


def shuffled_rows(tasks: int = 50, most: int = 30, inputs: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of many tasks, each of 1 to `most` rows, in one order by chance; some inputs stand in several tasks."""
    rng = random.Random(seed)
    rows = [
        {"user_id": f"user {task}", "input": f"q {rng.randrange(inputs)}", "output": f"a{task} {n}", "doc": n % 5}
        for task in range(tasks)
        for n in range(rng.randrange(1, most + 1))
    ]
    rng.shuffle(rows)
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write them as JSON Lines, and return the file's path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_apart(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Write the rows of each task into a file of its own, and return the names of the tasks in order of appearance."""
    names = list(dict.fromkeys(row["user_id"] for row in rows))
    for name in names:
        write_rows(folder / f"{name}.jsonl", [row for row in rows if row["user_id"] == name])
    return names
