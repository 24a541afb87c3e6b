"""What a user says of one table that holds the examples of many tasks, a column of it naming the task."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

from colora.tasks.schema import TaskSource

__all__ = ["Naming", "TasksSource"]

Naming = Literal["as_they_are", "hashed"]


@dataclass(frozen=True)
class TasksSource:
    """Where the examples of many tasks are. Exactly one of `path` and `dataset` is needed; it is not checked here.

    Attributes:
        task: the column that names the task of each row, such as "user_id": texts or whole numbers.
        names: "as_they_are": the column's values are the tasks' names; "hashed": the first 32 hexadecimal digits of
            their SHA-256 are.
        path, dataset, subset, fields, instruction, group_by: as of `TaskSource`, for all tasks alike.
        train, val, test: as of `TaskSource`, of each task that has so many examples; of another all three are drawn by
            the default shares, and at most so many are used. 0: none.
    """

    task: str
    names: Naming = "as_they_are"
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None
    group_by: str | None = None

    @cached_property
    def each(self) -> TaskSource:
        """The same for a single task."""
        common = {one.name for one in fields(TaskSource)} & {one.name for one in fields(self)}
        return TaskSource(**{name: getattr(self, name) for name in common})

    @property
    def origin(self) -> str:
        """The path or the dataset, for messages and records."""
        return self.each.origin
