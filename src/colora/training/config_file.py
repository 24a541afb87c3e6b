"""One YAML file is one run. Everything in it is checked before anything is loaded, and all faults are shown at once."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from colora.bank.hub import is_hub_name
from colora.common.yaml import YamlFile, near, read_yaml, tell_fault, told_line
from colora.errors import ConfigError
from colora.models.base_name import DEFAULT_BASE, hub_id_fault
from colora.tasks.formats.files import stem_and_suffix
from colora.training.config import (
    AUTO,
    FEDERATED_AUTO,
    SPECTRAL,
    AdapterSpec,
    EvaluationSpec,
    FederationConfig,
    FederationSpec,
    RunConfig,
    TasksFromSpec,
    TaskSpec,
    TrainingSpec,
)
from colora.training.field_hints import hint_of

__all__ = [
    "FEDERATED_GROUPING",
    "check_federated_prompts",
    "check_federated_start",
    "check_grouping",
    "field_rows",
    "load_config",
    "load_federation",
    "parse_config",
]


Line = Callable[[Sequence[str | int]], int | None]

NEEDS = "'output' and 'tasks'"
FEDERATED_GROUPING = "grouping: a federation trains one bank for all its clients; remove this field"

NOT_AGREED = ("tasks", "tasks_from", "shared_splits", "shared_with", "examples_a_task", "output", "evaluation")
"""Fields that the clients of a federation do not agree on: each reads its own task."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run file.

    Args:
        path: the YAML file; paths of tasks and `start_from` in it are relative to its folder.
        overrides: "key=value" with a dotted key ("training.lr=1e-3", "tasks.0.train=16"); values are YAML.

    Raises:
        ConfigError: listing every fault with its place in the file.
    """
    path = Path(path)
    value = _read_run(path, overrides)
    config = parse_config(value, str(path), value.line, _base_faults(value))
    if _is_here(config.base):
        config.base = str(Path(config.base).expanduser().resolve())  # the bank will be used from other folders
    if config.start_from is not None and not is_hub_name(config.start_from):
        config.start_from = str((path.parent / Path(config.start_from).expanduser()).resolve())
    sources: list[TaskSpec | TasksFromSpec] = [*config.tasks, *config.shared_with]
    for task in sources if config.tasks_from is None else [config.tasks_from]:
        if task.path is not None:
            task.path = str((path.parent / Path(task.path).expanduser()).resolve())
    return config


def _is_here(base: str) -> bool:
    return base != DEFAULT_BASE and Path(base).expanduser().exists()


def _base_faults(value: YamlFile) -> list[str]:
    """What is wrong with the name of the base model, if anything is."""
    base = value.get("base")
    if not isinstance(base, str) or _is_here(base) or (fault := hub_id_fault(base)) is None:
        return []
    return [f"base: {fault}{told_line(value.line(['base']))}"]


def _read_run(path: Path, overrides: Sequence[str]) -> YamlFile:
    """A run file as it is written, or that it is a task file. Raises ConfigError."""
    as_task = bool(stem_and_suffix(path)[1]) and path.is_file()  # .json may be either: JSON is YAML
    try:
        value = read_yaml(path, (), needs=NEEDS)
    except ConfigError:
        if not as_task:
            raise
        value = None
    if value is None or (as_task and not {"tasks", "tasks_from"} & value.keys()):
        raise ConfigError(
            f"{path}: expected a run file, which is YAML with at least {NEEDS}; this looks like a task file: list it "
            f"under tasks in a run file, as `- path: {path}`"
        )
    for override in overrides:
        value.override(override)
    return value


def load_federation(path: str | Path, overrides: Sequence[str] = ()) -> FederationConfig:
    """Read what a federation agrees on from a run file; its tasks, output and evaluation are not looked at.

    Raises:
        ConfigError: listing every fault with its place in the file.
    """
    value = read_yaml(Path(path), overrides, needs="'federation'")
    if value.pop("start_from", None) is not None:
        raise ConfigError(f"{path}: start_from: a federation starts from fresh factors; remove this field")
    if value.pop("grouping", "none") != "none":
        raise ConfigError(f"{path}: {FEDERATED_GROUPING}")
    agreed = {key: one for key, one in value.items() if key not in NOT_AGREED}
    try:
        config = FederationConfig.model_validate(agreed)
    except ValidationError as error:
        faults = _told(error, value.line)
        raise ConfigError(f"{path}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", faults) from None
    check_federated_start(config.adapter, f"{path}: ")
    return config


def check_grouping(config: RunConfig, names: Sequence[str]) -> None:
    """Raises ConfigError unless the groups of a run file, if it lists any, hold every task once.

    Args:
        names: the tasks of the run, as they were read.
    """
    if isinstance(config.grouping, str):
        return
    placed = [name for group in config.grouping for name in group]
    faults = [f"{name}: no task of this run{near(name, names)}" for name in sorted(set(placed) - set(names))]
    faults += [f"{name}: in {placed.count(name)} places" for name in sorted(set(placed)) if placed.count(name) > 1]
    faults += [f"{name}: in no group" for name in names if name not in placed]
    if faults:
        raise ConfigError("grouping: expected every task in one group:", faults)


def check_federated_start(adapter: AdapterSpec, place: str = "") -> None:
    """Raises ConfigError if a federation is to begin with its clients' gradients."""
    if adapter.init_weights in SPECTRAL:
        raise ConfigError(
            f"{place}adapter.init_weights: {adapter.init_weights} needs the gradients of all tasks in one place, and a "
            "federation's clients keep theirs; choose kaiming, gaussian or orthogonal"
        )


