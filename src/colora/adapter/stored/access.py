"""A bank whose cores are in a store: how one comes to be, and how its tasks are trained in a loop of one's own.

colora.store_cores(model, room=16)
optimizer = colora.TaskAdamW(colora.parameter_groups(model, lr=2e-3, core_lr=6e-2))
for batch in loader:
    with colora.tasks_at_hand(model, batch["task_ids"], optimizer):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from colora.adapter.lookup import bank_layers, only_bank
from colora.adapter.routing import TaskIds
from colora.adapter.stored.cores import StoredCores
from colora.errors import ConfigError

__all__ = ["ROOM", "bytes_of_task", "core_rank", "held_tasks", "store_cores", "stored_cores", "tasks_at_hand"]

ROOM = 256
"""Tasks at hand of a bank that comes into a store by itself."""


def store_cores(
    model: nn.Module, room: int, folder: str | Path | None = None, ranks: Mapping[str, int] | None = None
) -> StoredCores:
    """Keep the cores of the model's active bank in a store, and on the model those of a few tasks at a time.

    A step then costs what its tasks cost, however many the bank has. Tasks are added, removed, read and saved as
    before. The bank cannot be compiled while its cores are in a store.

    Tasks may have cores of several sizes there: one of rank k has k × k numbers a layer, which mix the leading k
    directions of A and B alone. Trained beside others, it stays what it would be by itself.

    Args:
        model: with one active bank, on the device where it stays.
        room: the most tasks of a step, over all its micro-batches and processes.
        folder: where they are kept, in a file without a name that goes with the process; None: in memory.
        ranks: of the cores of some tasks, by name; those of the others are r × r.

    Raises:
        ConfigError: the model has no bank, or several are active; it is merged into the base, or its cores are in a
            store already; or a core has numbers other than zero beyond the rank that it is to have.
        TaskIdError: a rank of a task that is none.
        CheckpointError: the file cannot be written.
    """
    base, router, adapter_name = only_bank(model)
    if adapter_name in router.stored:
        raise ConfigError("the cores of this bank are in a store already")
    layers = bank_layers(base, adapter_name)
    if any(layer.merged for layer in layers.values()):
        raise ConfigError("the bank is merged into the base weights: call unmerge_adapter() first")
    stacks = {name: layer.colora_core[adapter_name] for name, layer in layers.items()}
    wanted = None
    if ranks:
        wanted = np.full(len(router.tasks[adapter_name]), max(stack.shape[-1] for stack in stacks.values()))
        for name, rank in ranks.items():
            wanted[router.index(name, adapter_name)] = rank
            _check_corner(name, rank, stacks, router.index(name, adapter_name))
    router.current = None
    stored = StoredCores(stacks, room, None if folder is None else Path(folder), wanted)
    router.stored[adapter_name] = stored
    return stored


@contextmanager
def held_tasks(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Have the cores of these tasks on the model inside the block, for gradients of theirs that no optimiser keeps.

    A store gets as much room as that takes. Where the cores are in no store, nothing is done.

    Raises:
        as `StoredCores.bring`.
    """
    _, router, adapter_name = only_bank(model)
    if (stored := router.stored.get(adapter_name)) is not None:
        stored.make_room(len(set(names)))
        stored.hold(np.array([router.index(name, adapter_name) for name in names]))
    try:
        yield
    finally:
        if stored is not None:
            stored.release()


def core_rank(model: nn.Module, task: int) -> int:
    """The rank of a task's cores in the model's active bank."""
    base, router, adapter_name = only_bank(model)
    if adapter_name in router.stored:
        return router.stored[adapter_name].kept.form(task).rank
    return max(layer.colora_core[adapter_name].shape[-1] for layer in bank_layers(base, adapter_name).values())


def _check_corner(task: str, rank: int, stacks: Mapping[str, nn.Parameter], index: int) -> None:
    for name, stack in stacks.items():
        core = stack.detach()[index]
        if bool(core[rank:].any()) or bool(core[:, rank:].any()):
            raise ConfigError(
                f"the core of {task!r} in {name} is not zero beyond rank {rank}, so a core of this rank would "
                "change the task: choose a larger rank"
            )


def bytes_of_task(model: nn.Module) -> int:
    """Of a task in a store, with an optimiser's moments."""
    base, _, adapter_name = only_bank(model)
    layers = bank_layers(base, adapter_name).values()
    numbers = [layer.colora_core[adapter_name][0].numel() for layer in layers]
    return 4 * (3 * sum(numbers) + len(numbers))


def stored_cores(model: nn.Module) -> StoredCores | None:
    """The store of the model's active bank; None where all its cores are on the model.

    Raises:
        ConfigError: the model has no bank, or several are active.
    """
    _, router, adapter_name = only_bank(model)
    return router.stored.get(adapter_name)


@contextmanager
def tasks_at_hand(model: nn.Module, task_ids: TaskIds, optimizer: object) -> Iterator[None]:
    """Have the cores of a step's tasks on the model, to be trained inside the block: forward, backward and step.

    Where the cores are in no store, all of them are there anyway, and nothing is done.

    Args:
        model: with one active bank.
        task_ids: names or ids of all tasks of the step, over all its micro-batches.
        optimizer: a `TaskAdamW`, which accelerate may have wrapped; its moments of each task are kept with the task's
            core. Those of an optimiser that was used before it count no more.

    Raises:
        ConfigError: the model has no bank, or several are active; or it is another optimiser.
        TaskIdError: a task that is none, more of them than room, or gradients of other tasks that wait.
        CheckpointError: the store cannot be read or written.
    """
    _, router, adapter_name = only_bank(model)
    if (stored := router.stored.get(adapter_name)) is not None:
        stored.use(getattr(optimizer, "optimizer", optimizer))
        ids = router.resolve(task_ids, [adapter_name], torch.device("cpu"))[adapter_name]
        stored.hold(torch.as_tensor(ids).flatten().numpy())
    try:
        yield
    finally:
        if stored is not None:
            stored.release()
