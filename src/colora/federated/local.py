"""A client's own training: a base model with a bank of one task, into which factors and a core are put and trained."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import set_seed

from colora.adapter.identity import base_identity
from colora.adapter.layer import fresh_core
from colora.adapter.model import bank_layers, bank_tuner
from colora.errors import ConfigError, TrainingDivergedError
from colora.federated.state import ClientState, Tensors
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedRow, EncodedTasks
from colora.tasks.mixing import TaskMixture
from colora.training.adapter_config import bank_config
from colora.training.config import AdapterSpec

__all__ = ["LocalData", "LocalModel", "Phase"]

BANK = "default"
BETAS = (0.9, 0.95)  # within few steps a second moment at 0.999 would remember one large gradient throughout


@dataclass(frozen=True)
class LocalData:
    """One client's training examples, in tokens: all of task 0."""

    name: str
    rows: EncodedTasks

    def batches(self, position: int, count: int, rows: int, seed: int) -> list[list[EncodedRow]]:
        """`count` local batches from the `position`-th on; shuffled passes, a function of the arguments alone."""
        own_seed = zlib.crc32(f"{seed}:{self.name}".encode())
        order = iter(TaskMixture([len(self.rows)], batch_size=rows, steps=position + count, seed=own_seed))
        chosen = list(islice(order, position * rows, (position + count) * rows))
        return [[self.rows[index] for index in chosen[start : start + rows]] for start in range(0, len(chosen), rows)]


@dataclass(frozen=True)
class Phase:
    """Some local steps in which the same things move.

    Attributes:
        cores: whether the core moves.
        factors: "", "A", "B" or "AB": the factors that move.
        rates: for each step the share of the learning rates.
    """

    cores: bool
    factors: str
    rates: Sequence[float]


