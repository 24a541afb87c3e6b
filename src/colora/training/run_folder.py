"""The folder of a run: whose it is, and that its tasks are still the same."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from colora.common.files import STAGING_PREFIX, write_json, write_text
from colora.common.json_text import parse_json
from colora.common.locks import file_lock
from colora.common.text import shortened
from colora.common.yaml import read_yaml
from colora.errors import CheckpointError, ConfigError
from colora.tasks.column.tasks import ColumnTasks
from colora.tasks.schema import SPLITS, Task
from colora.training.config import RunConfig
from colora.training.config_file import parse_config
from colora.training.hardware import BY_DEVICE

__all__ = [
    "EARLIER",
    "as_begun",
    "check_free",
    "check_same_tasks",
    "claim",
    "differing_tasks",
    "run_config",
    "task_manifest",
    "train_alone",
]

FREE = (
    "output",
    "evaluation",
    "examples_a_task",
    "tasks_from.path",
    "training.threads",
    "training.log_every",
    "training.save_every",
    "training.keep",
    "training.tensorboard",
    "training.device",
    "training.shard",
)
"""Fields that may change between two starts of a run, for the bank does not depend on them. Nor does it depend on the
paths of task files: `tasks.json` has digests of what is in them."""


EARLIER = {
    "adapter": {"r": 8, "lora_alpha": 8.0, "init_rotation": 0.0},
    "training": {"beta2": 0.999, "warmup_steps": 0, "lr": 2e-3, "core_lr": 6e-2, "weight_decay": 0.0},
}
"""Defaults of earlier versions. A run's own file has every field that there was when the run began."""


def task_manifest(tasks: Sequence[Task]) -> dict[str, Any]:
    """For each task its source, the seed of drawn splits, and size and digest of each split, ready for JSON.

    Of the tasks of `tasks_from` one entry of that name, with the same of all of them together.
    """
    if isinstance(tasks, ColumnTasks):
        return {"tasks_from": tasks.manifest()}
    return {
        task.name: {
            "source": task.source,
            "split_seed": task.split_seed,
            "splits": {
                split: {"examples": len(task.splits[split]), "sha256": _digest(task, split)} for split in SPLITS
            },
        }
        for task in tasks
    }


def run_config(run: Path) -> RunConfig:
    """The config that a run was started with. Raises ConfigError if there is none."""
    file = run / "run.yaml"
    if not file.is_file():
        raise ConfigError(f"{file}: missing; a bank is measured on the tasks of its run, so name the run's folder")
    try:
        value = read_yaml(file, (), needs="'output' and 'tasks'")
    except ConfigError as error:
        raise ConfigError(f"{file}: damaged: {error}") from error
    for section, fields in EARLIER.items():
        if isinstance(given := value.setdefault(section, {}), dict):
            value[section] = fields | given
    return parse_config(value, str(file), value.line)


def as_begun(config: RunConfig) -> RunConfig:
    """The config with the defaults that held when the run in its output folder began, of an earlier version or of
    another device.

    A field that the run file names is as it says.
    """
    try:
        before = run_config(Path(config.output))
    except ConfigError:  # nothing has begun there, or `check_free` tells what is wrong
        return config
    for section, fields in EARLIER.items():
        now, then = getattr(config, section), getattr(before, section)
        kept = {
            name: earlier
            for name, earlier in fields.items()
            if name not in now.model_fields_set and getattr(then, name) == earlier
        }
        config = config.model_copy(update={section: now.model_copy(update=kept)})
    begun = {name: getattr(before.training, name) for name in BY_DEVICE if name not in config.training.model_fields_set}
    return config.model_copy(update={"training": config.training.model_copy(update=begun)})


@contextmanager
def train_alone(output: Path) -> Iterator[None]:
    """Nobody else trains this run meanwhile: each would delete files that the other's next checkpoint needs.

    Raises:
        ConfigError: another process does. CheckpointError: that cannot be written down.
    """
    lock = output.with_name(f".{output.name}.training")
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(file_lock(lock))
        except OSError as error:
            raise CheckpointError(f"could not write {lock}: {error}; choose another output") from error
        if not mine:
            raise ConfigError(
                f"{output}: another process trains this run: wait for it, or choose another output. If that "
                f"process ran on another machine and has ended, remove {lock}"
            )
        yield


