"""The fused weights of a base model: parameters that hold many matrices, such as those of all experts of a layer.

They are in no `nn.Linear`, so that "all-linear" does not see them: a bank adapts those that `target_parameters` names,
and what is left out is told.
"""

import warnings

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from colora.adapter.libraries.offload import AdapterTensors
from colora.adapter.mixtures.experts import CoLoRAExperts, expert_parameters, missing_interface
from colora.common.text import listed
from colora.errors import ConfigError

__all__ = ["fused_parameters", "matching_parameters", "unadapted_share", "warn_unadapted"]


def fused_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By their names, all weights of a base model that hold many matrices in one: three dimensions, in no layer of
    torch's own."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.") or isinstance(module, BaseTunerLayer | AdapterTensors):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                found[f"{name}.{own}".replace(".base_layer", "")] = parameter
    return found


def matching_parameters(model: nn.Module, targets: list[str]) -> list[tuple[str, str]]:
    """The modules, and their parameters, that `targets` name by the end of their names, as PEFT matches them.

    Raises:
        ConfigError: for each name that fits no fused parameter, with those that there are.
    """
    fused = list(fused_parameters(model))
    found = {target: [name for name in fused if name == target or name.endswith(f".{target}")] for target in targets}
    if unmatched := [target for target, names in found.items() if not names]:
        there = listed(sorted({".".join(name.rsplit(".", 2)[-2:]) for name in fused}), 10) if fused else "none"
        wanted = ", ".join(map(repr, unmatched))
        raise ConfigError(f"target_parameters: no fused weights of this model match {wanted}. There are: {there}")
    matched = sorted({name for names in found.values() for name in names}, key=fused.index)
    return [(module, parameter) for module, _, parameter in (name.rpartition(".") for name in matched)]


def unadapted_share(model: nn.Module) -> tuple[list[str], list[str], float]:
    """The fused weights that no bank adapts, by their last two names: those that one could, those that none can, and
    the share of all of them in the base's weights."""
    adapted = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, CoLoRAExperts)
        for parameter in module.projections()
    }
    left = {name: parameter for name, parameter in fused_parameters(model).items() if name not in adapted}
    total = sum(parameter.numel() for name, parameter in model.named_parameters() if "colora_" not in name)
    could: set[str] = set()
    cannot: set[str] = set()
    for name in left:
        module, _, parameter = name.rpartition(".")
        experts = model.get_submodule(module)
        fits = not missing_interface(experts) and parameter in expert_parameters(experts)
        (could if fits else cannot).add(".".join(name.rsplit(".", 2)[-2:]))
    return sorted(could), sorted(cannot), sum(parameter.numel() for parameter in left.values()) / max(total, 1)


def warn_unadapted(model: nn.Module, targets: list[str] | None) -> None:
    """Warn of fused weights that are left as they are, once, when a bank is made: no "all-linear" reaches them."""
    could, cannot, share = unadapted_share(model)
    if targets is None and (could or cannot):
        advice = f" To adapt them, say target_parameters={could}; else target_parameters=[]." if could else ""
        warnings.warn(
            f"{100 * share:.0f} % of this model's weights are fused in {', '.join([*could, *cannot])} and are not "
            f"adapted, for they are no linear layers.{advice}",
            stacklevel=2,
        )
