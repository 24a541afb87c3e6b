"""The trained terms of a trial, kept as safetensors until it is known whose adapters are wanted.

OUTPUT/trained/KEY.safetensors    "LAYER NUMBER.PART": A, B or core of a term; metadata: the scale and the tasks
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from colora.common.files import write_bytes
from colora.errors import BankFileError, ConfigError
from colora.experiments.methods.layer import ConstrainedLinear

__all__ = ["TrainedTerm", "TrainedWeights", "keep_weights", "read_weights", "stacked"]


@dataclass(frozen=True)
class TrainedTerm:
    """One s · B Λ A of a layer: A (1 | K, r, d_in), B (1 | K, d_out, r), core (1 | K, r, r), or None."""

    A: Tensor
    B: Tensor
    core: Tensor | None

    def factors(self, task: int) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B Λ (d_out, r) of a task; their product is formed in float64 and rounded once."""
        A, B = self.A[task % len(self.A)], self.B[task % len(self.B)]
        if self.core is None:
            return A, B
        core = self.core[task % len(self.core)]
        return A, (B.double() @ core.double()).to(B.dtype)


@dataclass(frozen=True)
class TrainedWeights:
    """What a trial trained.

    Attributes:
        layers: the terms of each adapted layer, by its name in the base model.
        scale: s.
        tasks: their names, in order.
    """

    layers: Mapping[str, tuple[TrainedTerm, ...]]
    scale: float
    tasks: tuple[str, ...]


def keep_weights(path: Path, layers: Mapping[str, ConstrainedLinear], tasks: tuple[str, ...]) -> None:
    """Write the trained terms of a trial with at least one layer, atomically.

    Raises:
        ConfigError: something was folded into the weights or held diagonal, which has no form of a few LoRAs.
        CheckpointError: the file cannot be written.
    """
    tensors = {}
    for name, layer in layers.items():
        if layer.folded is not None or any(term.term.diagonal for term in layer.term_layers()):
            raise ConfigError(f"layer {name}: expected plain terms, found a folded update or a diagonal core")
        for number, term in enumerate(layer.term_layers()):
            for part, tensor in term.parts():
                tensors[f"{name} {number}.{part}"] = tensor.detach().cpu().contiguous()
    scale = next(iter(layers.values())).scale  # that of every layer
    write_bytes(path, save(tensors, metadata={"scale": repr(scale), "tasks": json.dumps(tasks)}))


def read_weights(path: str | os.PathLike[str]) -> TrainedWeights:
    """What `keep_weights` wrote. Raises BankFileError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BankFileError(f"{path}: cannot be read ({error}); remove it to train it again") from error
    parts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        name, _, term = key.rpartition(" ")
        number, _, part = term.partition(".")
        parts.setdefault(name, {}).setdefault(int(number), {})[part] = tensor
    layers = {
        name: tuple(TrainedTerm(one["A"], one["B"], one.get("core")) for _, one in sorted(terms.items()))
        for name, terms in parts.items()
    }
    return TrainedWeights(layers, float(metadata["scale"]), tuple(json.loads(metadata["tasks"])))


def stacked(terms: tuple[TrainedTerm, ...], task: int) -> tuple[Tensor, Tensor]:
    """All terms of a task as one LoRA: A (Σ r, d_in) and B (d_out, Σ r), exactly."""
    pairs = [term.factors(task) for term in terms]
    return torch.cat([A for A, _ in pairs], dim=0), torch.cat([B for _, B in pairs], dim=1)
