"""Checkpoints without pickle: the state of optimiser, scheduler, scaler and random generators as safetensors and JSON.

A checkpoint folder is written under another name and renamed when complete, so whatever has the name of a checkpoint
is whole, and a write that fails leaves the older ones as they were.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from colora.errors import CheckpointError

__all__ = [
    "load_random_state",
    "load_state",
    "save_random_state",
    "save_state",
    "staged_folder",
    "write_json",
]

STAGING_PREFIX = ".writing-"


@contextmanager
def staged_folder(final: Path, leader: bool = True, barrier: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A folder to write into that becomes `final` when the block ends well, and vanishes when it does not.

    Args:
        final: the folder to be; replaced if it is there.
        leader: with several processes that write into it together, whether this is the one that makes and renames it.
        barrier: waits for the other processes.

    Yields:
        a folder of the same name as `final`, alone in a hidden folder beside it.

    Raises:
        CheckpointError: if writing fails (a full disk, say); nothing that was there before has changed.
    """
    staging = final.with_name(STAGING_PREFIX + final.name)
    if leader:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / final.name).mkdir(parents=True)
    barrier()
    try:
        yield staging / final.name
        barrier()
        if leader:
            _publish(staging / final.name, final)
        barrier()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not write {final}: {error}. Nothing that was saved before has changed; free some space or "
            "choose another folder, and run the same command again to go on from the last checkpoint"
        ) from error
    finally:
        if leader:
            shutil.rmtree(staging, ignore_errors=True)


def _publish(written: Path, final: Path) -> None:
    for file in written.rglob("*"):
        if file.is_file():
            _fsync(file)
    if final.exists():  # moved away whole: deleting takes time, and half a checkpoint must not have its name
        os.replace(final, written.with_name("replaced"))
    os.replace(written, final)
    _fsync(final.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: the file is the old or the new one, never half of it."""
    temporary = path.with_name(STAGING_PREFIX + path.name)
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _fsync(temporary)
    os.replace(temporary, path)


def save_state(folder: Path, name: str, state: Any) -> None:
    """Save a state dict: its tensors to NAME.safetensors, the rest of its structure to NAME.json.

    Raises:
        TypeError: if it holds anything but dicts, lists, tensors, and JSON's own types.
    """
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(structure), encoding="utf-8")


def load_state(folder: Path, name: str) -> Any:
    """What `save_state` saved, on the CPU, equal to the last bit.

    Raises:
        CheckpointError: naming the file that is missing or broken.
    """
    try:
        structure = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return _unpack(structure, load_file(folder / f"{name}.safetensors"))
    except Exception as error:
        raise CheckpointError(f"{folder / name}.json or .safetensors cannot be read: {error}") from error


def save_random_state(folder: Path, rank: int) -> None:
    """Save the states of Python's, numpy's, torch's and the accelerator's random generators."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "python": list(random.getstate()),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save_state(folder, f"random_{rank}", state)


def load_random_state(folder: Path, rank: int) -> None:
    """Restore what `save_random_state` saved; does nothing if this rank did not exist then."""
    if not (folder / f"random_{rank}.json").exists():
        return
    state = load_state(folder, f"random_{rank}")
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds no {type(value).__name__}: {value!r}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["dict"]}
    return value


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
