"""Reading an experiment from YAML, with every fault told at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from colora.common.yaml import read_yaml, tell_fault
from colora.errors import ConfigError
from colora.experiments.config import Experiment, MethodSettings
from colora.experiments.consistency import inconsistencies

__all__ = ["load_experiment", "parse_experiment"]


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment.

    Args:
        path: the YAML file.
        overrides: "key=value" with a dotted key ("seeds=[0]", "methods.colora.lr=1e-3"); values are YAML.

    Raises:
        ConfigError: listing every fault with its place in the file.
    """
    value = read_yaml(Path(path), overrides, needs="'name', 'groups' and 'methods'")
    return parse_experiment(value, str(path), value.line)


def parse_experiment(
    value: dict[str, Any], place: str, line: Callable[[Sequence[str | int]], int | None] | None = None
) -> Experiment:
    """A checked experiment from what YAML gave.

    Args:
        value: what the file holds.
        place: names the file in errors.
        line: of a value in the file, see `YamlFile.line`.

    Raises:
        ConfigError: with all faults.
    """
    try:
        experiment = Experiment.model_validate(value)
        faults = inconsistencies(experiment)
    except ValidationError as error:
        known = [*Experiment.model_fields, *MethodSettings.model_fields]
        found = [dict(one) | {"loc": _written(one["loc"], value)} for one in error.errors()]
        faults = [tell_fault(one, known, place, line) for one in found]
    if faults:
        raise ConfigError(f"{place}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", faults)
    return experiment


def _written(loc: tuple[int | str, ...], value: dict[str, Any]) -> tuple[int | str, ...]:
    """A place as it stands in the file: where one value was given for a list, without its number."""
    here: Any = value
    kept = []
    for part in loc:
        if isinstance(part, int) and not isinstance(here, list):
            continue
        kept.append(part)
        inside = isinstance(here, list) and isinstance(part, int) and part < len(here)
        here = here[part] if inside else here.get(part) if isinstance(here, dict) else None
    return tuple(kept)
