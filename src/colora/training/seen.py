"""Whether tasks of a run are tested on what others of it are trained on."""

from collections.abc import Sequence

from colora.tasks.column.tasks import ColumnTasks
from colora.tasks.schema import Task
from colora.tasks.splits.shared import seen_note

__all__ = ["run_seen_note"]


def run_seen_note(tasks: Sequence[Task]) -> str | None:
    """A sentence for users; None if there is nothing to say. Of a column's tasks it has been counted already."""
    return tasks.seen_note() if isinstance(tasks, ColumnTasks) else seen_note(tasks)
