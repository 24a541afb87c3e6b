"""The cores that are on the device: a bounded number; the least recently used is evicted."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from colora.adapter.config import ADAPTER_NAME
from colora.adapter.core_size import resized_core
from colora.adapter.model import bank_layers, bank_tuner
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.serving.store import Core

__all__ = ["NoRoomError", "Resident", "attach_slots", "detach_slots"]

UNVERSIONED = -1  # a version that no task of a store has


class NoRoomError(ConfigError):
    """Every core on the device is in use."""


def attach_slots(base: PreTrainedModel, saved: SavedBank, slots: int) -> PeftModel:
    """The base model with the A and B of a saved bank and `slots` cores of zeros; no core is read.

    Raises:
        BaseMismatchError: the base is another model.
    """
    names = [f"slot-{slot}" for slot in range(slots)]
    config = saved.config.with_tasks(names)
    config.inference_mode = True
    config.base_model_name_or_path = base.name_or_path  # the name that training gave it says no more: PEFT would warn
    # They are digests of the tensors with all cores; the store has checked them.
    config.weights_sha256 = config.unchecked_sha256 = None
    model = get_peft_model(base, config, ADAPTER_NAME, autocast_adapter_dtype=base.dtype != torch.float64)
    cores = {name: torch.zeros(slots, config.r, config.r) for name in saved.layers}
    set_peft_model_state_dict(model, saved.tensors_with(cores), ADAPTER_NAME)
    model.requires_grad_(False)
    return model.eval()


def detach_slots(model: PeftModel) -> PreTrainedModel:
    """The base model without the adapter."""
    base: PreTrainedModel = bank_tuner(model).unload()
    return base


class Resident:
    """Which task's core is in which slot of the model.

    A core in use is held; of the others the least recently used one is evicted. A new version of a core gets another
    slot than the old version: rows that run with the old one go on with it.

    Args:
        model: of `attach_slots`.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = bank_layers(model, ADAPTER_NAME)
        self.stacks = {name: layer.colora_core[ADAPTER_NAME] for name, layer in layers.items()}
        self.size = next(iter(self.stacks.values())).shape[0]
        self._slots: OrderedDict[tuple[str, int], int] = OrderedDict()  # the least recently used first
        self._held: dict[tuple[str, int], int] = {}  # the number of rows that use it
        self._dropped: set[tuple[str, int]] = set()  # wiped once no row uses them
        self._free = list(range(self.size))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    def has(self, task: str, version: int) -> bool:
        """Whether this version of the task's core is on the device; from any thread."""
        with self._lock:
            return (task, version) in self._slots

    def hold(self, task: str, version: int, read: Callable[[], Core]) -> int:
        """The slot with a task's core, which stays there until `release`.

        Args:
            task: whose core.
            version: of the core, as the store counts them.
            read: returns the core; called if it is not on the device.

        Raises:
            NoRoomError: all slots are held.
        """
        key = (task, version)
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                self._slots.move_to_end(key)
                self._held[key] = self._held.get(key, 0) + 1
                return slot
            slot = self._take_slot()
        try:
            self._write(slot, read())
        except BaseException:
            with self._lock:
                self._free.append(slot)
            raise
        with self._lock:
            self._slots[key] = slot
            self._held[key] = 1
        return slot

    def release(self, task: str, version: int) -> None:
        """One row less uses this core."""
        key = (task, version)
        with self._lock:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
                if key in self._dropped:
                    self._wipe(key)

    def drop(self, task: str) -> None:
        """Take all versions of a task's core off the device, each as soon as no row runs with it."""
        with self._lock:
            for key in [key for key in self._slots if key[0] == task]:
                if key in self._held:
                    self._dropped.add(key)
                else:
                    self._wipe(key)

    @contextmanager
    def sample(self, saved: SavedBank, most: int = 2) -> Iterator[list[int]]:
        """The slots of the first cores of a saved bank, which leave again at the end. Those, and not a tenant's."""
        names = saved.config.tasks[: min(most, self.size)]
        try:
            yield [self.hold(name, UNVERSIONED, partial(saved.core, index)) for index, name in enumerate(names)]
        finally:
            for name in names:
                self.release(name, UNVERSIONED)
                self.drop(name)

    @torch.inference_mode()
    def _wipe(self, key: tuple[str, int]) -> None:
        slot = self._slots.pop(key)
        self._dropped.discard(key)
        for stack in self.stacks.values():
            stack.data[slot].zero_()
        self._free.append(slot)

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        for key in self._slots:
            if key not in self._held:
                return self._slots.pop(key)
        raise NoRoomError(f"all {self.size} cores on the device are in use")

    @torch.inference_mode()
    def _write(self, slot: int, core: Core) -> None:
        for name, stack in self.stacks.items():
            stack.data[slot].copy_(resized_core(core[name], stack.shape[-1]))