def check_federated_prompts(config: RunConfig) -> None:
    """Raises ConfigError, with all faults, if a federation's clients would not have one prompt that is named."""
    faults = [f"prompt: {FEDERATED_AUTO}"] if config.prompt == AUTO else []
    faults += [
        f"tasks.{number}.prompt: the clients of a federation agree on one prompt; set it at the top"
        for number, task in enumerate(config.tasks)
        if task.prompt is not None
    ]
    if faults:
        raise ConfigError("prompts that a federation cannot have:", faults)


def _told(error: ValidationError, line: Line | None) -> list[str]:
    """Its faults; that a default could not be derived from what is wrong itself is none."""
    faults = [one for one in error.errors() if one["type"] != "default_factory_not_called"]
    return [tell_fault(dict(one), (), "the run", line, hint_of(one, _fields())) for one in faults]


def parse_config(value: dict[str, Any], place: str, line: Line | None = None, others: Sequence[str] = ()) -> RunConfig:
    """A checked config from what YAML gave.

    Args:
        value: what the file holds.
        place: names the file in errors.
        line: of a value in the file, see `YamlFile.line`.
        others: faults that are known already, to be told with the rest.

    Raises:
        ConfigError: with all faults.
    """
    faults = [*others]
    try:
        RunConfig.model_validate(_on_cpu(value))  # what is wrong is told before torch is asked for a device
        if not faults:
            return RunConfig.model_validate(value)
    except ValidationError as error:
        faults += _told(error, line)
    raise ConfigError(f"{place}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", faults)


def _on_cpu(value: dict[str, Any]) -> dict[str, Any]:
    """The same run where no accelerator has to be looked for, which imports torch."""
    training = value.get("training", {})
    if not isinstance(training, dict) or training.get("device", "auto") != "auto":
        return value
    return value | {"training": training | {"device": "cpu"}}


def field_rows(spec: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every field of a run file: its dotted key, type, default and description."""
    properties = spec.model_json_schema()["properties"]
    for name, info in spec.model_fields.items():
        inner: dict[str, type[BaseModel]] = {
            "tasks": TaskSpec,
            "tasks_from": TasksFromSpec,
            "adapter": AdapterSpec,
            "training": TrainingSpec,
            "evaluation": EvaluationSpec,
            "federation": FederationSpec,
        }
        key = f"{prefix}{name}"
        if not prefix and name in inner:
            yield from field_rows(inner[name], f"{key}.N." if name == "tasks" else f"{key}.")
        else:
            derived = info.default_factory_takes_validated_data  # the description says from what
            default = "required" if info.is_required() else "derived" if derived else _show(info.default)
            yield key, _type(properties[name]), default, info.description or ""


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


@cache
def _fields() -> list[str]:
    return [*RunConfig.model_fields, *(key for key, *_ in field_rows() if "." in key)]
