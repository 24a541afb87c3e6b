"""The cores that are on the device: a bounded number, the least recently used giving way."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict
from torch import nn

from colora.adapter.model import bank_layers
from colora.bank.tensors import SavedBank, split_key
from colora.errors import ConfigError
from colora.serving.store import Core

__all__ = ["NoRoomError", "Resident", "attach_slots", "detach_slots"]

BANK = "default"


class NoRoomError(ConfigError):
    """Every core on the device is in use."""


def attach_slots(base: Any, saved: SavedBank, slots: int) -> Any:
    """A bank on its base model with the A and B of a saved one and room for `slots` cores; none of them is read.

    Raises:
        BaseMismatchError: the base is another model.
    """
    config = type(saved.config)(**saved.config.to_dict() | {"tasks": [f"slot-{place}" for place in range(slots)]})
    config.inference_mode = True
    config.weights_sha256 = config.unchecked_sha256 = None  # of tensors with all cores, which the store has checked
    model = get_peft_model(base, config, BANK, autocast_adapter_dtype=base.dtype != torch.float64)
    r = config.r
    state = {
        key: torch.zeros(slots, r, r) if (split_key(key) or ("", ""))[1] == "core" else saved[key] for key in saved
    }
    set_peft_model_state_dict(model, state, BANK)
    model.requires_grad_(False)
    return model.eval()


def detach_slots(model: Any) -> Any:
    """The base model without the bank."""
    return model.base_model.unload()


class Resident:
    """Which task's core is in which slot of the model.

    A task in use is held; of the others the one that has waited longest gives its slot away. A core that was replaced
    gets a slot of its own: rows that run with the old one go on with it.

    Args:
        model: of `attach_slots`.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = bank_layers(model, BANK)
        self.stacks = {name: layer.colora_core[BANK] for name, layer in layers.items()}
        self.size = next(iter(self.stacks.values())).shape[0]
        self._places: OrderedDict[tuple[str, int], int] = OrderedDict()  # the least recently used first
        self._held: dict[tuple[str, int], int] = {}
        self._gone: set[tuple[str, int]] = set()  # removed while rows still ran with them
        self._free = list(range(self.size))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def has(self, task: str, version: int) -> bool:
        """Whether the core is there; from any thread."""
        with self._lock:
            return (task, version) in self._places

    def hold(self, task: str, version: int, read: Callable[[], Core]) -> int:
        """The slot with a task's core, which stays there until `release`.

        Args:
            task, version: which core.
            read: gives it, if it is not there.

        Raises:
            NoRoomError: all slots are held.
        """
        key = (task, version)
        with self._lock:
            place = self._places.get(key)
            if place is not None:
                self._places.move_to_end(key)
                self._held[key] = self._held.get(key, 0) + 1
                return place
            place = self._room()
        try:
            self._write(place, read())
        except BaseException:
            with self._lock:
                self._free.append(place)
            raise
        with self._lock:
            self._places[key] = place
            self._held[key] = 1
        return place

    def release(self, task: str, version: int) -> None:
        """One row less that uses it."""
        key = (task, version)
        with self._lock:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
                if key in self._gone:
                    self._wipe(key)

    def drop(self, task: str) -> None:
        """Take a task that was removed or replaced off the device, as soon as no row runs with it."""
        with self._lock:
            for key in [key for key in self._places if key[0] == task]:
                if key in self._held:
                    self._gone.add(key)
                else:
                    self._wipe(key)

    @torch.inference_mode()
    def _wipe(self, key: tuple[str, int]) -> None:
        place = self._places.pop(key)
        self._gone.discard(key)
        for stack in self.stacks.values():
            stack.data[place].zero_()
        self._free.append(place)

    def _room(self) -> int:
        if self._free:
            return self._free.pop()
        for key in self._places:
            if key not in self._held:
                return self._places.pop(key)
        raise NoRoomError(f"all {self.size} cores on the device are in use")

    @torch.inference_mode()
    def _write(self, place: int, core: Core) -> None:
        for name, stack in self.stacks.items():
            stack.data[place].copy_(core[name])
