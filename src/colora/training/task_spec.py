"""What a run file may say of its tasks: each by itself, or all of them by one table."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from colora.tasks.column.source import Naming
from colora.training.fields import AUTO, Prompt, Spec

__all__ = ["TaskSpec", "TasksFromSpec"]


class TaskSpec(Spec):
    """One task: where its examples are and how many to use."""

    name: str | None = Field(
        None, description="Name of the task. Default: the file name without its ending, or the folder name."
    )
    path: str | None = Field(
        None,
        description=(
            "A .jsonl, .csv, .tsv, .json or .parquet file (or one with .gz after it), a folder of"
            " train/val/test files, or a folder written by `save_to_disk`. Relative to the YAML "
            "file."
        ),
    )
    dataset: str | None = Field(
        None, description="Use a dataset instead of a path: the first argument of `datasets.load_dataset`."
    )
    subset: str | None = Field(None, description="The configuration of the dataset, if it has several.")
    fields: dict[Literal["input", "output", "instruction"], str] = Field(
        {},
        description=(
            "Column names in the file, if they are not 'input', 'output' and 'instruction'. A "
            "dotted name such as question.text reaches into objects."
        ),
    )
    group_by: str | None = Field(
        None,
        description=(
            "A column, such as a person or a document. Examples with the same value in this column stay in one split."
        ),
    )
    instruction: str | None = Field(
        None, description="One instruction for all examples. It replaces the instructions in the file."
    )
    prompt: Prompt | None = Field(
        None, description=("The prompt of this task. It replaces the prompt of the run; auto is not allowed here.")
    )
    train: int | None = Field(None, ge=1, description="Number of training examples to use. Default: all.")
    val: int | None = Field(
        None,
        ge=0,
        description=("Number of validation examples to use. Default: all of a val file; 10 % if the splits are drawn."),
    )
    test: int | None = Field(
        None,
        ge=0,
        description=("Number of test examples to use. Default: all of a test file; 20 % if the splits are drawn."),
    )

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

    task: str = Field(..., min_length=1, description="The column that names the task of each row, such as user_id.")
    names: Naming = Field(
        "as_they_are",
        description=(
            "'as_they_are': the values of the column are the task names. 'hashed': the first 32 "
            "digits of their SHA-256 are the task names. Use 'hashed' for values that are not "
            "valid names, or that the bank must not reveal."
        ),
    )
    path: str | None = Field(
        None,
        description=(
            "A .jsonl, .csv, .tsv or .parquet file (or one with .gz after it), which is read in "
            "parts; a .json file; a folder of train/val/test files; or a folder written by "
            "`save_to_disk`. Relative to the YAML file."
        ),
    )
    dataset: str | None = Field(
        None, description="Use a dataset instead of a path: the first argument of `datasets.load_dataset`."
    )
    subset: str | None = Field(None, description="The configuration of the dataset, if it has several.")
    fields: dict[Literal["input", "output", "instruction"], str] = Field(
        {}, description="Column names of the table, as for tasks."
    )
    group_by: str | None = Field(
        None, description="A column. Rows of a task with the same value in this column stay in one split."
    )
    instruction: str | None = Field(
        None, description="One instruction for all examples. It replaces the instructions in the table."
    )
    train: int | None = Field(None, ge=1, description="Most training examples of a task to use. Default: all.")
    val: int | None = Field(
        None,
        ge=0,
        description=(
            "Validation examples of a task. Default: 10 %. A task with fewer examples than train,"
            " val and test ask for is divided by the default shares, and uses at most this many."
        ),
    )
    test: int | None = Field(
        None,
        ge=0,
        description=(
            "Test examples of a task. Default: 20 %. A task with too few examples is divided as described for val."
        ),
    )

    @model_validator(mode="after")
    def _one_source(self) -> "TasksFromSpec":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("expected exactly one of 'path' and 'dataset'")
        return self
