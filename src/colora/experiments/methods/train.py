"""The one training loop of all methods: equal steps, equal rows, one optimiser; only the method's table differs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor

from colora.errors import ConfigError, TrainingDivergedError
from colora.experiments.methods.data import step_rows
from colora.experiments.methods.federation import Traffic, averaged_parts, end_round
from colora.experiments.methods.forward import Row, SplitForward
from colora.experiments.methods.layer import ConstrainedLinear, distinct_parts
from colora.experiments.methods.method import Method
from colora.experiments.methods.schedule import Moment, Turn, stage_lengths
from colora.experiments.methods.starts import start_from_basis
from colora.experiments.trial import Trial

__all__ = ["Training", "task_losses", "train"]

LOGGED = 10  # losses kept of a run

# Adam's second moment forgets within a run: at the usual 0.999 one large gradient early in fifty steps makes all later
# steps small, and which run meets one is decided by rounding (docs/decisions/training.md, "warm-up").
BETAS = (0.9, 0.95)


@dataclass
class Training:
    """What a training came to.

    Attributes:
        losses: (step, mean over tasks of nats per token) now and then.
        rounds: of a federated method.
        traffic: what travelled.
        peak_memory: bytes.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    rounds: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    peak_memory: int = 0

    def count_round(self, traffic: Traffic) -> None:
        """Add a round and what travelled in it."""
        self.rounds += 1
        self.traffic.up += traffic.up
        self.traffic.down += traffic.down


