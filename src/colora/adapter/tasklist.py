"""Adding, removing and writing the tasks of a bank, in place.

The Parameter objects stay the same and only their storage changes, so optimisers keep working on them. Each stack of
cores carries `task_uids`, one never reused number per row; an optimiser that keeps state per task uses them to move
its rows along (see `colora.training.loop.optimizer`).
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from colora.adapter.config import CoLoRAConfig, check_task_name
from colora.adapter.core_start import rotated_cores
from colora.adapter.layer import CoLoRALinear
from colora.adapter.router import Router
from colora.adapter.task_names import TaskSequence
from colora.algebra import fresh_core
from colora.common.text import shortened
from colora.errors import ConfigError

__all__ = ["add", "read", "remove", "task_uids", "write"]

_next_uid = itertools.count(1_000_000_000)


def task_uids(cores: Tensor) -> list[int]:
    """One number for each row of a stack of cores (K, r, r) that stays with the task when rows move."""
    uids: list[int] | None = getattr(cores, "colora_task_uids", None)
    if uids is None:
        uids = cores.colora_task_uids = list(range(cores.shape[0]))  # type: ignore[attr-defined]
    return uids  # the same object until the rows change, so that comparing costs nothing


def add(
    layers: Mapping[str, CoLoRALinear],
    config: CoLoRAConfig,
    router: Router,
    adapter_name: str,
    names: Sequence[str],
    init: str = "identity",
    rank: int | None = None,
) -> None:
    """See `CoLoRAModel.add_tasks`."""
    if isinstance(names, str):
        names = [names]
    before = router.tasks[adapter_name]
    faults = [fault for name in names if (fault := check_task_name(name))]
    faults += [f"{name!r} is already a task of this bank" for name in names if name in before]
    faults += [f"{name!r} stands twice" for name, count in Counter(map(str, names)).items() if count > 1]
    if faults:
        raise ConfigError("these tasks cannot be added; nothing was changed:", faults)
    source = None if init in ("identity", "mean", "rotated") else router.index(init, adapter_name)
    rank = rank or config.rank_of_new
    if adapter_name not in router.stored and rank != config.r:
        raise ConfigError(
            f"cores of rank {rank} in a bank of rank {config.r}: cores of several sizes are kept in a store; call "
            "colora.store_cores(model, room) first"
        )
    after = before.extended(names)
    if adapter_name in router.stored:
        start = init if source is None else source
        router.stored[adapter_name].add(len(names), start, config.init_rotation, rank)
        config.tasks = TaskSequence(after)  # type: ignore[assignment]
        router.register(adapter_name, after)
        return
    uids = [next(_next_uid) for _ in names]
    for layer in layers.values():
        cores = layer.colora_core[adapter_name]
        if init == "mean":
            first = cores.detach().mean(0, keepdim=True)
        elif init == "rotated":
            first = rotated_cores(len(names), cores.shape[-1], config.init_rotation).to(cores)
        elif source is not None:
            first = cores.detach()[source : source + 1]
        else:
            first = fresh_core(cores.shape[-1], cores.dtype, cores.device)[None]
        rows = torch.cat([cores.detach(), first.expand(len(names), -1, -1)])
        grad = None if cores.grad is None else torch.cat([cores.grad, torch.zeros_like(rows[len(before) :])])
        _replace(cores, rows, grad, task_uids(cores) + uids)
    config.tasks = list(after)
    router.register(adapter_name, after)


def remove(
    layers: Mapping[str, CoLoRALinear], config: CoLoRAConfig, router: Router, adapter_name: str, name: str
) -> None:
    """See `CoLoRAModel.remove_task`."""
    index = router.index(name, adapter_name)
    _check_unmerged(layers)
    if len(router.tasks[adapter_name]) == 1:
        raise ConfigError(f"{name!r} is the only task of this bank; delete the adapter instead")
    if adapter_name in router.stored:
        router.stored[adapter_name].remove(index)
        left = router.tasks[adapter_name].without([index])
        config.tasks = TaskSequence(left)  # type: ignore[assignment]
        router.register(adapter_name, left)
        return
    for layer in layers.values():
        cores = layer.colora_core[adapter_name]
        keep = [row for row in range(cores.shape[0]) if row != index]
        uids = task_uids(cores)
        grad = None if cores.grad is None else cores.grad[keep]
        _replace(cores, cores.detach()[keep], grad, [uids[row] for row in keep])
    config.tasks = [one for one in router.tasks[adapter_name] if one != name]
    router.register(adapter_name, config.tasks)


def read(layers: Mapping[str, CoLoRALinear], router: Router, adapter_name: str, name: str) -> dict[str, Tensor]:
    """See `CoLoRAModel.core`."""
    index = router.index(name, adapter_name)
    if adapter_name in router.stored:
        return router.stored[adapter_name].core(index)
    return {key: layer.colora_core[adapter_name].detach()[index].clone() for key, layer in layers.items()}


def write(
    layers: Mapping[str, CoLoRALinear], router: Router, adapter_name: str, name: str, core: Mapping[str, Tensor]
) -> None:
    """See `CoLoRAModel.set_core`."""
    index = router.index(name, adapter_name)
    _check_unmerged(layers)
    ranks = [layer.colora_core[adapter_name].shape[-1] for layer in layers.values()]
    if adapter_name in router.stored:
        ranks = router.stored[adapter_name].kept.form(index).ranks
    _check_core(dict(zip(layers, ranks, strict=True)), core)
    if adapter_name in router.stored:
        router.stored[adapter_name].set_core(index, core)
        return
    with torch.no_grad():
        for name, layer in layers.items():
            cores = layer.colora_core[adapter_name]
            cores[index] = core[name].to(cores)


def _check_core(ranks: Mapping[str, int], core: Mapping[str, Tensor]) -> None:
    """Raises ConfigError naming what a core lacks, or what of it does not fit the task's rank in each layer."""
    faults = [f"{name}: no such adapted layer" for name in core if name not in ranks]
    for name, rank in ranks.items():
        shape = (rank, rank)
        if name not in core:
            faults.append(f"{name}: missing")
        elif tuple(core[name].shape) != shape:
            faults.append(f"{name}: expected shape {shape}, found {tuple(core[name].shape)}")
        elif not torch.isfinite(core[name]).all():
            faults.append(f"{name}: holds NaN or infinity")
    if faults:
        raise ConfigError("this core does not fit the bank; nothing was changed:", shortened(faults, 10))


def _check_unmerged(layers: Mapping[str, CoLoRALinear]) -> None:
    if any(layer.merged for layer in layers.values()):
        raise ConfigError("the bank is merged into the base weights: call unmerge_adapter() before changing its cores")


def _replace(cores: nn.Parameter, rows: Tensor, grad: Tensor | None, uids: list[int]) -> None:
    cores.grad = None  # its shape must be that of the data at all times
    cores.data = rows.contiguous()
    cores.grad = grad
    cores.colora_task_uids = uids  # type: ignore[attr-defined]
