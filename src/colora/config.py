"""One YAML file is one run. Everything in it is checked before anything is loaded, and all faults are shown at once."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from colora.errors import ConfigError

__all__ = [
    "AdapterSpec",
    "EvaluationSpec",
    "RunConfig",
    "TaskSpec",
    "TrainingSpec",
    "field_rows",
    "load_config",
    "near",
    "parse_config",
    "read_yaml",
    "tell_fault",
]

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _names(value: Any) -> Any:
    # Of a union pydantic reports the faults of both sides; here there is one.
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return value
    raise ValueError(f"expected a name, an expression or a list of names, found {value!r}")


Names = Annotated[str | list[str], BeforeValidator(_names)]


class _Spec(BaseModel):
    # A misspelt key is a fault, not a default.
    model_config = ConfigDict(extra="forbid", validate_default=True)


class TaskSpec(_Spec):
    """One task: where its examples are and how many to use."""

    name: str | None = Field(None, description="Name of the task; by default the file's stem or the folder's name.")
    path: str | None = Field(
        None,
        description="A .jsonl, .csv or .json file, a folder of train/val/test files, or one of `save_to_disk`; "
        "relative to the YAML file.",
    )
    dataset: str | None = Field(None, description="Instead of a path: what `datasets.load_dataset` takes first.")
    subset: str | None = Field(None, description="The dataset's configuration, if it has several.")
    fields: dict[Literal["input", "output", "instruction"], str] = Field(
        {}, description="Names of the file's columns, where they are not 'input', 'output' and 'instruction'."
    )
    instruction: str | None = Field(None, description="One instruction for all examples, instead of the file's.")
    train: int | None = Field(None, ge=1, description="Training examples to use; all by default.")
    val: int | None = Field(None, ge=0, description="Validation examples to use; all, or 10 % where drawn, by default.")
    test: int | None = Field(None, ge=0, description="Test examples to use; all, or 20 % where drawn, by default.")

    @model_validator(mode="after")
    def _one_source(self) -> "TaskSpec":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("expected exactly one of 'path' and 'dataset'")
        return self


class AdapterSpec(_Spec):
    """The bank; see `CoLoRAConfig`."""

    r: Count = Field(8, description="Rank of the shared factors; each task has r × r numbers per layer.")
    lora_alpha: Rate = Field(8.0, description="Scale: updates are multiplied by lora_alpha / r.")
    use_rslora: bool = Field(False, description="Scale by lora_alpha / √r instead.")
    lora_dropout: Share = Field(0.0, description="Dropout on the adapters' input while training.")
    target_modules: Names = Field("all-linear", description="Layers to adapt, by name or expression.")
    exclude_modules: Names | None = Field(None, description="Layers to leave out, by name or expression.")
    layers_to_transform: list[int] | None = Field(None, description="Adapt only the layers of these numbers.")
    modules_to_save: list[str] | None = Field(None, description="Further modules to train in full, for all tasks.")
    init_weights: Literal["kaiming", "gaussian", "orthogonal"] = Field("kaiming", description="How A starts.")


class TrainingSpec(_Spec):
    """How long, how fast, in which order."""

    steps: Count = Field(200, description="Optimiser steps.")
    rows: Count = Field(12, description="Rows of an optimiser step, over all tasks, devices and accumulation.")
    accumulation: Count = Field(1, description="Micro-batches per step; more need less memory.")
    lr: Rate = Field(2e-3, description="Learning rate of the shared factors A and B.")
    core_lr: Rate = Field(6e-2, description="Learning rate of the cores; about 10 to 30 times lr suits Adam.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of A and B.")
    core_weight_decay: float = Field(0.0, ge=0, description="The same for cores of tasks that are in the batch.")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="How both rates fall.")
    warmup_steps: int = Field(0, ge=0, description="Steps in which the rates rise from zero.")
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
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Of the computation (mixed precision).")
    base_dtype: Literal["fp32", "bf16", "fp16", "fp64"] = Field("fp32", description="Of the frozen base weights.")
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")
    eval_every: int | None = Field(None, ge=1, description="Measure the validation loss every so many steps.")
    patience: int | None = Field(
        None, ge=1, description="Stop a task after so many measurements without improvement; needs eval_every."
    )
    save_every: Count = Field(50, description="Steps between checkpoints.")
    keep: Count = Field(2, description="Checkpoints to keep.")
    log_every: Count = Field(10, description="Steps between logged losses.")
    tensorboard: bool = Field(False, description="Write TensorBoard events to OUTPUT/logs.")
    device: Literal["auto", "cpu"] = Field("auto", description="'auto' takes an accelerator where there is one.")
    threads: int | None = Field(None, ge=1, description="CPU threads; the physical cores by default.")

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


class EvaluationSpec(_Spec):
    """What is measured after training, and by `colora evaluate`."""

    metrics: list[Literal["rougeL", "exact_match", "nll"]] = Field(
        ["rougeL", "exact_match", "nll"], description="ROUGE-L and exact match of greedy outputs, token likelihood."
    )
    split: Literal["train", "val", "test"] = Field("test", description="The examples to measure on.")
    limit: int | None = Field(None, ge=1, description="At most so many examples of each task.")
    max_new_tokens: Count = Field(64, description="Longest output to generate.")
    rows: Count = Field(16, description="Rows of a batch.")


class RunConfig(_Spec):
    """A run: a base model, tasks, and how to train them together."""

    base: str = Field("smollm2", description="A local folder, a .gguf file, a hub id, or 'smollm2'.")
    chat_template: bool = Field(True, description="Prompt with the tokenizer's chat template, if it has one.")
    output: str = Field(..., min_length=1, description="Folder of this run, relative to where you are.")
    seed: int = Field(0, ge=0, description="Of everything drawn: splits, order of examples, initial weights.")
    tasks: list[TaskSpec] = Field(..., min_length=1, description="The tasks.")
    adapter: AdapterSpec = Field(default_factory=AdapterSpec, description="The bank.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="The training.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="The evaluation.")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run file.

    Args:
        path: the YAML file; paths of tasks in it are relative to its folder.
        overrides: "key=value" with a dotted key ("training.lr=1e-3", "tasks.0.train=16"); values are YAML.

    Raises:
        ConfigError: listing every fault with its place in the file.
    """
    path = Path(path)
    value = read_yaml(path, overrides, needs="'output' and 'tasks'")
    config = parse_config(value, str(path))
    if config.base != "smollm2" and Path(config.base).expanduser().exists():
        config.base = str(Path(config.base).expanduser().resolve())  # the bank will be used from other folders
    for task in config.tasks:
        if task.path is not None:
            task.path = str((path.parent / Path(task.path).expanduser()).resolve())
    return config