def train(
    method: Method,
    layers: dict[str, ConstrainedLinear],
    forward: SplitForward,
    rows: Sequence[Sequence[Row]],
    trial: Trial,
    progress: Callable[[int, int], None] | None = None,
) -> Training:
    """Train a method that is attached to the model of `forward`.

    The loss is Σ_k of task k's mean nats per answer token: so each task's gradient is the one it would have alone.
    AdamW (Loshchilov and Hutter, arXiv:1711.05101), cores without decay. The rates rise to their peak in equal stairs,
    `trial.warmup_steps` of them, and fall to zero as a cosine. No clipping: a norm over all tasks couples tasks that
    share nothing. In a federated method the moments of what is averaged start anew in each round, for clients keep no
    state of it; those of what stays at home remain.

    Args:
        method: what is attached.
        layers: where.
        forward: computes the likelihood.
        rows: the training rows of each task.
        trial: steps, rows, rates and seed.
        progress: called with (steps done, steps).

    Raises:
        TrainingDivergedError: if the loss is NaN or infinite.
    """
    options = method.with_defaults(trial.options)
    result = Training()
    optimizer = _optimizer(method, layers, trial)
    if forward.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(forward.device)  # of this trial, not of the largest before it
    log_every = max(1, trial.steps // LOGGED)
    for step in range(trial.steps):
        is_last = step == trial.steps - 1
        moment = moment_of(step, method, trial, options)
        turn = method.schedule(moment)
        if method.makes_basis and moment.stage == 1 and moment.stage_step == 0:
            start_from_basis(layers)
        _take_turn(layers, turn)
        batch = step_rows(rows, trial.rows, step, trial.seed)
        loss = task_losses(forward.row_nll(batch), batch, len(rows))
        result.peak_memory = max(result.peak_memory, _memory(forward.device))
        mean = _finite_mean(loss, method, step)
        if step % log_every == 0 or is_last:
            result.losses.append((step, round(mean, 5)))
        loss.sum().backward()
        _set_rates(optimizer, moment, trial)
        optimizer.step()
        optimizer.zero_grad()
        if options.get("pull"):
            strength = options["pull"] * remaining_pull(step, trial.steps, options.get("release", 1.0))
            _proximal_step(layers, method, turn, optimizer.param_groups[-1]["lr"] * strength)
        if method.federated and (moment.local_step == moment.round_steps - 1):
            result.count_round(end_round(layers, method, turn.frozen))
            _forget_moments(optimizer, layers, turn.frozen)
        if progress is not None:
            progress(step + 1, trial.steps)
    _take_turn(layers, Turn(silent=method.unused))
    return result


def moment_of(step: int, method: Method, trial: Trial, options: Mapping[str, float]) -> Moment:
    """Where this step of the trial is in the method's stages and rounds.

    Raises:
        ConfigError: if a basis is to be made and no step is left to train in it.
    """
    local_steps = trial.local_steps if method.federated else trial.steps
    first = options["first"] if method.staged else None
    stages = stage_lengths(trial.steps, first, local_steps if method.federated else 1)
    if method.makes_basis and not stages[-1]:
        raise ConfigError(f"method {method.name!r}: expected steps after the first stage of {stages[0]}, found none")
    return Moment(step, stages, local_steps, options)


def remaining_pull(step: int, steps: int, release: float) -> float:
    """One for the share `release` of the steps, and from there on a straight line that would reach 0 after the last."""
    return min(1.0, (steps - step) / (steps * (1 - release))) if release < 1 else 1.0


def _finite_mean(loss: Tensor, method: Method, step: int) -> float:
    """The mean over tasks. Raises TrainingDivergedError if it is NaN or infinite."""
    mean = float(loss.detach().mean())
    if not math.isfinite(mean):
        raise TrainingDivergedError(f"the loss of {method.name!r} became {mean} at step {step}: lower the rates")
    return mean


def task_losses(row_nll: Tensor, batch: Sequence[Row], tasks: int) -> Tensor:
    """Mean nats per answer token of each task of a batch in equal blocks: (K,)."""
    tokens = torch.tensor([row.answer_tokens for row in batch], device=row_nll.device, dtype=row_nll.dtype)
    return row_nll.view(tasks, -1).sum(1) / tokens.view(tasks, -1).sum(1)


def _optimizer(method: Method, layers: dict[str, ConstrainedLinear], trial: Trial) -> torch.optim.AdamW:
    factors: list[Tensor] = []
    cores: list[Tensor] = []
    for term, name, tensor in distinct_parts(layers.values()):
        part = name.rstrip("'")
        if term.term.parts()[part].trained:
            (cores if part == "core" else factors).append(tensor)
    core_lr = trial.core_lr if method.core_rate and trial.core_lr is not None else trial.lr
    groups: list[dict[str, Any]] = [
        {"params": params, "lr": lr, "peak": lr, "weight_decay": decay}
        for params, lr, decay in ((factors, trial.lr, trial.weight_decay), (cores, core_lr, 0.0))
        if params
    ]
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


def _set_rates(optimizer: torch.optim.Optimizer, moment: Moment, trial: Trial) -> None:
    """Each stage has a rise and a fall of its own, the rise the same share of it as of all steps."""
    steps = moment.stages[moment.stage]
    share = _share_of_peak(moment.stage_step, steps, trial.warmup_steps * steps // trial.steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _share_of_peak(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _take_turn(layers: Mapping[str, ConstrainedLinear], turn: Turn) -> None:
    for layer in layers.values():
        for number, term in enumerate(layer.term_layers()):
            term.silent = number in turn.silent
            for name, tensor in term.parts():
                tensor.requires_grad_(term.term.parts()[name].trained and name + "'" * number not in turn.frozen)


@torch.no_grad()
def _proximal_step(layers: Mapping[str, ConstrainedLinear], method: Method, turn: Turn, strength: float) -> None:
    """What has moved, by this share of the way to where it is drawn and never beyond.

    Λ_k ← Λ_k − strength · (Λ_k − mean_j Λ_j), or a second term's A and B likewise towards those of the first.
    """
    share = min(1.0, strength)
    if method.pull_to == "mean":
        for _, name, core in distinct_parts(layers.values()):
            if name == "core" and name not in turn.frozen:
                core.lerp_(core.mean(0, keepdim=True).expand_as(core), share)
        return
    for layer in layers.values():
        first, second = layer.term_layers()
        if "A'" not in turn.frozen:
            second.A.lerp_(first.A, share)
            second.B.lerp_(first.B, share)


def _forget_moments(
    optimizer: torch.optim.Optimizer, layers: Mapping[str, ConstrainedLinear], frozen: frozenset[str]
) -> None:
    for layer in layers.values():
        for *_, copies in averaged_parts(layer, frozen):
            optimizer.state.pop(copies, None)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