def claim(output: Path, config: RunConfig, manifest: Mapping[str, Any]) -> None:
    """Make the output folder this run's. To be called when nothing else can be wrong with the run any more.

    Args:
        manifest: of `task_manifest`.

    Raises:
        CheckpointError: if it cannot be written.
    """
    # The run first: if this process dies before the second file is there, the next start writes it.
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(output / "run.yaml", text)
    write_json(output / "tasks.json", manifest)


def check_free(output: Path, config: RunConfig, manifest: Mapping[str, Any], federated: bool = False) -> None:
    """See that the output folder is this run's, or nobody's. What does not change the bank may differ.

    Args:
        manifest: of `task_manifest`.
        federated: whether the run is a federation, of which the folder has a record of the rounds.

    Raises:
        ConfigError: if the folder holds another run, or anything else, or the examples have changed.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; choose another output")
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    file = output / "run.yaml"
    now = config.model_dump(mode="json")
    if file.name in names:
        before = run_config(output).model_dump(mode="json")
        rounds = now.pop("federation"), before.pop("federation")
        now, before = _essence(now), _essence(before)
        if federated:
            now |= _essence(rounds[0], "federation.")
            before |= _essence(rounds[1], "federation.")
        if federated != ("rounds.jsonl" in names) and names & {"checkpoints", "rounds.jsonl", "bank"}:
            was = "a run of `colora train`" if federated else "a federation"
            raise ConfigError(f"{output} holds {was}: choose another output, or remove that folder")
        if differing := sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key)):
            raise ConfigError(
                f"{output} holds another run: choose another output, or remove that folder. Different:",
                shortened([f"{key}: it has {before.get(key)!r}, this run {now.get(key)!r}" for key in differing], 8),
            )
        check_same_tasks(output, manifest)
    elif any(name != "logs" and not name.startswith(STAGING_PREFIX) for name in names):
        raise ConfigError(f"{output} is not empty and holds no run; choose another output")


def _essence(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields that decide what the bank becomes, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if f"{prefix}{key}" in FREE:
            continue
        if key in ("tasks", "shared_with"):
            for number, task in enumerate(value):
                flat |= {f"{key}.{number}.{name}": one for name, one in task.items() if name != "path"}
        elif isinstance(value, dict):
            flat |= _essence(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_same_tasks(run: Path, now: Mapping[str, Any]) -> None:
    """Raises ConfigError if the examples of this manifest are no longer those that the run was started with."""
    file = run / "tasks.json"
    if not file.is_file():
        return
    try:
        before = parse_json(file.read_text(encoding="utf-8"))
        changed = [
            f"task {name!r}, split {split}: {before[name]['splits'][split]['examples']} examples then, "
            f"{now[name]['splits'][split]['examples']} now"
            for name in now.keys() & before.keys()
            for split in SPLITS
            if now[name]["splits"][split]["sha256"] != before[name]["splits"][split]["sha256"]
        ]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: damaged: {error!r}") from error
    changed += [f"task {name!r}: not in that run" for name in now.keys() - before.keys()]
    changed += [f"task {name!r}: in that run only" for name in before.keys() - now.keys()]
    if changed:
        raise ConfigError(
            f"the task files are no longer those of the run in {run} (give it the old files again, or choose another "
            "output):",
            sorted(changed),
        )


def differing_tasks(run: Path, tasks: Sequence[Task]) -> set[str]:
    """Names of those tasks of which the run in a folder, if there is one, had other splits."""
    try:
        before = json.loads((run / "tasks.json").read_text(encoding="utf-8"))
        now = task_manifest(tasks)  # hashes all examples, which a run that begins does later, once
        return {name for name in now.keys() & before.keys() if before[name]["splits"] != now[name]["splits"]}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return set()  # `check_same_tasks` tells what is damaged


def _digest(task: Task, split: str) -> str:
    # A history is added only where there is one: digests of earlier runs have none.
    rows = [
        [one.instruction, one.input, list(one.outputs), *([list(one.history)] if one.history else [])]
        for one in task.splits[split]
    ]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
