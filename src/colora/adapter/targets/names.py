"""That every name and pattern of a config means something in a model; PEFT drops those that match nothing."""

import re
from collections.abc import Iterable, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from colora.adapter.config import CoLoRAConfig
from colora.adapter.targets.bypassed import read_past_layers, unlike_linear
from colora.adapter.targets.linear import linear_names
from colora.adapter.targets.rule import head_names, is_target, is_trained_whole, layer_index
from colora.common.text import shortened
from colora.common.yaml import near

__all__ = ["name_faults"]


def name_faults(config: CoLoRAConfig, model: nn.Module, named: bool = True) -> list[str]:
    """What in a config matches nothing in this model or adapts nothing, and targets that cannot be adapted.

    Args:
        config: with "all-linear" replaced by names.
        model: the base model.
        named: whether the targets were named by a person, who may be wrong.
    """
    keys = [name for name, _ in model.named_modules() if name]
    try:
        return [
            *(_target_faults(config, model, keys) if named else []),
            *_exclude_faults(config, keys),
            *_layer_faults(config, model, keys),
            *_saved_faults(config, keys),
        ]
    except re.error as error:
        return [f"{error.pattern!r} is not a regular expression: {error}"]


def _found(given: Iterable[str] | str, keys: Iterable[str]) -> dict[str, list[str]]:
    """For each name, the modules it stands for, as PEFT matches: a list by the ends of names, a text as expression."""
    if isinstance(given, str):
        return {given: [key for key in keys if re.fullmatch(given, key)]}
    return {name: _ending(name, keys) for name in sorted(given)}


def _ending(name: str, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key == name or key.endswith(f".{name}")]


def _like(name: str, keys: Iterable[str]) -> str:
    """Advice on a name that matches none of these."""
    last = sorted({key.rsplit(".", 1)[-1] for key in keys})
    return near(name, last) or near(name.rsplit(".", 1)[-1], last)


def _no_match(given: str, is_pattern: bool, keys: Iterable[str]) -> str:
    if not is_pattern:
        return f"{given!r} is not found among the modules{_like(given, keys)}"
    if found := _ending(given, keys):
        return f"{given!r} is taken as an expression for whole names and matches none; [{given}] stands for {found[0]}"
    return f"the expression {given!r} matches no module{_like(given, keys)}"


def _target_faults(config: CoLoRAConfig, model: nn.Module, keys: Sequence[str]) -> list[str]:
    given, there = config.target_modules, f"Linear layers of this model: {linear_names(model)}"
    if not given and config.target_parameters:
        return []
    if given is None:
        return [f"target_modules: expected names, an expression or 'all-linear', found none. {there}"]
    linear = [key for key, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D | BaseTunerLayer)]
    faults: list[str] = [] if given else [f"target_modules: names nothing. {there}"]
    adapted: set[str] = set()
    excluded = {key for keys_of in _found(config.exclude_modules or [], keys).values() for key in keys_of}
    for name, found in _found(given, keys).items():
        chosen = {key for key in found if is_target(config, key)}
        adapted |= chosen
        holder = next((key for key, _ in model.named_parameters() if key.endswith(f".{name}")), None)
        # What exclude_modules takes away, a person has named twice, and means it.
        rest = [key for key in found if key not in excluded]
        if rest and not chosen:
            faults.append(f"target_modules: {name!r} adapts nothing: {_kept_from(config, rest)}")
        elif not found and holder:
            faults.append(
                f"target_modules: {name!r} is no linear layer but the parameter {holder}, which "
                f"target_parameters may name if it holds experts. {there}"
            )
        elif not found:
            told = _no_match(name, isinstance(given, str), linear)
            faults.append(f"target_modules: {told}{' ' if told.endswith('?') else '. '}{there}")
    past = read_past_layers(model)
    unread = [
        f"target_modules: {key}: {past[key]} reads the weight past the layer, so that a bank on it would do nothing; "
        "leave this layer out"
        for key in sorted(adapted & past.keys())
    ]
    unlike = unlike_linear(model)
    several = [
        f"target_modules: {key}: a {unlike[key]} gives several tensors, and a linear layer one; leave this layer out"
        for key in sorted(adapted & unlike.keys())
    ]
    return [*faults, *shortened(unread, 5), *shortened(several, 5)]


def _kept_from(config: CoLoRAConfig, found: Sequence[str]) -> str:
    if all(is_trained_whole(config, key) for key in found):
        return "it is trained whole, as modules_to_save or the task type has it"
    limits = [name for name in ("layers_to_transform", "layers_pattern") if getattr(config, name) is not None]
    return f"{' and '.join(limits)} leave{'s' if len(limits) == 1 else ''} out {', '.join(shortened(found, 3))}"


def _exclude_faults(config: CoLoRAConfig, keys: Sequence[str]) -> list[str]:
    given = config.exclude_modules or []
    return [
        f"exclude_modules: {_no_match(name, isinstance(given, str), keys)}"
        for name, found in _found(given, keys).items()
        if not found
    ]


def _layer_faults(config: CoLoRAConfig, model: nn.Module, keys: Sequence[str]) -> list[str]:
    given, patterns = config.layers_to_transform, config.layers_pattern
    chosen = [given] if isinstance(given, int) else given or []
    if patterns and not chosen:
        return ["layers_pattern: has no effect without layers_to_transform"]
    lists = sorted({match[1] for key in keys if (match := re.match(r"(?:.*?\.)?([^.]+)\.\d+\.", key))})
    faults = [
        f"layers_pattern: {pattern!r} is no list of layers of this model, which has {', '.join(lists) or 'none'}"
        f"{near(pattern, lists)}"
        for pattern in ([patterns] if isinstance(patterns, str) else patterns or [])
        if not any(re.match(rf"(?:^|.*?\.){pattern}\.\d+\.", key) for key in keys)
    ]
    if faults or not chosen:
        return faults
    targets = {key for found in _found(config.target_modules or [], keys).values() for key in found}
    numbers = sorted({number for key in targets if (number := layer_index(key, patterns)) is not None})
    missing = [number for number in chosen if number not in numbers or isinstance(number, bool)]
    there = f"they are in layers {_ranges(numbers)}" if numbers else "they are in no numbered list of layers"
    linear = f"Linear layers of this model: {linear_names(model)}"
    return [f"'layers_to_transform': {missing} not found: no target module is there, {there}. {linear}"] * bool(missing)


def _ranges(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    whole = list(numbers) == list(range(first, last + 1))
    return f"{first} to {last}" if whole and last > first else ", ".join(map(str, numbers))


def _saved_faults(config: CoLoRAConfig, keys: Sequence[str]) -> list[str]:
    return [
        f"modules_to_save: {_no_match(name, False, keys)}"
        for name in config.modules_to_save or []
        if name not in head_names(config) and not any(key.endswith(name) for key in keys)
    ]
