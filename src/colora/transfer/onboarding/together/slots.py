"""Slots: the cores of several new tasks on a model, where the bank's own were.

A new task looks at the bank's tasks when it starts and never again, so a step need not carry their cores: it costs
what the new tasks cost, however many the bank has.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from colora.adapter.core_size import resized_core
from colora.adapter.model import bank_layers, bank_tuner
from colora.errors import ConfigError

__all__ = ["Slots", "slots_in_place"]


class Slots:
    """Cores as rows of numbers, one layer after the other.

    Args:
        model: with one active bank, whose stacks (slots, r, r) are written to.
        rank: of the new cores, which are zero beyond their leading rank × rank corners; None: r.
    """

    def __init__(self, model: PeftModel, rank: int | None = None) -> None:
        self.model = model
        self.bank = bank_tuner(model).active_adapters[0]
        self.layers = bank_layers(model, self.bank)
        self.stacks = {name: layer.colora_core[self.bank] for name, layer in self.layers.items()}
        self._sizes = [stack[0].numel() for stack in self.stacks.values()]
        r = max(stack.shape[-1] for stack in self.stacks.values())
        self.rank = r if rank is None else rank
        self.smaller = self.rank < r

    @torch.no_grad()
    def write(self, slots: list[int], cores: Float[Tensor, "n numbers"]) -> None:
        """Set the cores of some slots."""
        index = torch.tensor(slots, dtype=torch.long)
        for stack, values in zip(self.stacks.values(), cores.split(self._sizes, 1), strict=True):
            stack.index_copy_(0, index.to(stack.device), values.to(stack).view(-1, *stack.shape[1:]))

    def read(self, slots: list[int]) -> Float[Tensor, "n numbers"]:
        """The cores of some slots, on their device."""
        return self.flat([stack.detach()[slots] for stack in self.stacks.values()])

    def corners(self, cores: Float[Tensor, "n numbers"]) -> Float[Tensor, "n numbers"]:
        """What cores of the new ones' rank can have of these: the same with zeros beyond the leading corners."""
        if not self.smaller:
            return cores
        pairs = zip(self.stacks.values(), cores.split(self._sizes, 1), strict=True)
        return self.flat(
            [
                resized_core(resized_core(values.view(-1, *stack.shape[1:]), self.rank), stack.shape[-1])
                for stack, values in pairs
            ]
        )

    def clear_gradients(self) -> None:
        """Set what the gradients have beyond the leading corners to zero: there the cores stay zero."""
        for stack in self.stacks.values():
            if self.smaller and stack.grad is not None:
                stack.grad[..., self.rank :, :] = 0
                stack.grad[..., self.rank :] = 0

    def flat(self, stacks: list[Tensor]) -> Float[Tensor, "n numbers"]:
        """Stacks (n, r, r) of all layers as rows of numbers."""
        return torch.cat([stack.flatten(1) for stack in stacks], 1)

    def layered(self, core: Float[Tensor, " numbers"]) -> dict[str, Tensor]:
        """A row of numbers as a core for each layer, of the new ones' rank."""
        pairs = zip(self.stacks.items(), core.split(self._sizes), strict=True)
        whole = {name: values.view(stack.shape[1:]) for (name, stack), values in pairs}
        return {name: core[: self.rank, : self.rank] for name, core in whole.items()}


@contextmanager
def slots_in_place(
    model: PeftModel, count: int, rank: int | None = None
) -> Iterator[tuple[Slots, Float[Tensor, "K numbers"]]]:
    """Inside, the model has `count` slots, zeros at first, in place of the bank's cores; afterwards it is as it was.

    Args:
        rank: see `Slots`.

    Yields:
        the slots, and the cores of all tasks of the bank.

    Raises:
        ConfigError: the bank is merged into the base, or its cores are in a store.
    """
    tuner = bank_tuner(model)
    slots = Slots(model, rank)
    router, bank = tuner.router, slots.bank
    router.check_on_model(bank)
    if any(layer.merged for layer in slots.layers.values()):
        raise ConfigError("the bank is merged into the base weights: call unmerge_adapter() before adding tasks")
    names, selected = router.tasks[bank], router.selected.get(bank)
    known = slots.flat([stack.detach() for stack in slots.stacks.values()])
    before = {name: (stack.data, stack.grad, getattr(stack, "colora_task_uids", None))
              for name, stack in slots.stacks.items()}  # fmt: skip
    for stack in slots.stacks.values():
        stack.grad = None  # its shape must be that of the data at all times
        stack.data = stack.data.new_zeros(count, *stack.shape[1:])
        stack.colora_task_uids = list(range(count))
    router.register(bank, [f"slot-{slot}" for slot in range(count)])
    try:
        yield slots, known
    finally:
        for name, stack in slots.stacks.items():
            stack.grad = None
            stack.data, stack.grad, uids = before[name]
            stack.colora_task_uids = list(range(len(stack))) if uids is None else uids
        router.register(bank, names)
        if selected is not None:
            router.choose(bank, selected)
