"""Training on a base that is sharded over processes: the bank is whole on each, and its gradients are averaged here.

FSDP2 averages the gradients of what it has sharded, and the base has none; DDP would take the base apart. So once a
step, after the last micro-batch and before clipping, all gradients of the bank are averaged at once, as DDP does.
Every process then clips by the same norm and takes the same step.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from colora.errors import ConfigError
from colora.models.sharding import free_gathered, is_sharded
from colora.training.encode import EncodedRun
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.resolve import ResolvedRun

__all__ = ["ShardedTrainer", "average_gradients", "trainer_class"]


class ShardedTrainer(CoLoRATrainer):
    """`CoLoRATrainer` for a bank on a base that `colora.models.sharding.sharded` has spread.

    Raises:
        ConfigError: as `CoLoRATrainer`; or modules of the base are to be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        run: ResolvedRun,
        data: EncodedRun,
        *,
        routed: bool = True,
        description: str = "training",
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if parts := [name for name, one in model.named_parameters() if one.requires_grad and _is_part(one)]:
            raise ConfigError(
                f"training.shard: the base stays frozen, but {parts[0]} is to be trained (modules_to_save?)"
            )
        # transformers takes it that the optimiser's state is sharded as the model is, and refuses to save it. Ours is
        # that of the bank alone.
        args.save_only_model = True
        super().__init__(model, args, run, data, routed=routed, description=description, callbacks=callbacks)
        args.save_only_model = False

    def training_step(self, *args: object, **kwargs: object) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            average_gradients(one for one in self.model.parameters() if one.requires_grad)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        free_gathered(self.model)
        super()._save(output_dir, state_dict)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Let all begin with the first one's bank. transformers would also average each gradient as it comes: where a
        parameter has one on some processes only (an expert), they would average what does not belong together."""
        for one in model.parameters():
            if one.requires_grad:
                dist.broadcast(one.data, 0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over all processes. A process without one counts as zero; where all are without, none is.

    Args:
        parameters: the same ones in the same order on each process.
    """
    ordered = list(parameters)
    if not ordered:
        return
    anywhere = torch.tensor([one.grad is not None for one in ordered], dtype=torch.uint8, device=ordered[0].device)
    dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
    of_kind: dict[torch.dtype, list[Tensor]] = {}
    for one, has in zip(ordered, anywhere.tolist(), strict=True):
        if has:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
            of_kind.setdefault(one.grad.dtype, []).append(one.grad)
    for gradients in of_kind.values():
        flat = torch.cat([one.reshape(-1) for one in gradients])
        dist.all_reduce(flat)
        flat.div_(dist.get_world_size())
        for gradient, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def trainer_class(model: nn.Module) -> type[CoLoRATrainer]:
    """Which trainer a bank's base needs."""
    return ShardedTrainer if is_sharded(model) else CoLoRATrainer


def _is_part(parameter: Tensor) -> bool:
    return hasattr(parameter, "full_tensor")
