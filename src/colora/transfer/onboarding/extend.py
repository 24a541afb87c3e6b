"""More rank for a new task that the shared subspace does not hold, with every other task's model as it was.

A gets further rows and B further columns. The cores of all other tasks stay what they are, r × r numbers that mix the
first r directions, so that B Λ_k A is the same; the new task's is (r + extra) × (r + extra). Cores of several sizes are
in a store. Tasks that come later have the size that the bank was trained with (`CoLoRAConfig.core_rank`): a core that
reaches into the directions of one other task must be asked for. The new
directions are the leading ones of the new task's gradient outside the subspace: of G (I − P_A) for A, of (I − P_B) G
for B, each as long as the bank's own are on average. Where the gradient has fewer of them, random directions take
their place. No other task uses them, so they may be trained with the new task's core (`Settings.factor_lr`).
"""

from collections.abc import Mapping

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from colora.adapter.config import ADAPTER_NAME, CoLoRAConfig
from colora.adapter.model import bank_layers, bank_tuner
from colora.adapter.stored.access import ROOM, store_cores
from colora.adapter.task_names import TaskSequence
from colora.errors import ConfigError
from colora.training.task_gradients import TaskGradients
from colora.transfer.onboarding.coverage import orthonormal

__all__ = ["extend_rank"]


def extend_rank(model: PeftModel, extra: int, gradients: TaskGradients, task: str, index: int = 0) -> PeftModel:
    """A bank with A and B of rank r + `extra` on the same base, which it takes out of `model`; cores are in a store.

    Args:
        model: with one active bank.
        gradients: of the new task, at `index`.
        task: the new task, whose core gets zeros for the new directions; those of all others stay.

    Raises:
        ConfigError: a layer is smaller than the new rank, or the bank has modules trained in full; `model` is then as
            it was.
        TaskIdError: the bank has no such task.
    """
    tuner = bank_tuner(model)
    bank = tuner.active_adapters[0]
    number, names = tuner.router.index(task, bank), tuner.router.tasks[bank]
    config: CoLoRAConfig = tuner.peft_config[bank]
    if config.modules_to_save:
        raise ConfigError("a bank with modules_to_save cannot be extended: leave extend (--extend) out")
    grown = {}
    for name, layer in bank_layers(model, bank).items():
        A, B = layer.colora_A[bank].detach(), layer.colora_B[bank].detach()
        left, right = (factor[index] for factor in gradients.factors[name])
        if min(layer.in_features - A.shape[0], layer.out_features - B.shape[1]) < extra:
            raise ConfigError(f"layer {name} has no room for {extra} further directions: choose fewer")
        grown[name] = _grown(A, B, left, right, extra)
    stored = tuner.router.stored.get(bank) or store_cores(model, min(ROOM, len(names)))
    larger = get_peft_model(tuner.unload(), _larger(config, extra, task))
    _fill(larger, grown)
    router = bank_tuner(larger).router
    stacks = {name: layer.colora_core[ADAPTER_NAME] for name, layer in bank_layers(larger, ADAPTER_NAME).items()}
    moved = router.stored[ADAPTER_NAME] = stored.moved(stacks)
    moved.set_rank(number, config.r + extra)
    bank_tuner(larger).peft_config[ADAPTER_NAME].tasks = TaskSequence(names)
    router.register(ADAPTER_NAME, names)
    return larger


def _larger(config: CoLoRAConfig, extra: int, task: str) -> CoLoRAConfig:
    """The config of the larger bank, of one task as yet: no cores of r + extra are made for the others."""
    larger = {"r": config.r + extra, "lora_alpha": config.alpha_of(config.r + extra), "core_rank": config.rank_of_new}
    # The digest is that of the tensors of before.
    return type(config)(**config.with_tasks([task]).to_dict() | larger | {"weights_sha256": None})


@torch.no_grad()
def _fill(model: PeftModel, grown: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for name, layer in bank_layers(model, ADAPTER_NAME).items():
        A, B = grown[name]
        layer.colora_A[ADAPTER_NAME].copy_(A)
        layer.colora_B[ADAPTER_NAME].copy_(B)


def _grown(A: Tensor, B: Tensor, left: Tensor, right: Tensor, extra: int) -> tuple[Tensor, Tensor]:
    """A and B with the leading directions of left right outside of them."""
    q_a, q_b = orthonormal(A.cpu().mT), orthonormal(B.cpu())
    left, right = left.double(), right.double()
    more_a = _leading_outside(right.mT, q_a, extra).mT
    more_b = _leading_outside(left @ torch.linalg.qr(right.mT).R.mT, q_b, extra)
    more_a, more_b = more_a * A.norm(dim=1).mean().cpu(), more_b * B.norm(dim=0).mean().cpu()
    return torch.cat([A.cpu(), more_a.to(A.dtype)]), torch.cat([B.cpu(), more_b.to(B.dtype)], dim=1)


def _leading_outside(columns: Tensor, basis: Tensor, count: int) -> Tensor:
    """The leading left singular vectors (d, count) of the columns (d, q) without what `basis` (d, r) spans."""
    # Of a gradient of lower rank further singular vectors are arbitrary, and those of LAPACK may lie inside.
    noise = torch.randn(len(columns), count, generator=torch.Generator().manual_seed(0), dtype=columns.dtype)
    filled = torch.cat([columns, 1e-9 * (columns.norm() or 1.0) * noise], dim=1)
    outside = filled - basis @ (basis.mT @ filled)
    return torch.linalg.svd(outside, full_matrices=False).U[:, :count]
