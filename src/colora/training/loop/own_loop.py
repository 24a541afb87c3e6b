"""Checkpoints of a loop of one's own, as cheap as those of the trainer: whole or not there, and without pickle.

FOLDER/checkpoint-STEP/     what all tasks share, the optimiser's state of it, random generators, and what the loop adds
FOLDER/cores/               the cores of a store with their moments: each checkpoint adds those that changed
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from colora.adapter.lookup import only_bank
from colora.adapter.stored.cores import StoredCores
from colora.adapter.task_names import TaskNames
from colora.common.files import STAGING_PREFIX, staged_folder, write_json
from colora.errors import CheckpointError, ConfigError, TrainingDivergedError
from colora.training.loop import checkpoint
from colora.training.loop.core_files import CoreFiles, names_digest
from colora.training.loop.optimizer import TaskAdamW
from colora.training.loop.weights import check_weights, put_weights

__all__ = ["TrainingState", "load_training", "save_training"]

NOTE = "training.json"
_KNOWN: WeakKeyDictionary[TaskAdamW, set[Path]] = WeakKeyDictionary()
"""The checkpoints that a loop has written, or gone on from."""
_FILES: WeakKeyDictionary[StoredCores, tuple[Path, TaskNames, CoreFiles]] = WeakKeyDictionary()


@dataclass(frozen=True)
class TrainingState:
    """Where a loop goes on.

    Attributes:
        step: that was saved.
        extra: what the loop added.
    """

    step: int
    extra: dict[str, Any] = field(default_factory=dict)


def save_training(
    model: nn.Module,
    optimizer: object,
    folder: str | Path,
    step: int,
    *,
    extra: dict[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint of a loop of one's own; of several processes, call it in one.

    Where the cores are in a store (`store_cores`), the first call writes all that were ever trained, and each further
    call with the same folder those that were trained since, with their moments. Otherwise all are written.

    Args:
        model: with one active bank.
        optimizer: the `TaskAdamW` that trains it; accelerate may have wrapped it.
        folder: of this loop alone; made if need be.
        step: how many steps have been done.
        extra: further state, such as `{"scheduler": scheduler.state_dict()}`: dicts, lists, tensors and JSON's types.
        keep: how many checkpoints stay.

    Returns:
        the folder of the checkpoint.

    Raises:
        CheckpointError: it cannot be written, or the folder has checkpoints of another loop; those before stay.
        TrainingDivergedError: a weight is NaN or infinite; those before stay.
        ConfigError: no bank, several active ones, or another optimiser.
        TypeError: `extra` holds something else.
    """
    inner, (_, router, adapter_name) = _task_adamw(optimizer), only_bank(model)
    folder, names = Path(folder), router.tasks[adapter_name]
    stored = router.stored.get(adapter_name)
    _check_own(folder, inner)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if bad := [name for name, one in trained.items() if not bool(torch.isfinite(one).all())]:
        raise TrainingDivergedError(f"{bad[0]} became NaN or infinite by step {step}; it is not saved")
    final = folder / f"checkpoint-{step}"
    files = None if stored is None else _files(stored, folder, names)
    if stored is not None and files is not None:
        files.save(stored, step)
        trained = {name: one for name, one in trained.items() if "colora_core" not in name}
    with staged_folder(final) as staging:
        checkpoint.save_state(staging, "weights", {name: one.detach() for name, one in trained.items()})
        state = inner.state_dict() if stored is None else inner.shared_state_dict()
        checkpoint.save_state(staging, "optimizer", state)
        checkpoint.save_state(staging, "extra", extra or {})
        checkpoint.save_random_state(staging, 0)
        if files is not None:
            files.note(staging)
        digest = names_digest(names) if files is None else files.names_sha256
        write_json(staging / NOTE, {"step": step, "names_sha256": digest, "stored": stored is not None})
    _KNOWN.setdefault(inner, set()).add(final.resolve())
    for old in _checkpoints(folder)[: -max(keep, 1)]:
        shutil.rmtree(old)
    if files is not None:
        files.collect(folder)
    return final


def _check_own(folder: Path, optimizer: TaskAdamW) -> None:
    """Raises CheckpointError if a checkpoint there is none that this loop has written or gone on from."""
    if foreign := [path for path in _checkpoints(folder) if path.resolve() not in _KNOWN.setdefault(optimizer, set())]:
        raise CheckpointError(
            f"{foreign[-1]} belongs to another training loop, or to an earlier start of this one: go on from it with "
            "colora.load_training, or choose another folder"
        )


def load_training(model: nn.Module, optimizer: object, folder: str | Path) -> TrainingState | None:
    """Bring a model, its optimiser and the random generators to the last checkpoint of `save_training`.

    Args:
        model: as it was built for the loop: the same base, the same tasks in the same order, and its cores in a store
            if they were in one.
        optimizer: a new `TaskAdamW` of this model.
        folder: of the loop.

    Returns:
        the step and what the loop added; None where no checkpoint is.

    Raises:
        CheckpointError: naming the file that is missing or damaged; or it is of other tasks, of another model, or of
            cores in another place.
        ConfigError: no bank, several active ones, or another optimiser.
    """
    inner, (_, router, adapter_name) = _task_adamw(optimizer), only_bank(model)
    folder, names = Path(folder), router.tasks[adapter_name]
    stored = router.stored.get(adapter_name)
    found = _checkpoints(folder)
    if not found:
        return None
    last = found[-1]
    note = _note(last)
    if note["stored"] != (stored is not None):
        has = "in a store" if note["stored"] else "on the model"
        raise CheckpointError(
            f"{last} has its cores {has}, but this model does not: call colora.store_cores before "
            "loading, or leave it out, as when the checkpoint was saved"
        )
    if note["names_sha256"] != names_digest(names):
        raise CheckpointError(
            f"{last} is of other tasks, or of the same tasks in another order; expected the tasks of this model"
        )
    weights = checkpoint.load_state(last, "weights")
    check_weights(model, weights, last, cores=stored is None)
    state, extra = checkpoint.load_state(last, "optimizer"), checkpoint.load_state(last, "extra")
    if stored is not None:
        stored.use(inner)
        _files(stored, folder, names).load(stored, last)
    put_weights(model, weights)
    inner.load_state_dict(state)
    checkpoint.load_random_state(last, 0)
    _KNOWN.setdefault(inner, set()).update(path.resolve() for path in found)
    return TrainingState(int(note["step"]), extra)


def _task_adamw(optimizer: object) -> TaskAdamW:
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, TaskAdamW):
        raise ConfigError(f"expected a colora.TaskAdamW, found a {type(inner).__name__}")
    return inner


def _files(stored: StoredCores, folder: Path, names: TaskNames) -> CoreFiles:
    """The files of a store in a folder; new ones once there are other tasks, for rows are by id."""
    known = _FILES.get(stored)
    if known is None or known[0] != folder or known[1] is not names:
        known = _FILES[stored] = folder, names, CoreFiles(folder / "cores", names)
    return known[2]


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    whole = [path for path in found if not path.name.startswith(STAGING_PREFIX) and (path / NOTE).is_file()]
    return sorted(whole, key=lambda path: int(path.name.partition("-")[2]))


def _note(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads((folder / NOTE).read_text("utf-8"))
        return {"step": int(note["step"]), "names_sha256": note["names_sha256"], "stored": bool(note["stored"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / NOTE}: cannot be read ({error})") from error
