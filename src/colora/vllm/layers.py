"""A bank's A and B on the linear layers of a model of vLLM.

Every linear layer of vLLM leaves its product to a `quant_method`, whatever the precision of the weights, how the layer
is divided among processes, and what is done with the result. Ours does what the layer's own did and adds the update.
The layer's `weight_loader`, which divides the weights of the base, divides A and B as well.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from vllm.lora.utils import process_packed_modules_mapping
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.utils import set_weight_attrs

from colora.bank.tensors import LayerTensors, SavedBank
from colora.common.text import shortened
from colora.errors import ConfigError
from colora.vllm.update import BankUpdate, Cores, Part

__all__ = ["Place", "attach", "layer_order", "places", "replace_factors"]

KINDS = (ReplicatedLinear, ColumnParallelLinear, RowParallelLinear)
SHARDS = ("q", "k", "v")


@dataclass(frozen=True)
class Place:
    """Where an adapted layer of the bank is in the model.

    Attributes:
        layer: its name in the bank.
        shard: which part of the model's layer it is, as the layer's `weight_loader` takes it; None for all of it.
    """

    layer: str
    shard: str | int | None


def places(model: nn.Module, bank: SavedBank, partial: bool) -> dict[str, list[Place]]:
    """The bank's layers in each linear layer of the model, by the name of that.

    Args:
        model: of vLLM.
        bank: whose layers have their names in the base model of transformers.
        partial: this process has only some layers of the model.

    Raises:
        ConfigError: naming the layers that are not there, or are of a kind that cannot be adapted here.
    """
    named = _names_here(model, bank)
    packed: Mapping[str, list[str]] = process_packed_modules_mapping(model)
    found: dict[str, list[Place]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LinearBase):
            continue
        parent, _, leaf = name.rpartition(".")
        beside = f"{parent}." if parent else ""
        whole = [Place(named[name], None)] if name in named else []
        parts = [
            Place(named[beside + part], _shard(module, number))
            for number, part in enumerate(packed.get(leaf, ()))
            if part != leaf and beside + part in named
        ]
        if whole or parts:
            found[name] = whole or parts
    faults = [f"{name}: {type(model.get_submodule(name)).__name__}" for name in found if not _can(model, name)]
    missing = sorted(set(bank.layers) - {place.layer for some in found.values() for place in some})
    if missing and not partial:
        faults += [f"{layer}: not a linear layer of vLLM's {type(model).__name__}" for layer in missing]
    if faults:
        raise ConfigError(
            f"{bank.folder}: the bank adapts layers that cannot be adapted inside vLLM:", shortened(faults, 10)
        )
    return found


def attach(model: nn.Module, bank: SavedBank, found: Mapping[str, list[Place]], cores: Cores) -> None:
    """Make these layers add the bank's update.

    Args:
        model: of vLLM, its weights loaded.
        bank: with A and B.
        found: what `places` found.
        cores: in the order of `found`.
    """
    first = 0
    for name, parts in _parts(model, bank, found):
        layer = model.get_submodule(name)
        assert isinstance(layer, KINDS)
        assert isinstance(layer.quant_method, LinearMethodBase)
        make = partial(_linear, dtype=cores.stacked.dtype, device=cores.stacked.device)
        layer.colora_update = BankUpdate(parts, first, _outputs(layer), cores, make)
        layer.quant_method = _adding(layer.quant_method)
        first += len(parts)


def replace_factors(model: nn.Module, bank: SavedBank, found: Mapping[str, list[Place]]) -> None:
    """Give the layers the A and B of another bank on the same layers."""
    for name, parts in _parts(model, bank, found):
        _update(model.get_submodule(name)).set_factors(parts)


def _parts(model: nn.Module, bank: SavedBank, found: Mapping[str, list[Place]]) -> Iterator[tuple[str, list[Part]]]:
    for name, some in found.items():
        layer = model.get_submodule(name)
        yield name, [_part(layer, place, bank.layers[place.layer], bank.config.scaling) for place in some]


def _names_here(model: nn.Module, bank: SavedBank) -> dict[str, str]:
    """The bank's layers by the name that vLLM's model gives them, where it divides or joins none."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return {layer: layer for layer in bank.layers}
    rename = mapper.get_rename_mapper()
    return {(rename.map_name(f"{layer}.weight") or layer).removesuffix(".weight"): layer for layer in bank.layers}


