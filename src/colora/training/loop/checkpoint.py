"""The state of optimiser, scheduler, scaler and random generators as safetensors and JSON: no pickle."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from colora.errors import CheckpointError

__all__ = ["load_random_state", "load_state", "save_random_state", "save_state"]


def save_state(folder: Path, name: str, state: object) -> None:
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


def _pack(value: object, tensors: dict[str, Tensor]) -> object:
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
