"""The training of a client: a base model with an adapter of one task, whose factors and core are set and trained."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from colora.adapter.config import ADAPTER_NAME
from colora.adapter.core_start import rotated_cores
from colora.adapter.identity import base_identity
from colora.adapter.model import bank_layers, bank_tuner
from colora.errors import ConfigError, TrainingDivergedError
from colora.federated.state import ClientState, Tensors, digests, part_of
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedRow, EncodedTasks
from colora.tasks.mixing import TaskMixture
from colora.training.adapter_config import bank_config
from colora.training.config import AdapterSpec

__all__ = ["LocalData", "LocalModel", "Phase"]

BETAS = (0.9, 0.95)  # in so few steps a second moment at 0.999 would remember one large gradient to the end


@dataclass(frozen=True)
class LocalData:
    """One client's training examples, in tokens: all of task 0.

    Attributes:
        name: of the task; the order of the examples depends on it.
        rows: the encoded examples.
    """

    name: str
    rows: EncodedTasks

    def batches(self, position: int, count: int, rows: int, seed: int) -> list[list[EncodedRow]]:
        """`count` batches of `rows` examples, from the `position`-th on.

        The examples come in shuffled passes; the order is a function of name, number and arguments alone.
        """
        order_seed = zlib.crc32(f"{seed}:{self.name}".encode())
        order = iter(TaskMixture([len(self.rows)], batch_size=rows, steps=position + count, seed=order_seed))
        chosen = list(islice(order, position * rows, (position + count) * rows))
        return [[self.rows[index] for index in chosen[start : start + rows]] for start in range(0, len(chosen), rows)]


@dataclass(frozen=True)
class Phase:
    """Local steps in which the same parameters are trained.

    Attributes:
        cores: whether the core is trained.
        factors: "", "A", "B" or "AB": the factors that are trained.
        rates: for each step, the factor of the learning rates.
    """

    cores: bool
    factors: str
    rates: Sequence[float]


class LocalModel:
    """One model in memory for any client: its factors and core are copied in, trained, and copied out.

    Args:
        model: the base model; it gets an adapter of one task.
        adapter: rank, scale and layers of the adapter.
        pad_token_id: fills shorter rows.
        seed: of the initial A.
        lr: peak of the learning rate of the factors.
        core_lr: peak of the learning rate of the core.
        max_grad_norm: of all parameters that are trained in a step; 0 does not clip.
        weight_decay: of the factors, decoupled.

    Raises:
        ConfigError: the adapter has dropout, or modules that would not be shared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: AdapterSpec,
        pad_token_id: int,
        seed: int,
        lr: float,
        core_lr: float,
        max_grad_norm: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.lr, self.core_lr, self.max_grad_norm, self.weight_decay = lr, core_lr, max_grad_norm, weight_decay
        self.seed, self.rotation = seed, adapter.init_rotation
        if adapter.lora_dropout or adapter.modules_to_save:
            raise ConfigError(
                "in a federation adapter.lora_dropout and adapter.modules_to_save cannot be used: remove them"
            )
        set_seed(seed)
        self.peft: PeftModel = get_peft_model(model, bank_config(adapter, ["client"], model))
        self.encoder_decoder = is_encoder_decoder(self.peft)
        self.collate = TaskCollator(pad_token_id)
        layers = bank_layers(self.peft, ADAPTER_NAME)
        self.identity: dict[str, Any] = base_identity(
            {name: layer.base_layer for name, layer in layers.items()}, getattr(model.config, "model_type", None)
        )
        self._factors: Tensors = {f"A/{name}": layer.colora_A[ADAPTER_NAME] for name, layer in layers.items()}
        self._factors |= {f"B/{name}": layer.colora_B[ADAPTER_NAME] for name, layer in layers.items()}
        self._cores: Tensors = {name: layer.colora_core[ADAPTER_NAME] for name, layer in layers.items()}
        self.start = {name: _copy(tensor) for name, tensor in self._factors.items()}
        """The A and B that every client with this seed starts from."""

    @cached_property
    def start_digests(self) -> dict[str, str]:
        """The digests of the A and B that every client starts from."""
        return digests(self.start)

    def initial_state(self, client: str = "") -> ClientState:
        """The state of a new client, which has trained nothing; its name and the seed decide how its core is turned."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"core:{self.seed}:{client}".encode()))
        r = next(iter(self._cores.values())).shape[-1]
        cores = {name: rotated_cores(1, r, self.rotation, generator)[0] for name in self._cores}
        return ClientState(0, cores, self.start, digests=self.start_digests)

    @torch.no_grad()
    def load(self, shared: Tensors, cores: Tensors) -> None:
        """Copy a client's factors and core into the model."""
        for name, parameter in self._factors.items():
            parameter.copy_(shared[name])
        for name, parameter in self._cores.items():
            parameter[0].copy_(cores[name])

    def bank(self, shared: Tensors, cores: Mapping[str, Tensors]) -> PeftModel:
        """The model with these factors and a task for each of these cores. After this it trains no clients."""
        self.load(shared, next(iter(cores.values())))
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
        self,
        state: ClientState,
        data: LocalData,
        phases: Sequence[Phase],
        rows: int,
        seed: int,
        keep_moments: bool = False,
    ) -> tuple[ClientState, Tensors, list[float]]:
        """Train from a client's state.

        Args:
            state: the client.
            data: the client's examples.
            phases: what is trained, and for how many steps.
            rows: examples of a step.
            seed: of the order of the examples.
            keep_moments: keep Adam's moments of the factors as well; otherwise they start at zero each time.

        Returns:
            the state with the trained core and the factors as before; the trained factors; the loss of each step, a
            token NLL.

        Raises:
            TrainingDivergedError: if a loss is NaN or infinite.
        """
        self.load(state.shared, state.cores)
        count = sum(len(phase.rates) for phase in phases)
        batches = iter(data.batches(state.position, count, rows, seed))
        cores = _adam(self._cores, self.core_lr, state.moments)
        factors = _adam(self._factors, self.lr, state.moments, self.weight_decay)
        losses: list[float] = []
        steps = state.steps
        self.peft.train()
        for phase in phases:
            self._unfreeze(phase)
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

    def _unfreeze(self, phase: Phase) -> None:
        for name, parameter in self._factors.items():
            parameter.requires_grad_(part_of(name) in phase.factors)
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
        trained = [tensor for tensor in (*self._factors.values(), *self._cores.values()) if tensor.grad is not None]
        if self.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        for optimizer, lr in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return value


def _adam(parameters: Tensors, lr: float, moments: Tensors, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Adam with these moments; a parameter without moments starts anew."""
    adam = torch.optim.AdamW(parameters.values(), lr=lr, betas=BETAS, weight_decay=weight_decay)
    for name, parameter in parameters.items():
        if f"m/{name}" in moments:
            mean, square = (moments[f"{kind}/{name}"].to(parameter).view_as(parameter).clone() for kind in "mv")
            adam.state[parameter] = {"step": moments[f"t/{name}"].clone(), "exp_avg": mean, "exp_avg_sq": square}
    return adam


def _moments(parameters: Tensors, adam: torch.optim.AdamW) -> Tensors:
    state_keys = {"t": "step", "m": "exp_avg", "v": "exp_avg_sq"}
    return {
        f"{kind}/{name}": _copy(adam.state[parameter][key])
        for name, parameter in parameters.items()
        if parameter in adam.state
        for kind, key in state_keys.items()
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