def _shard(module: LinearBase, number: int) -> str | int | None:
    if isinstance(module, QKVParallelLinear):
        return SHARDS[number] if number < len(SHARDS) else None
    return number if isinstance(module, MergedColumnParallelLinear) else None


def _can(model: nn.Module, name: str) -> bool:
    module = model.get_submodule(name)
    return isinstance(module, KINDS) and isinstance(module.quant_method, LinearMethodBase)


def _outputs(layer: LinearBase) -> int:
    """Rows of the layer's output in this process."""
    if isinstance(layer, ColumnParallelLinear):
        return int(layer.output_size_per_partition)
    return int(layer.output_size)


def _part(layer: LinearBase, place: Place, tensors: LayerTensors, scale: float) -> Part:
    rank, outputs = tensors.A.shape[0], _outputs(layer)
    A = tensors.A
    if isinstance(layer, RowParallelLinear):
        A = _loaded(layer, torch.zeros(rank, layer.input_size_per_partition), A, None, input_dim=1)
        B, start = tensors.B, 0
    else:
        B = _loaded(layer, torch.zeros(outputs, rank), tensors.B, place.shard, output_dim=0)
        ones = torch.ones(tensors.B.shape[0], 1)
        (rows,) = _loaded(layer, torch.zeros(outputs, 1), ones, place.shard, output_dim=0)[:, 0].nonzero(as_tuple=True)
        start, stop = int(rows[0]), int(rows[-1]) + 1
        assert len(rows) == stop - start, f"{layer.prefix}: expected rows of {place.layer} beside each other"
        B = B[start:stop]
    return Part(A, B.double().mul(scale).to(B.dtype) if scale != 1 else B, start)


def _loaded(layer: LinearBase, empty: Tensor, whole: Tensor, shard: str | int | None, **dimensions: int) -> Tensor:
    """What this process has of a matrix, where the layer's own loader puts it."""
    parameter = nn.Parameter(empty, requires_grad=False)
    set_weight_attrs(parameter, dict(dimensions))
    layer.weight_loader(parameter, whole.to(empty.dtype), *(() if shard is None else (shard,)))
    return parameter.data


def _adding(method: LinearMethodBase) -> LinearMethodBase:
    """The same method, whose result has the layer's update added; of the same name, for some code looks at that."""
    kind = type(method)

    def apply(self: LinearMethodBase, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _update(layer).add(x, kind.apply(self, layer, x, bias))

    made = copy.copy(method)
    made.__class__ = type(kind.__name__, (kind,), {"apply": apply})
    return made


def _update(layer: nn.Module) -> BankUpdate:
    update = layer.colora_update
    assert isinstance(update, BankUpdate)
    return update


def _linear(weight: Tensor, dtype: torch.dtype, device: torch.device) -> ReplicatedLinear:
    """A product with a matrix (out, in), by the way that is vLLM's fastest here."""
    outputs, inputs = weight.shape
    made = ReplicatedLinear(inputs, outputs, bias=False, params_dtype=dtype, return_bias=False, disable_tp=True)
    made.weight.data = weight.to(device=device, dtype=dtype)
    assert isinstance(made.quant_method, LinearMethodBase)
    made.quant_method.process_weights_after_loading(made)
    return made


def layer_order(found: Mapping[str, list[Place]]) -> Iterator[str]:
    """The bank's layers in the order of their cores."""
    return (place.layer for some in found.values() for place in some)