class LocalModel:
    """One model in memory that stands for any client: its factors and core are put in, trained, and taken out.

    Args:
        model: the base model; it gets a bank of one task.
        adapter: rank, scale, layers of the bank.
        pad_token_id: fills shorter rows.
        seed: of the start of A.
        lr, core_lr: peaks of the learning rates of factors and core.
        max_grad_norm: of what moves in a step; 0 does not clip.
    """

    def __init__(
        self, model: Any, adapter: AdapterSpec, pad_token_id: int, seed: int, lr: float, core_lr: float,
        max_grad_norm: float = 0.0,
    ) -> None:  # fmt: skip
        self.lr, self.core_lr, self.max_grad_norm = lr, core_lr, max_grad_norm
        if adapter.lora_dropout or adapter.modules_to_save:
            raise ConfigError("in a federation adapter.lora_dropout and adapter.modules_to_save cannot be used")
        set_seed(seed)
        self.peft: PeftModel = get_peft_model(model, bank_config(adapter, ["client"], model))
        self.encoder_decoder = is_encoder_decoder(self.peft)
        self.collate = TaskCollator(pad_token_id)
        layers = bank_layers(self.peft, BANK)
        self.identity: dict[str, Any] = base_identity(
            {name: layer.base_layer for name, layer in layers.items()}, getattr(model.config, "model_type", None)
        )
        self._factors: Tensors = {f"A/{name}": layer.colora_A[BANK] for name, layer in layers.items()}
        self._factors |= {f"B/{name}": layer.colora_B[BANK] for name, layer in layers.items()}
        self._cores: Tensors = {name: layer.colora_core[BANK] for name, layer in layers.items()}
        self.start = {name: _copy(tensor) for name, tensor in self._factors.items()}
        """The A and B that every client with this seed starts from."""

    def newcomer(self) -> ClientState:
        """A client that has trained nothing yet: cores at the identity."""
        r = next(iter(self._cores.values())).shape[-1]
        return ClientState(0, {name: fresh_core(r) for name in self._cores}, self.start)

    @torch.no_grad()
    def put(self, shared: Tensors, cores: Tensors) -> None:
        """Make the model that of a client with these factors and this core."""
        for name, parameter in self._factors.items():
            parameter.copy_(shared[name])
        for name, parameter in self._cores.items():
            parameter[0].copy_(cores[name])

    def bank(self, shared: Tensors, cores: Mapping[str, Tensors]) -> PeftModel:
        """The model with these factors and a task for each of these cores. After this it trains no more clients."""
        self.put(shared, next(iter(cores.values())))
        tuner = bank_tuner(self.peft)
        placeholder = tuner.tasks[0]
        tuner.add_tasks([name for name in cores if name != placeholder])
        for name, core in cores.items():
            tuner.set_core(name, core)
        if placeholder not in cores:
            tuner.remove_task(placeholder)
        for parameter in (*self._factors.values(), *self._cores.values()):
            parameter.requires_grad_(True)
        return self.peft

    def train(
        self, state: ClientState, data: LocalData, phases: Sequence[Phase], rows: int, seed: int,
        keep_moments: bool = False,
    ) -> tuple[ClientState, Tensors, list[float]]:  # fmt: skip
        """Train from a client's state.

        Args:
            keep_moments: of the factors too; otherwise their Adam begins anew each time.

        Returns:
            the state with its core moved on and its known factors as they were; the factors as they are now; the loss
            of each step in nats per token.

        Raises:
            TrainingDivergedError: if a loss is NaN or infinite.
        """
        self.put(state.shared, state.cores)
        count = sum(len(phase.rates) for phase in phases)
        batches = iter(data.batches(state.position, count, rows, seed))
        cores = _adam(self._cores, self.core_lr, state.moments)
        factors = _adam(self._factors, self.lr, state.moments)
        losses: list[float] = []
        steps = state.steps
        self.peft.train()
        for phase in phases:
            self._thaw(phase)
            for share in phase.rates:
                losses.append(self._step(next(batches), [(factors, self.lr * share), (cores, self.core_lr * share)]))
            steps += len(phase.rates) if phase.cores else 0
        moments = _moments(self._cores, cores)
        if keep_moments:
            moments |= _moments(self._factors, factors)
        after = replace(
            state,
            cores={name: _copy(parameter[0]) for name, parameter in self._cores.items()},
            position=state.position + count,
            moments=moments,
            steps=steps,
        )
        return after, {name: _copy(parameter) for name, parameter in self._factors.items()}, losses

    def _thaw(self, phase: Phase) -> None:
        for name, parameter in self._factors.items():
            parameter.requires_grad_(name[0] in phase.factors)
        for parameter in self._cores.values():
            parameter.requires_grad_(phase.cores)

    def _step(self, rows: list[EncodedRow], optimizers: list[tuple[torch.optim.Optimizer, float]]) -> float:
        device = next(iter(self._cores.values())).device
        batch = {name: tensor.to(device) for name, tensor in self.collate(rows).items()}
        labels = batch.pop("labels")
        tokens = label_tokens(labels, self.encoder_decoder).sum()
        loss = row_nll(self.peft, batch, labels).sum() / tokens
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDivergedError(f"the loss became {value}: lower training.lr or training.core_lr")
        loss.backward()
        moved = [tensor for tensor in (*self._factors.values(), *self._cores.values()) if tensor.grad is not None]
        if self.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(moved, self.max_grad_norm)
        for optimizer, lr in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return value


def _adam(parameters: Tensors, lr: float, moments: Tensors) -> torch.optim.Adam:
    """Adam as it was when `moments` were taken, or at its start."""
    made = torch.optim.Adam(parameters.values(), lr=lr, betas=BETAS)
    for name, parameter in parameters.items():
        if f"m/{name}" in moments:
            mean, square = (moments[f"{which}/{name}"].to(parameter).view_as(parameter).clone() for which in "mv")
            made.state[parameter] = {"step": moments[f"t/{name}"].clone(), "exp_avg": mean, "exp_avg_sq": square}
    return made


def _moments(parameters: Tensors, adam: torch.optim.Adam) -> Tensors:
    found = {"t": "step", "m": "exp_avg", "v": "exp_avg_sq"}
    return {
        f"{short}/{name}": _copy(adam.state[parameter][long])
        for name, parameter in parameters.items()
        if parameter in adam.state
        for short, long in found.items()
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
