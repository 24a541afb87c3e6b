"""What a run file may say: its fields, their types, defaults and meaning."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from colora.adapter.config import InitWord
from colora.evaluation.metrics import metric_options
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.training.fields import (
    AUTO,
    FEDERATED_AUTO,
    Count,
    Groups,
    MetricOption,
    Names,
    Prompt,
    Rate,
    Share,
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


class AdapterSpec(Spec):
    """The bank; see `CoLoRAConfig`."""

    r: Count = Field(16, description="Rank of the shared factors; each task has r × r numbers per layer.")
    lora_alpha: Rate = Field(
        default_factory=lambda others: float(others["r"]),
        description="Scale: updates are multiplied by lora_alpha / r; r by default.",
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / √r instead.")
    lora_dropout: Share = Field(0.0, description="Dropout on the adapters' input while training.")
    target_modules: Names = Field("all-linear", description="Layers to adapt, by name or expression.")
    target_parameters: list[str] | None = Field(
        None,
        description="Fused weights of experts to adapt as well, such as [experts.gate_up_proj, experts.down_proj].",
    )
    exclude_modules: Names | None = Field(None, description="Layers to leave out, by name or expression.")
    layers_to_transform: list[int] | None = Field(None, description="Adapt only the layers of these numbers.")
    modules_to_save: list[str] | None = Field(None, description="Further modules to train in full, for all tasks.")
    init_rotation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the r directions in which each core starts as a rotation of its own, so that tasks that "
        "contradict each other do not cancel; 0: all start at the identity.",
    )
    init_weights: Literal["kaiming", InitWord, "spectral", "spectral_neutral", "spectral_factors"] = Field(
        "kaiming",
        description="How A starts; or A, B and cores by the tasks' gradients at the base model, for a pass or two "
        "over a few examples of each: a small step down them, or none (neutral: A and cores; factors: A alone).",
    )


class TrainingSpec(HardwareSpec):
    """How long, how fast, in which order."""

    steps: Count = Field(200, description="Optimiser steps.")
    rows: Count = Field(12, description="Rows of an optimiser step, over all tasks, devices and accumulation.")
    accumulation: Count = Field(1, description="Micro-batches per step; more need less memory.")
    lr: Rate = Field(
        LR, description=f"Learning rate of the shared factors A and B; {FEDERATED_LR} by default in a federation."
    )
    core_lr: Rate = Field(
        CORE_LR,
        description="Learning rate of the cores; about 10 to 30 times lr suits Adam. "
        f"{FEDERATED_CORE_LR} by default in a federation.",
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Decoupled weight decay of A and B: a step takes lr times it; by default a quarter of both in the "
        "whole run, and nothing in a federation or with start_from.",
    )
    core_weight_decay: float = Field(0.0, ge=0, description="The same for cores of tasks that are in the batch.")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="How both rates fall.")
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps in which the rates rise from zero; 5 by default, and fewer where steps are few."
    )
    beta2: float = Field(
        0.95, ge=0, lt=1, description="Of Adam: how long its second moment remembers; 0.999 is too long for short runs."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient to this norm; 0 does not clip.")
    schedule: Literal["joint", "alternating"] = Field(
        "joint", description="Cores and shared factors together, or in turns (the paper's alternating minimisation)."
    )
    turn: Count = Field(5, description="Steps of one turn, if alternating.")
    mixing: Literal["uniform", "proportional", "temperature"] = Field(
        "uniform", description="Share of each task in the batches: equal, by its examples, or n ** (1/temperature)."
    )
    temperature: Rate = Field(2.0, description="Of mixing by temperature.")
    weighting: Literal["task", "token", "example"] = Field(
        "task", description="The loss is the mean over the step's tasks of their mean token loss, over tokens, or rows."
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        512, description="Tokens of prompt and output; longer inputs are cut from their beginning and reported."
    )
    eval_every: int | None = Field(None, ge=1, description="Measure the validation loss every so many steps.")
    patience: int | None = Field(
        None, ge=1, description="Stop a task after so many measurements without improvement; needs eval_every."
    )
    cores: Literal["auto", "device", "memory", "disk"] = Field(
        "auto",
        description="Where the cores are while they are trained; those of a step's tasks are on the device. "
        f"'auto': on the device up to {ON_DEVICE} tasks, and beyond in memory, or on disk where memory has no room.",
    )
    save_every: Count = Field(50, description="Steps between checkpoints.")
    keep: Count = Field(2, description="Checkpoints to keep.")
    log_every: Count = Field(10, description="Steps between logged losses.")
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
        [*metric_options()], description="ROUGE-L and exact match of greedy outputs, token likelihood."
    )
    split: Literal["train", "val", "test"] = Field("test", description="The examples to measure on.")
    limit: int | None = Field(None, ge=1, description="At most so many examples of each task.")
    tasks: int | None = Field(
        None,
        ge=1,
        description="Measure at most so many tasks, drawn by seed from those that have examples; all by default, and "
        f"{MEASURED} of tasks_from.",
    )
    max_new_tokens: Count = Field(64, description="Longest output to generate.")
    rows: Count = Field(16, description="Rows of a batch.")


class FederationSpec(Spec):
    """How clients train together without their text or cores leaving home. Learning rates are those of `training`."""

    rounds: Count = Field(30, description="Rounds.")
    schedule: Literal["simultaneous", "alternating"] = Field(
        "simultaneous", description="Both shared factors in every round, or one a round, B and A in turns."
    )
    order: Literal["together", "core_first"] = Field(
        "together", description="Core and factors move in all local steps of a round; or the core first, then these."
    )
    core_steps: int = Field(1, ge=0, description="Local steps of the core a round; 0 leaves cores at the identity.")
    local_steps: Count = Field(2, description="Local steps of the factors; 'together' makes core_steps + local_steps.")
    rows: Count = Field(4, description="Rows of a local step.")
    factor_moments: Literal["fresh", "kept"] = Field(
        "fresh", description="Whether a client's Adam of the factors begins anew each round, or goes on (kept at home)."
    )
    onboard_steps: int = Field(20, ge=0, description="Further core steps of a client that joins late.")
    finish_steps: int = Field(5, ge=0, description="Core steps on the final A and B, after the last round.")
    weights: Literal["examples", "uniform"] = Field("examples", description="Of the clients in the mean.")
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the clients that take part in a round.")
    rule: Literal["mean", "median", "trimmed"] = Field("mean", description="How updates are combined.")
    trim: float = Field(0.25, ge=0, lt=0.5, description="Share cut off at both ends by 'trimmed'.")
    server: Literal["average", "momentum", "adam"] = Field("average", description="The server's optimiser.")
    server_lr: Rate = Field(1.0, description="Its learning rate; 1 suits 'average', 0.01 suits 'adam'.")
    server_momentum: Share = Field(0.9, description="Its momentum.")
    compression: Literal["none", "int8", "topk"] = Field("none", description="Of uploads, with error feedback.")
    download: Literal["fp32", "fp16"] = Field("fp32", description="Numbers of A and B, as the server holds and sends.")
    keep: float = Field(0.1, gt=0, le=1, description="Share of the numbers that 'topk' sends.")
    max_norm: float | None = Field(None, gt=0, description="Drop updates of a larger norm than this.")
    norm_ratio: float = Field(10.0, gt=1, description="Drop updates so many times larger than the round's median.")
    clients: Count = Field(2, description="Clients that must be there for a round to begin.")
    replies: Count = Field(1, description="Good replies without which a round does not count.")
    wait: Rate = Field(300.0, description="Seconds to wait for the clients; then the run ends.")
    deadline: Rate = Field(600.0, description="Seconds for a round; later replies do not count.")
    void_rounds: Count = Field(3, description="Rounds in a row that do not count, after which the run ends.")
    clip: float | None = Field(None, gt=0, description="Differential privacy: clip updates to this norm.")
    noise: Rate = Field(1.0, description="Differential privacy: standard deviation of the noise over clip.")
    delta: float = Field(1e-5, gt=0, lt=1, description="Differential privacy: the delta at which epsilon is told.")

    @model_validator(mode="after")
    def _consistent(self) -> "FederationSpec":
        faults = []
        if self.clip is not None and (self.rule, self.compression, self.weights) != ("mean", "none", "uniform"):
            faults.append("clip needs rule: mean, compression: none and weights: uniform")
        if self.replies > self.clients:
            faults.append(f"replies ({self.replies}) cannot be more than clients ({self.clients})")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class RunConfig(Spec):
    """A run: a base model, tasks, and how to train them together."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["tasks"]}, {"required": ["tasks_from"]}]})

    base: str = Field("smollm2", description="A local folder, a .gguf file, a hub id, or 'smollm2'.")
    chat_template: bool = Field(
        True, description="Whether prompts may use the tokenizer's chat template; where no `prompt` is named, they do."
    )
    prompt: Prompt | None = Field(
        None,
        description="How an example becomes one text: a template with {input}, {output} and perhaps {instruction}, the "
        f"spaces before {{output}} being the answer's; {', '.join(NAMED_TEMPLATES)}; chat (the tokenizer's chat "
        "template); or auto, the named one under which the base finds the training answers likeliest. By default as "
        "chat_template says.",
    )
    output: str = Field(..., min_length=1, description="Folder of this run, relative to where you are.")
    seed: int = Field(0, ge=0, description="Of everything drawn: splits, order of examples, initial weights.")
    start_from: str | None = Field(
        None,
        description="A bank, or its run, to start from: its A, B and cores by task; new tasks start at the mean core. "
        "Its adapter settings hold. Relative to the YAML file; hf://ORG/BANK for one on the hub.",
    )
    grouping: Groups = Field(
        "none",
        description="'none': one bank for all tasks. 'auto': one for each group of tasks whose gradients at the base "
        "model are alike, in OUTPUT/groups. Or the groups themselves, as lists of task names.",
    )
    tasks_from: TasksFromSpec | None = Field(
        None, description="Instead of tasks: one table for all of them, with a column that names the task of each row."
    )
    tasks: list[TaskSpec] = Field(
        [], validate_default=True, description="The tasks, one by one; either these or tasks_from is needed."
    )
    shared_splits: bool = Field(
        False,
        description="Whether an input, or a value of a task's `group_by`, that several tasks have is in the same split "
        "of each, so that no task is tested on what another is trained on.",
    )
    shared_with: list[TaskSpec] = Field(
        [],
        description="With shared_splits: tasks that are not trained here and whose splits count too: those of a bank.",
    )
    examples_a_task: list[Count] | None = Field(
        None, description="For `colora compare`: fewer training examples to measure with as well, such as [8, 16]."
    )
    adapter: AdapterSpec = Field(default_factory=AdapterSpec, description="The bank.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="The training.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="The evaluation.")
    federation: FederationSpec = Field(default_factory=FederationSpec, description="For `colora federate`.")

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