def read_yaml(path: Path, overrides: Sequence[str], needs: str) -> dict[str, Any]:
    """The mapping that a YAML file holds, with "key=value" overrides applied; `needs` names what it must have.

    Raises:
        ConfigError: a file or an override that cannot be read, with its place.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', error)}") from error
    except ValueError as error:  # a day that no calendar has, for instance
        raise ConfigError(f"{path}: not YAML: a value that cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping with at least {needs}, found {_kind(value)}")
    for override in overrides:
        _apply(value, override)
    return value


def parse_config(value: dict[str, Any], place: str) -> RunConfig:
    """A checked config from what YAML gave; `place` names the file in errors. Raises ConfigError with all faults."""
    try:
        return RunConfig.model_validate(value)
    except ValidationError as error:
        faults = [tell_fault(dict(one), _FIELDS, "the run") for one in error.errors()]
        raise ConfigError(f"{place}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", faults) from None


def field_rows(spec: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every field of a run file: its dotted key, type, default and description."""
    for name, info in spec.model_fields.items():
        inner: dict[str, type[BaseModel]] = {
            "tasks": TaskSpec,
            "adapter": AdapterSpec,
            "training": TrainingSpec,
            "evaluation": EvaluationSpec,
        }
        key = f"{prefix}{name}"
        if not prefix and name in inner:
            yield from field_rows(inner[name], f"{key}.N." if name == "tasks" else f"{key}.")
        else:
            schema = spec.model_json_schema()["properties"][name]
            default = "required" if info.is_required() else _show(info.default)
            yield key, _type(schema), default, info.description or ""


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "object": "mapping"}.get(
        schema.get("type", ""), schema.get("type", "")
    )


def _show(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _apply(value: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, such as training.lr=1e-3")
    try:
        new = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from error
    here: Any = value
    *parents, last = key.strip().split(".")
    for part in parents:
        if isinstance(here, list):
            here = here[_place(here, part, override)]
        else:
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
        if not isinstance(here, dict | list):
            raise ConfigError(f"override {override!r}: {part!r} holds {_kind(here)}, which has no fields")
    here[_place(here, last, override) if isinstance(here, list) else last] = new


def _place(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"override {override!r}: expected a number from 0 to {len(items) - 1}, found {part!r}")
    return int(part)


def near(name: str, known: Collection[str]) -> str:
    """What to add to "unknown": "; did you mean 'x'?" if a known name is like this one, else nothing."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def tell_fault(error: Mapping[str, Any], fields: Collection[str], whole: str) -> str:
    """One of pydantic's errors as "place: expected, found"; `fields` are the known ones, `whole` names the file."""
    place = ".".join(str(part) for part in error["loc"] if part != "[key]") or whole
    if error["type"] == "extra_forbidden":
        return f"{place}: no such field{near(str(error['loc'][-1]), fields)}"
    if error["type"] == "missing":
        return f"{place}: missing"
    if error["type"] == "model_type":
        return f"{place}: expected a mapping, found {_kind(error['input'])}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = error.get("input")
    shown = "" if isinstance(found, dict | list) or error["type"] == "value_error" else f", found {found!r}"
    return f"{place}: {message.replace('input should be', 'expected')}{shown}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]


_FIELDS = [*(key.rsplit(".", 1)[-1] for key, *_ in field_rows()), *RunConfig.model_fields]
