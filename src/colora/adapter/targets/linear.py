"""What "all-linear" stands for in a model, and which linear layers it leaves out."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, _maybe_include_all_linear_layers
from torch import nn
from transformers.pytorch_utils import Conv1D

from colora.adapter.config import CoLoRAConfig
from colora.adapter.row_layout import is_listed_expert
from colora.adapter.targets.bypassed import read_past_layers, unlike_linear
from colora.adapter.targets.rule import is_target
from colora.adapter.targets.towers import is_inside, parts_of_other_rows
from colora.common.text import shortened
from colora.errors import ConfigError

__all__ = ["LeftOut", "LeftOutWarning", "is_all_linear", "linear_names", "name_all_linear"]

ALL_LINEAR = "all-linear"
# Routers, gates and heads hold few of the weights. If more than this share of them is in layers that are smaller than
# the rank, then the rank is too large for the model, which the first of these layers tells.
_SMALL_SHARE = 0.1


class LeftOutWarning(UserWarning):
    """Linear layers that "all-linear" does not adapt."""


@dataclass(frozen=True)
class LeftOut:
    """Linear layers that "all-linear" does not adapt.

    Attributes:
        names: of the layers.
        why: the reason, in words.
    """

    names: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        kinds = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in self.names))
        count = f"{len(self.names)} linear layer{'s' if len(self.names) > 1 else ''}"
        return f"'{ALL_LINEAR}' leaves out {count} ({', '.join(shortened(kinds, 5))}): {self.why}"


def is_all_linear(config: CoLoRAConfig) -> bool:
    """Whether a config asks for "all-linear"."""
    return isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR


def name_all_linear(config: CoLoRAConfig, model: nn.Module) -> list[LeftOut]:
    """Replace "all-linear" in a config by the names of this model's layers; what it leaves out, with the reasons.

    Left out without a word are the output layer and modules that are trained whole; and with a word layers of which
    the rows are not those of the batch (towers, experts that are listed one by one), which the model reads the weight
    of without calling them, which give several tensors, or which are smaller than the rank (routers, gates, heads). A
    config that names its targets is left as it is.

    Raises:
        ConfigError: nothing is left.
    """
    if not is_all_linear(config):
        return []
    chosen: Any = _maybe_include_all_linear_layers(config, model)  # replaces the config's own field
    names: set[str] = set(chosen.target_modules)
    wanted = sorted(name for name in names if is_target(config, name))
    parts, past, unlike = parts_of_other_rows(model), read_past_layers(model), unlike_linear(model)
    groups: dict[str, list[str]] = {}
    for name in wanted:
        groups.setdefault(_why_not(name, parts, past, unlike), []).append(name)
    kept = groups.pop("", [])
    if small := _small(dict(model.named_modules()), kept, config.r):
        groups[f"smaller than r={config.r} on one side"] = small
    found = [LeftOut(tuple(group), why) for why, group in groups.items()]
    left = {name for group in found for name in group.names}
    if wanted and not set(wanted) - left:
        raise ConfigError(f"target_modules: '{ALL_LINEAR}' finds no layer to adapt:", [str(one) for one in found])
    config.target_modules = names - left  # type: ignore[assignment]  # a set, as PEFT leaves it
    _keep_out(config, sorted(name for name in left if is_target(config, name)))
    return found


def linear_names(model: nn.Module) -> str:
    """The last names of all linear layers, for an error message."""
    names = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    return ", ".join(sorted(names)) or "none"


def _why_not(name: str, parts: Sequence[str], past: Mapping[str, str], unlike: Mapping[str, str]) -> str:
    if part := next((part for part in parts if is_inside(name, [part])), None):
        return (
            f"{part} sees images or sounds, whose rows are not the rows of the text, so that the task of a row would "
            "be the wrong one"
        )
    if is_listed_expert(name):
        return "experts see the tokens that were sent to them, of which the task cannot be told"
    if name in unlike:
        return f"a {unlike[name]} gives several tensors"
    return (
        f"{past[name]} reads the weight past the layer, so that a bank on it would do nothing" if name in past else ""
    )


def _small(modules: Mapping[str, nn.Module], names: Sequence[str], r: int) -> list[str]:
    """Those of these layers that are smaller than the rank, if they hold few of the weights."""
    sizes = {name: _size(modules[name]) for name in names}
    small = [name for name, (inputs, outputs) in sizes.items() if min(inputs, outputs) < r]
    weights = {name: inputs * outputs for name, (inputs, outputs) in sizes.items()}
    return small if sum(map(weights.__getitem__, small)) <= _SMALL_SHARE * sum(weights.values()) else []


def _size(module: nn.Module) -> tuple[int, int]:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns on kinds of layers that it does not know
        inputs, outputs = _get_in_out_features(base)
    return int(inputs or 0), int(outputs or 0)


def _keep_out(config: CoLoRAConfig, names: Sequence[str]) -> None:
    """Exclude layers that were left out, but end like a target: PEFT matches names by their ends."""
    if names and isinstance(config.exclude_modules, str):
        config.exclude_modules = "|".join([f"(?:{config.exclude_modules})", *map(re.escape, names)])
    elif names:
        config.exclude_modules = [*(config.exclude_modules or []), *names]
