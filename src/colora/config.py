"""One YAML file is one run. Everything in it is checked before anything is loaded, and all faults are shown at once."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from colora.errors import ConfigError
from colora.specs import (
    SPECTRAL,
    AdapterSpec,
    EvaluationSpec,
    FederationConfig,
    FederationSpec,
    RunConfig,
    TaskSpec,
    TrainingSpec,
)

__all__ = [
    "FEDERATED_GROUPING",
    "AdapterSpec",
    "EvaluationSpec",
    "FederationConfig",
    "FederationSpec",
    "RunConfig",
    "TaskSpec",
    "TrainingSpec",
    "check_federated_start",
    "check_grouping",
    "field_rows",
    "load_config",
    "load_federation",
    "near",
    "parse_config",
    "read_yaml",
    "tell_fault",
]


FEDERATED_GROUPING = "grouping: a federation trains one bank for all its clients; remove this field"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run file.

    Args:
        path: the YAML file; paths of tasks and `start_from` in it are relative to its folder.
        overrides: "key=value" with a dotted key ("training.lr=1e-3", "tasks.0.train=16"); values are YAML.

    Raises:
        ConfigError: listing every fault with its place in the file.
    """
    path = Path(path)
    value = read_yaml(path, overrides, needs="'output' and 'tasks'")
    config = parse_config(value, str(path))
    if config.base != "smollm2" and Path(config.base).expanduser().exists():
        config.base = str(Path(config.base).expanduser().resolve())  # the bank will be used from other folders
    if config.start_from is not None:
        config.start_from = str((path.parent / Path(config.start_from).expanduser()).resolve())
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
    value = {key: one for key, one in value.items() if key not in ("tasks", "output", "evaluation")}
    try:
        config = FederationConfig.model_validate(value)
    except ValidationError as error:
        faults = [tell_fault(dict(one), _FIELDS, "the run") for one in error.errors()]
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
            "federation": FederationSpec,
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
