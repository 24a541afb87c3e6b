"""What a run file may say: its fields, their types, defaults and meaning."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from colora.evaluation.metrics import metric_options
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.training.adapter_spec import AdapterSpec
from colora.training.federation_spec import FederationSpec
from colora.training.fields import (
    AUTO,
    FEDERATED_AUTO,
    Count,
    Groups,
    MetricOption,
    Prompt,
    Rate,
    Spec,
    allowed_prompt,
)
from colora.training.hardware import HardwareSpec, Precision, Stored
from colora.training.rates import CORE_LR, FEDERATED_CORE_LR, FEDERATED_LR, LR
from colora.training.task_spec import TasksFromSpec, TaskSpec

__all__ = [
    "AUTO",
    "FEDERATED_AUTO",
    "SPECTRAL",
    "AdapterSpec",
    "EvaluationSpec",
    "FederatedTrainingSpec",
    "FederationConfig",
    "FederationSpec",
    "RunConfig",
    "TaskSpec",
    "TasksFromSpec",
    "TrainingSpec",
]

ON_DEVICE = 1024  # tasks: up to here a step costs no more for the others
MEASURED = 1000  # tasks of a column, where a run file names no number
MOST_WARMUP = 5  # steps, where a run file names none
SPECTRAL = ("spectral", "spectral_neutral", "spectral_factors")
"""Values of `adapter.init_weights` that begin with the tasks' gradients; see `colora.training.starts`."""


