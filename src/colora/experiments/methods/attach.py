"""Putting a method on a base model, and taking it off again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from colora.errors import ConfigError
from colora.experiments.methods.layer import ConstrainedLinear
from colora.experiments.methods.method import Method, Sizes

__all__ = ["attached", "decoder_layers", "targets"]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of blocks of a causal language model. Raises ConfigError for a model that is built otherwise."""
    find = getattr(model, "get_decoder", None)
    decoder = find() if callable(find) else None
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"expected a causal model whose decoder has `layers`, found {type(model).__name__}")
    return layers


def targets(model: nn.Module, first_layer: int) -> dict[str, nn.Linear]:
    """All linear layers of the blocks from `first_layer` on, by their full names.

    Raises:
        ConfigError: if there is no such block.
    """
    layers = decoder_layers(model)
    if first_layer >= len(layers):
        raise ConfigError(f"first_layer: expected at most {len(layers) - 1}, found {first_layer}")
    chosen = {id(module) for block in list(layers)[first_layer:] for module in block.modules()}
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in chosen
    }


@contextmanager
def attached(
    model: nn.Module,
    method: Method,
    first_layer: int,
    tasks: int,
    rank: int,
    alpha: float,
    options: Mapping[str, float],
) -> Iterator[dict[str, ConstrainedLinear]]:
    """The base model with the method's terms on it, for the duration of the block; yields the layers by name.

    Base parameters are frozen; the model is as before afterwards, whatever happens inside. Every term is scaled by
    alpha / rank of the comparison, also one that has another rank.

    Raises:
        ConfigError: if a rank does not fit a layer.
    """
    places = targets(model, first_layer)
    widths = sum(linear.in_features + linear.out_features for linear in places.values())
    sizes = Sizes(widths, len(places), tasks, rank, method.with_defaults(options))
    ranks = [term.rank(sizes) for term in method.terms]
    for name, linear in places.items():
        if ranks and max(ranks) > min(linear.in_features, linear.out_features):
            raise ConfigError(
                f"rank {max(ranks)} of method {method.name!r} is larger than layer {name!r} "
                f"({linear.out_features} × {linear.in_features})"
            )
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    layers = {}
    try:
        for name, linear in places.items():
            layers[name] = ConstrainedLinear(linear, method.terms, ranks, tasks, alpha / rank)
            model.set_submodule(name, layers[name])
        _share_cores(layers)
        _start(layers, method, sizes.options.get("rotated", 0.0))
        yield layers
    finally:
        for name in layers:
            model.set_submodule(name, places[name])
        for parameter, moved in trainable.items():
            parameter.requires_grad_(moved)


def _share_cores(layers: Mapping[str, ConstrainedLinear]) -> None:
    """Give the layers that have one core between them the core of the first of them."""
    first: dict[tuple[int, str], nn.Parameter | None] = {}
    for name, layer in layers.items():
        for number, term in enumerate(layer.term_layers()):
            if term.term.one_core != "layer":
                kind = name.rsplit(".", 1)[-1] if term.term.one_core == "kind" else ""
                term.core = first.setdefault((number, kind), term.core)


def _start(layers: Mapping[str, ConstrainedLinear], method: Method, rotated: float) -> None:
    # Of its own, so that A is the same whether cores are turned or not.
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for layer in layers.values():
        for term in layer.term_layers():
            term.start(alike=method.federated)
            if rotated:
                term.rotate(rotated, generator)
            for part, tensor in term.parts():
                tensor.requires_grad_(term.term.parts()[part].trained)
        if method.pull_to == "first":
            first, second = layer.term_layers()
            second.A.data.copy_(first.A)
