"""Training of one task's core, and of directions that are its own alone, while everything else in the model rests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from colora.adapter.model import bank_layers
from colora.common.progress import progress_bar
from colora.errors import ConfigError, TrainingDivergedError
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks
from colora.tasks.mixing import TaskMixture
from colora.training.loop.optimizer import TaskAdamW, parameter_groups
from colora.training.rates import CORE_LR

__all__ = ["Settings", "fit_core"]

LARGE = 16  # rank of a core
BETAS = (0.9, 0.95)  # within few steps a second moment at 0.999 would remember one large gradient throughout


@dataclass(frozen=True)
class Settings:
    """How a newcomer's core is trained.

    Attributes:
        steps: optimiser steps. rows: examples of a step.
        lr: peak learning rate of the core, which falls as a cosine; None: 0.12, or 0.06 for large cores.
        extend: further directions of A and B for the newcomer, see `colora.transfer.onboarding.extend`.
        factor_lr: peak learning rate of those directions; 0: they stay as its gradient gave them, which measured no
            worse.
        pull: the share of the way back to its start that the core goes after a step at the peak rate; it falls with the
            rate. None: 0, or 0.1 for large cores, which learn a few examples by heart and, far from their start, forget
            what the bank knows of all others. (L2-SP, arXiv:1802.01483, decoupled as in AdamW.)
        seed: of the order of examples, and of dropout.

    A core is large from rank 16, `extend` included; measured were 8 and 24.

    Raises:
        ConfigError: naming every field that is out of range.
    """

    steps: int = 20
    rows: int = 8
    lr: float | None = None
    extend: int = 0
    factor_lr: float = 0.0
    pull: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "rows": 1, "extend": 0, "seed": 0}
        faults = [f"{name}: expected at least {low}, found {getattr(self, name)}" for name, low in least.items()
                  if getattr(self, name) < low]  # fmt: skip
        if self.lr is not None and not 0 < self.lr < float("inf"):
            faults.append(f"lr: expected a number above 0, found {self.lr}")
        if not 0 <= self.factor_lr < float("inf"):
            faults.append(f"factor_lr: expected 0 or a number above, found {self.factor_lr}")
        if self.pull is not None and not 0 <= self.pull <= 1:
            faults.append(f"pull: expected 0 to 1, found {self.pull}")
        if faults:
            raise ConfigError("a newcomer cannot be trained with these settings:", faults)

    def rates(self, rank: int) -> tuple[float, float]:
        """Peak learning rate and pull for cores of `rank` × `rank` numbers, `extend` included."""
        lr, pull = (CORE_LR, 0.1) if rank >= LARGE else (2 * CORE_LR, 0.0)
        return lr if self.lr is None else self.lr, pull if self.pull is None else self.pull


def fit_core(model: PeftModel, own: int, data: EncodedTasks, collate: TaskCollator, settings: Settings) -> None:
    """Train the core of task `own` on `data`, and the last `extend` directions of A and B, which no other task may use.

    No other number changes, and modes and random state are given back.

    Raises:
        TrainingDivergedError: the loss or what is trained became NaN or infinite.
    """
    device = next(model.parameters()).device
    awake = [module.training for module in model.modules()]
    generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
    try:
        with _only_its_own(model, settings.extend if settings.factor_lr else 0) as parameters, generators:
            torch.manual_seed(settings.seed)  # for dropout
            model.train()
            _steps(model, own, data, collate, settings, device)
            if not all(torch.isfinite(one[own] if one.ndim == 3 else one).all() for one in parameters):
                raise TrainingDivergedError(f"the core became NaN or infinite in step {settings.steps}: lower lr")
    finally:
        for module, mode in zip(model.modules(), awake, strict=True):
            module.training = mode


def _steps(
    model: PeftModel, own: int, data: EncodedTasks, collate: TaskCollator, settings: Settings, device: torch.device
) -> None:
    layers = bank_layers(model, model.active_adapters[0]).values()
    lr, pull = settings.rates(max(layer.colora_core[model.active_adapters[0]].shape[-1] for layer in layers))
    optimizer = TaskAdamW(parameter_groups(model, settings.factor_lr, lr), betas=BETAS)
    optimizer.zero_grad()
    (cores,) = [group for group in optimizer.param_groups if group["role"] == "core"]
    starts = [core.detach()[own].clone() for core in cores["params"]]
    scheduler = get_cosine_schedule_with_warmup(optimizer, min(5, settings.steps // 4), settings.steps)
    order = iter(TaskMixture([len(data)], batch_size=settings.rows, steps=settings.steps, seed=settings.seed))
    encoder_decoder = is_encoder_decoder(model)
    with progress_bar() as bar, torch.enable_grad():
        counter = bar.add_task("onboarding", total=settings.steps)
        for step in range(settings.steps):
            batch = collate([data[next(order)] for _ in range(settings.rows)])
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            inputs["task_ids"] = torch.full_like(inputs["task_ids"], own)
            labels = inputs.pop("labels")
            loss = row_nll(model, inputs, labels).sum() / label_tokens(labels, encoder_decoder).sum()
            if not torch.isfinite(loss):
                raise TrainingDivergedError(f"the loss became {loss.item()} in step {step + 1}: lower lr")
            loss.backward()
            optimizer.expect(torch.tensor([own]))
            optimizer.step()
            if pull:
                with torch.no_grad():
                    for core, start in zip(cores["params"], starts, strict=True):
                        core[own].lerp_(start, pull * cores["lr"] / lr)
            scheduler.step()
            optimizer.zero_grad()
            bar.advance(counter)


@contextmanager
def _only_its_own(model: PeftModel, fresh: int) -> Iterator[list[nn.Parameter]]:
    """Inside, cores and the last `fresh` directions of A and B ask for gradients, also in a bank made for inference."""
    bank = model.active_adapters[0]
    layers = bank_layers(model, bank).values()
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, asks in before:
        if asks:
            parameter.requires_grad_(False)
    awake = [layer.colora_core[bank].requires_grad_(True) for layer in layers]
    hooks = []
    for layer in layers if fresh else ():
        for factor, axis in ((layer.colora_A[bank], 0), (layer.colora_B[bank], 1)):
            awake.append(factor.requires_grad_(True))
            hooks.append(factor.register_hook(partial(_last, count=fresh, axis=axis)))
    try:
        yield awake
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, asks in before:
            parameter.requires_grad_(asks)


def _last(grad: Tensor, count: int, axis: int) -> Tensor:
    """A gradient of the last `count` directions alone: for the others Adam's step is then exactly zero."""
    grad = grad.clone()
    grad.narrow(axis, 0, grad.shape[axis] - count).zero_()
    return grad