class TrainingSpec(HardwareSpec):
    """How long, how fast, in which order."""

    steps: Count = Field(200, description="Number of optimiser steps.")
    rows: Count = Field(12, description="Rows in an optimiser step, over all tasks, devices and micro-batches.")
    accumulation: Count = Field(1, description="Micro-batches per step. More micro-batches need less memory.")
    lr: Rate = Field(
        LR, description=(f"Learning rate of the shared factors A and B. Default in a federation: {FEDERATED_LR}.")
    )
    core_lr: Rate = Field(
        CORE_LR,
        description=(
            "Learning rate of the cores. With Adam, use 10 to 30 times lr. Default in a "
            f"federation: {FEDERATED_CORE_LR}."
        ),
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description=(
            "Decoupled weight decay of A and B: each step subtracts lr × weight_decay of their "
            "values. By default A and B decay by a quarter over the whole run; in a federation or"
            " with start_from they do not decay."
        ),
    )
    core_weight_decay: float = Field(
        0.0, ge=0, description="Weight decay of the cores of those tasks that are in the batch."
    )
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How both learning rates fall over the run."
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description=(
            f"Steps in which the learning rates rise from zero. Default: {MOST_WARMUP}, or a tenth"
            " of the steps if that is less."
        ),
    )
    beta2: float = Field(
        0.95,
        ge=0,
        lt=1,
        description=("beta2 of Adam: how long Adam remembers squared gradients. 0.999 is too long for short runs."),
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient to this norm. 0: do not clip.")
    schedule: Literal["joint", "alternating"] = Field(
        "joint",
        description=(
            "'joint': train cores and shared factors together. 'alternating': train them in "
            "turns, as the paper's alternating minimisation does."
        ),
    )
    turn: Count = Field(5, description="Steps in one turn, with schedule: alternating.")
    mixing: Literal["uniform", "proportional", "temperature"] = Field(
        "uniform",
        description=(
            "Share of each task in the batches. 'uniform': the same for all tasks. "
            "'proportional': in proportion to its n examples. 'temperature': in proportion to n "
            "** (1 / temperature)."
        ),
    )
    temperature: Rate = Field(2.0, description="Temperature of mixing: temperature.")
    weighting: Literal["task", "token", "example"] = Field(
        "task",
        description=(
            "What the loss averages. 'task': first the tokens of each task in the step, then the "
            "tasks. 'token': all tokens. 'example': the rows."
        ),
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        512,
        description=(
            "Most tokens of prompt and output together. Longer inputs are cut at their beginning,"
            " and the run reports how many."
        ),
    )
    eval_every: int | None = Field(
        None, ge=1, description="Measure the validation loss every this many steps. Default: never."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description=("Stop training a task after this many measurements without improvement. Needs eval_every."),
    )
    cores: Literal["auto", "device", "memory", "disk"] = Field(
        "auto",
        description=(
            "Where the cores are during training. The cores of the tasks in a step are always on "
            f"the device. 'auto': all on the device up to {ON_DEVICE} tasks; for more tasks in "
            "memory, or on disk if memory is too small."
        ),
    )
    save_every: Count = Field(50, description="Save a checkpoint every this many steps.")
    keep: Count = Field(2, description="Number of checkpoints to keep.")
    log_every: Count = Field(10, description="Log the loss every this many steps.")
    tensorboard: bool = Field(False, description="Write TensorBoard events to OUTPUT/logs.")

    @property
    def warmup(self) -> int:
        """The steps of warm-up, decided."""
        return min(MOST_WARMUP, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSpec":
        faults = []
        if self.rows % self.accumulation:
            faults.append(f"rows ({self.rows}) must be a multiple of accumulation ({self.accumulation})")
        if self.patience is not None and self.eval_every is None:
            faults.append("patience needs eval_every")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class EvaluationSpec(Spec):
    """What is measured after training, and by `colora evaluate`."""

    metrics: list[MetricOption] = Field(
        [*metric_options()],
        description="What to measure: ROUGE-L and exact match of greedy outputs, and token likelihood.",
    )
    split: Literal["train", "val", "test"] = Field("test", description="The split to measure on.")
    limit: int | None = Field(None, ge=1, description="Measure at most this many examples of each task. Default: all.")
    tasks: int | None = Field(
        None,
        ge=1,
        description=(
            "Measure at most this many tasks, drawn by the seed from the tasks that have "
            f"examples. Default: all tasks, or {MEASURED} with tasks_from."
        ),
    )
    max_new_tokens: Count = Field(64, description="Most tokens to generate for an output.")
    rows: Count = Field(16, description="Rows in a batch.")


class RunConfig(Spec):
    """A run: a base model, tasks, and how to train them together."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["tasks"]}, {"required": ["tasks_from"]}]})

    base: str = Field("smollm2", description="The base model: a local folder, a .gguf file, a hub id, or 'smollm2'.")
    chat_template: bool = Field(
        True,
        description=(
            "Whether prompts may use the tokenizer's chat template. If true and `prompt` is not set, they use it."
        ),
    )
    prompt: Prompt | None = Field(
        None,
        description=(
            f"How an example becomes one text. A template with {{input}}, {{output}} and perhaps "
            f"{{instruction}} (spaces before {{output}} belong to the answer); a named template "
            f"({', '.join(NAMED_TEMPLATES)}); chat, the tokenizer's chat template; or auto, the named template under "
            "which the base model finds the training answers likeliest. Default: as chat_template"
            " says."
        ),
    )
    output: str = Field(..., min_length=1, description="Folder of this run, relative to the current folder.")
    seed: int = Field(
        0, ge=0, description="Seed of everything that is drawn: splits, order of examples, initial weights."
    )
    start_from: str | None = Field(
        None,
        description=(
            "Start from this bank or run: from its A and B, and from its core for each task that "
            "it has. New tasks start at the mean core. The adapter settings of that bank apply. A"
            " path is relative to the YAML file; hf://ORG/BANK names a bank on the hub."
        ),
    )
    grouping: Groups = Field(
        "none",
        description=(
            "'none': one bank for all tasks. 'auto': a bank for each group of tasks with similar "
            "gradients at the base model, in OUTPUT/groups. Or the groups themselves, as lists of"
            " task names."
        ),
    )
    tasks_from: TasksFromSpec | None = Field(
        None,
        description=(
            "One table for all tasks, with a column that names the task of each row. Use it instead of tasks."
        ),
    )
    tasks: list[TaskSpec] = Field(
        [], validate_default=True, description="The tasks, one by one. A run file needs either tasks or tasks_from."
    )
    shared_splits: bool = Field(
        False,
        description=(
            "Put an input that several tasks have, or a shared value of their `group_by`, into "
            "the same split in each task, so that no task is tested on what another task is "
            "trained on."
        ),
    )
    shared_with: list[TaskSpec] = Field(
        [],
        description=(
            "With shared_splits: tasks that this run does not train, but whose splits count too, "
            "such as the tasks of an existing bank."
        ),
    )
    examples_a_task: list[Count] | None = Field(
        None,
        description=(
            "For `colora compare`: smaller numbers of training examples to measure with as well, such as [8, 16]."
        ),
    )
    adapter: AdapterSpec = Field(default_factory=AdapterSpec, description="Settings of the bank.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="Settings of the training.")
    evaluation: EvaluationSpec = Field(
        default_factory=EvaluationSpec, description="What to measure after the training."
    )
    federation: FederationSpec = Field(default_factory=FederationSpec, description="Settings for `colora federate`.")

    @field_validator("prompt")
    @classmethod
    def _no_contradiction(cls, value: str | None, info: ValidationInfo) -> str | None:
        return allowed_prompt(value, info)

    @field_validator("tasks")
    @classmethod
    def _no_contradictions(cls, value: list[TaskSpec], info: ValidationInfo) -> list[TaskSpec]:
        if "tasks_from" in info.data and bool(value) == (info.data["tasks_from"] is not None):
            raise ValueError(f"expected either tasks or tasks_from, found {'both' if value else 'neither'}")
        for number, task in enumerate(value):
            allowed_prompt(task.prompt, info, f"{number}.prompt: ")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        faults = []
        if self.tasks_from is not None:
            one_by_one = {"grouping": self.grouping != "none", "shared_splits": self.shared_splits}
            faults += [f"{name} needs tasks and not tasks_from" for name, is_set in one_by_one.items() if is_set]
        if self.shared_with and not self.shared_splits:
            faults.append("shared_with: says whose splits are shared, and needs shared_splits: true")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class FederatedTrainingSpec(TrainingSpec):
    """The same in a federation, where other rates are the default, and the same numbers on all devices."""

    lr: Rate = FEDERATED_LR
    core_lr: Rate = FEDERATED_CORE_LR
    precision: Precision = "fp32"
    base_dtype: Stored = "fp32"


class FederationConfig(Spec):
    """What the server and all clients of a federation agree on: a run file without tasks, output and evaluation."""

    base: str = "smollm2"
    chat_template: bool = True
    prompt: Prompt | None = None
    seed: int = Field(0, ge=0)
    adapter: AdapterSpec = Field(default_factory=AdapterSpec)
    training: FederatedTrainingSpec = Field(default_factory=FederatedTrainingSpec)
    federation: FederationSpec = Field(default_factory=FederationSpec)

    @classmethod
    def of(cls, config: RunConfig) -> "FederationConfig":
        """What the federation of a run file agrees on."""
        return cls.model_validate(config.model_dump(include=set(cls.model_fields), exclude_unset=True))

    @field_validator("prompt")
    @classmethod
    def _agreed(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value == AUTO:
            raise ValueError(FEDERATED_AUTO)
        return allowed_prompt(value, info)
