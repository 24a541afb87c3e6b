"""Training of one task's core, and of directions that only this task uses; everything else in the model is frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from colora.adapter.model import bank_layers, bank_tuner
from colora.adapter.stored.access import core_rank, held_tasks
from colora.common.progress import progress_bar
from colora.errors import ConfigError, TrainingDivergedError
from colora.models.batching import device_of
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks
from colora.tasks.mixing import TaskMixture
from colora.training.loop.optimizer import TaskAdamW, parameter_groups

__all__ = ["BETAS", "Settings", "fit_core", "trainable", "warmup_steps"]

LARGE = 24  # rank of a core
LR, LARGE_LR = 0.12, 0.06  # the factors rest, so a core goes further in few steps than where all are trained
BETAS = (0.9, 0.95)  # within few steps a second moment at 0.999 would remember one large gradient throughout


@dataclass(frozen=True)
class Settings:
    """How a new task's core is trained.

    Attributes:
        steps: optimiser steps. rows: examples of a step.
        lr: peak learning rate of the core, which falls as a cosine; None: 0.12, or 0.06 for large cores.
        extend: further directions of A and B for the new task, see `colora.transfer.onboarding.extend`.
        rank: of its core before that; by default the bank's, `CoLoRAConfig.core_rank`. A higher one lets it use the
            directions that were added for other tasks.
        factor_lr: peak learning rate of those directions; 0: they stay as its gradient gave them, which measured no
            worse.
        proximal: strength of the proximal regularisation towards the start (L2-SP, arXiv:1802.01483, decoupled as in
            AdamW): the share of the way back that the core goes after a step at the peak rate; it falls with the rate.
            None: 0, or 0.1 for large cores, which learn a few examples by heart and, far from their start, forget what
            the bank knows of all other tasks.
        seed: of the order of examples, and of dropout.

    A core is large from rank 24, `extend` included; measured were 8, 16, 24 and 32.

    Raises:
        ConfigError: naming every field that is out of range.
    """

    steps: int = 20
    rows: int = 8
    lr: float | None = None
    extend: int = 0
    factor_lr: float = 0.0
    proximal: float | None = None
    seed: int = 0
    rank: int | None = None

    def __post_init__(self) -> None:
        least = {"steps": 1, "rows": 1, "extend": 0, "seed": 0}
        faults = [
            f"{name}: expected at least {low}, found {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.rank is not None and self.rank < 1:
            faults.append(f"rank: expected at least 1, found {self.rank}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            faults.append(f"lr: expected a number above 0, found {self.lr}")
        if not 0 <= self.factor_lr < float("inf"):
            faults.append(f"factor_lr: expected 0 or a number above, found {self.factor_lr}")
        if self.proximal is not None and not 0 <= self.proximal <= 1:
            faults.append(f"proximal: expected 0 to 1, found {self.proximal}")
        if faults:
            raise ConfigError("a new task cannot be trained with these settings:", faults)

    def rates(self, rank: int) -> tuple[float, float]:
        """Peak learning rate and proximal strength for cores of `rank` × `rank` parameters, `extend` included."""
        lr, proximal = (LARGE_LR, 0.1) if rank >= LARGE else (LR, 0.0)
        return lr if self.lr is None else self.lr, proximal if self.proximal is None else self.proximal


def fit_core(model: PeftModel, index: int, data: EncodedTasks, collate: TaskCollator, settings: Settings) -> None:
    """Train the core of task `index` on `data`, and the last `extend` directions of A and B, which only it may use.

    Nothing else in the model changes; modes and random state are restored.

    Raises:
        TrainingDivergedError: the loss or what is trained became NaN or infinite.
    """
    device, name = device_of(model), bank_tuner(model).tasks[index]
    modes = [module.training for module in model.modules()]
    generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
    try:
        fresh = settings.extend if settings.factor_lr else 0
        with held_tasks(model, [name]), trainable(model, fresh) as parameters, generators:
            torch.manual_seed(settings.seed)  # for dropout
            model.train()
            _steps(model, index, data, collate, settings)
            place = bank_tuner(model).router.place(model.active_adapters[0], index)
            if not all(torch.isfinite(part[place] if part.ndim == 3 else part).all() for part in parameters):
                raise TrainingDivergedError(f"the core became NaN or infinite in step {settings.steps}: lower lr")
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode


def _steps(model: PeftModel, index: int, data: EncodedTasks, collate: TaskCollator, settings: Settings) -> None:
    bank, device = model.active_adapters[0], device_of(model)
    lr, proximal = settings.rates(core_rank(model, index))
    place = bank_tuner(model).router.place(bank, index)
    optimizer = TaskAdamW(parameter_groups(model, settings.factor_lr, lr), betas=BETAS)
    optimizer.zero_grad()
    (cores,) = [group for group in optimizer.param_groups if group["role"] == "core"]
    starts = [core.detach()[place].clone() for core in cores["params"]]
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup_steps(settings), settings.steps)
    order = iter(TaskMixture([len(data)], batch_size=settings.rows, steps=settings.steps, seed=settings.seed))
    encoder_decoder = is_encoder_decoder(model)
    with progress_bar() as bar, torch.enable_grad():
        counter = bar.add_task("onboarding", total=settings.steps)
        for step in range(settings.steps):
            batch = collate([data[next(order)] for _ in range(settings.rows)])
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            inputs["task_ids"] = torch.full_like(inputs["task_ids"], index)
            labels = inputs.pop("labels")
            loss = row_nll(model, inputs, labels).sum() / label_tokens(labels, encoder_decoder).sum()
            if not torch.isfinite(loss):
                raise TrainingDivergedError(f"the loss became {loss.item()} in step {step + 1}: lower lr")
            loss.backward()
            optimizer.expect(torch.tensor([place]))
            optimizer.step()
            if proximal:
                with torch.no_grad():
                    for core, start in zip(cores["params"], starts, strict=True):
                        core[place].lerp_(start, proximal * cores["lr"] / lr)
            scheduler.step()
            optimizer.zero_grad()
            bar.advance(counter)


def warmup_steps(settings: Settings) -> int:
    """Steps in which the rate rises, before it falls as a cosine."""
    return min(5, settings.steps // 4)


@contextmanager
def trainable(model: PeftModel, fresh: int) -> Iterator[list[nn.Parameter]]:
    """Inside, cores and the last `fresh` directions of A and B require gradients, also in a bank made for inference."""
    bank = model.active_adapters[0]
    layers = bank_layers(model, bank).values()
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = [layer.colora_core[bank].requires_grad_(True) for layer in layers]
    hooks = []
    for layer in layers if fresh else ():
        for factor, axis in ((layer.colora_A[bank], 0), (layer.colora_B[bank], 1)):
            trained.append(factor.requires_grad_(True))
            hooks.append(factor.register_hook(partial(_last, count=fresh, axis=axis)))
    try:
        yield trained
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, required in before:
            parameter.requires_grad_(required)


def _last(grad: Tensor, count: int, axis: int) -> Tensor:
    """The gradient of the last `count` directions alone: for the others Adam's step is then exactly zero."""
    grad = grad.clone()
    grad.narrow(axis, 0, grad.shape[axis] - count).zero_()
    return grad
