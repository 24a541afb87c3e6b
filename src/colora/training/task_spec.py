"""What a run file may say of its tasks: each by itself, or all of them by one table."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from colora.tasks.column.source import Naming
from colora.training.fields import AUTO, Prompt, Spec

__all__ = ["TaskSpec", "TasksFromSpec"]


class TaskSpec(Spec):
    """One task: where its examples are and how many to use."""

    name: str | None = Field(None, description="Name of the task; by default the file's stem or the folder's name.")
    path: str | None = Field(
        None,
        description="A .jsonl, .csv, .tsv, .json or .parquet file (or one with .gz after it), a folder of "
        "train/val/test files, or one of `save_to_disk`; relative to the YAML file.",
    )
    dataset: str | None = Field(None, description="Instead of a path: what `datasets.load_dataset` takes first.")
    subset: str | None = Field(None, description="The dataset's configuration, if it has several.")
    fields: dict[Literal["input", "output", "instruction"], str] = Field(
        {},
        description="Names of the file's columns, where they are not 'input', 'output' and 'instruction'; a dotted "
        "name such as question.text goes down into objects.",
    )
    group_by: str | None = Field(
        None,
        description="A column, such as a person or a document: examples with the same value in it stay in one split.",
    )
    instruction: str | None = Field(None, description="One instruction for all examples, instead of the file's.")
    prompt: Prompt | None = Field(None, description="The prompt of this task, in place of the run's; not auto.")
    train: int | None = Field(None, ge=1, description="Training examples to use; all by default.")
    val: int | None = Field(None, ge=0, description="Validation examples to use; all, or 10 % where drawn, by default.")
    test: int | None = Field(None, ge=0, description="Test examples to use; all, or 20 % where drawn, by default.")

    @field_validator("prompt")
    @classmethod
    def _decided(cls, value: str | None) -> str | None:
        if value == AUTO:
            raise ValueError("auto is decided for the run as a whole: set prompt: auto at the top, or name one here")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "TaskSpec":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("expected exactly one of 'path' and 'dataset'")
        return self


class TasksFromSpec(Spec):
    """One table for all tasks, each row with the task that it belongs to."""

    task: str = Field(..., min_length=1, description="The column that names the task of a row, such as user_id.")
    names: Naming = Field(
        "as_they_are",
        description="'as_they_are': the column's values are the names of the tasks. 'hashed': the first 32 digits of "
        "their SHA-256 are, for values that cannot be names, or that a bank must not tell.",
    )
    path: str | None = Field(
        None,
        description="A .jsonl, .csv, .tsv or .parquet file (or one with .gz after it), read some rows at a time; a "
        ".json file; a folder of train/val/test files, or one of `save_to_disk`; relative to the YAML file.",
    )
    dataset: str | None = Field(None, description="Instead of a path: what `datasets.load_dataset` takes first.")
    subset: str | None = Field(None, description="The dataset's configuration, if it has several.")
    fields: dict[Literal["input", "output", "instruction"], str] = Field(
        {}, description="Names of the columns, as in tasks."
    )
    group_by: str | None = Field(None, description="As in tasks: rows of a task with the same value stay in one split.")
    instruction: str | None = Field(None, description="One instruction for all examples, instead of the table's.")
    train: int | None = Field(None, ge=1, description="Training examples of a task to use at most; all by default.")
    val: int | None = Field(
        None, ge=0, description="Validation examples of a task that has as many as train, val and test ask for; 10 %."
    )
    test: int | None = Field(None, ge=0, description="Test examples of such a task; 20 % by default, and of others.")

    @model_validator(mode="after")
    def _one_source(self) -> "TasksFromSpec":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("expected exactly one of 'path' and 'dataset'")
        return self
