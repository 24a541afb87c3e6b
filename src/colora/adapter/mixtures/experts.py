"""Layers of a mixture of experts whose weights are one fused parameter for all experts, of shape (E, d_out, d_in).

No `nn.Linear` is in such a module, so "all-linear" does not see it. A bank adapts it where `target_parameters` names
its parameters, as PEFT's LoRA does: each projection of each expert is a `CoLoRALinear` of its own, called
`experts.gate_up_proj.3`, with factors A_e and B_e and one core for each task. A token keeps the task of its row, at
whichever expert it ends.

The module's own forward pass is one fused product over all experts and cannot tell tokens apart by task. So while a
bank is active, `CoLoRAExperts` computes it expert by expert, as transformers' eager implementation does, by the
interface that transformers gives these modules (`transformers.integrations.moe.use_experts_implementation`).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colora.adapter.config import CoLoRAConfig
from colora.adapter.layer import CoLoRALinear
from colora.adapter.router import Router
from colora.errors import ConfigError

__all__ = ["CoLoRAExperts", "ExpertLinear", "expert_parameters", "missing_interface"]

_INTERFACE = ("is_transposed", "has_bias", "has_gate", "has_post_expert_norm", "_apply_gate", "num_experts")


class ExpertWeight(nn.Module):
    """One expert's part of a fused parameter, as a linear layer: what a `CoLoRALinear` has for its base.

    It holds no parameter of its own, so that every weight stays where the model keeps it.
    """

    in_features: int
    out_features: int

    def __init__(self, experts: Any, name: str, index: int) -> None:
        super().__init__()
        self._of = (experts,)  # in a tuple, for a module would be registered a second time
        self.name, self.index = name, index
        rows, columns = self.weight.shape
        self.in_features, self.out_features = (rows, columns) if experts.is_transposed else (columns, rows)

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in), or (d_in, d_out) where the module keeps its weights transposed; a view."""
        return self.fused[self.index]

    @property
    def fused(self) -> Tensor:
        """The parameter that this is a part of."""
        parameter: Tensor = getattr(self._of[0], self.name)
        return parameter

    def forward(self, x: Tensor, experts: Any) -> Tensor:
        """The expert's plain output, read from `experts`: of a replica of the model, that replica's."""
        weight = getattr(experts, self.name)[self.index]
        bias = getattr(experts, f"{self.name}_bias")[self.index] if experts.has_bias else None
        return F.linear(x, weight.T if experts.is_transposed else weight, bias)


class ExpertLinear(CoLoRALinear):
    """A `CoLoRALinear` for one projection of one expert. It is told its tokens' tasks, for it sees a few tokens of
    many rows."""

    base_layer: Any

    def forward(self, x: Tensor, experts: Any, tasks: Mapping[str, Tensor | int]) -> Tensor:  # type: ignore[override]
        """y for the tokens `x`, (tokens, d_in), of which `tasks` gives each adapter's ids, (tokens,) or one for all."""
        result = self.base_layer(x, experts)
        dtype = result.dtype
        for adapter_name, ids in tasks.items():
            if adapter_name in self.colora_core:
                result = self._add_update(adapter_name, x, result, ids)
        return result.to(dtype)

    @property
    def fused_weight(self) -> Tensor:
        """The parameter that holds this projection of all experts, (E, d_out, d_in) or transposed."""
        weight: Tensor = self.base_layer.fused
        return weight

    @staticmethod
    def _features(base_layer: Any) -> tuple[int, int]:
        return base_layer.in_features, base_layer.out_features

    def get_base_weight(self) -> Tensor:
        weight: Tensor = self.base_layer.weight.data
        return weight

    def set_base_weight(self, weight_data: Tensor) -> None:
        self.base_layer.weight.data.copy_(weight_data)


class CoLoRAExperts(nn.Module):
    """The experts of one layer: the module of the base model, and beside it the adapted projections by their names.

    Args:
        base_layer: the module with the fused parameters.
        layer_name: its name in the base model, for errors.
        router: that of the base model.

    Raises:
        ConfigError: if the module's forward pass is not that of transformers' interface, or cannot be read.
    """

    base_layer: Any

    def __init__(self, base_layer: nn.Module, layer_name: str, router: Router) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layer_name = layer_name
        self.router = router
        if missing := missing_interface(base_layer):
            raise ConfigError(
                f"target_parameters: the experts {layer_name!r} are a {type(base_layer).__name__}, which has "
                f"its own forward pass (missing: {', '.join(missing)}): expected experts with transformers' "
                "common interface. Leave them out of target_parameters"
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)  # models ask their experts for sizes and flags

    def adapt(self, parameter: str, adapter_name: str, config: CoLoRAConfig) -> list[ExpertLinear]:
        """Add an adapter to one of the fused parameters; returns the layers that have it.

        Raises:
            ConfigError: if the parameter is no projection, or is quantised, sharded or offloaded.
        """
        weight = getattr(self.base_layer, parameter)
        name = f"{self.layer_name}.{parameter}"
        if parameter not in expert_parameters(self.base_layer):
            expected = ", ".join(expert_parameters(self.base_layer))
            raise ConfigError(f"target_parameters: {name!r} is not a projection of the experts: expected {expected}")
        if not weight.is_floating_point() or weight.itemsize < 2 or type(weight) is not nn.Parameter:
            raise ConfigError(
                f"target_parameters: {name!r} is a {type(weight).__name__} of {weight.dtype}: expected plain weights "
                "of 16 bits or more; load the model without quantising its experts, or leave them out"
            )
        if weight.is_meta or hasattr(self.base_layer, "_hf_hook"):
            raise ConfigError(
                f"target_parameters: {name!r} is offloaded, but experts are adapted in memory only: load the "
                "model without offloading, or leave the experts out"
            )
        layers = self._modules.get(parameter)
        if isinstance(layers, nn.ModuleList):
            for layer in layers:
                layer.add_adapter(adapter_name, config)  # type: ignore[operator]
            return list(layers)  # type: ignore[arg-type]
        made = [
            ExpertLinear(
                ExpertWeight(self.base_layer, parameter, index),
                adapter_name,
                config,
                self.router,
                transposed=bool(self.base_layer.is_transposed),
                layer_name=f"{name}.{index}",
            )
            for index in range(weight.shape[0])
        ]
        setattr(self, parameter, nn.ModuleList(made))
        return made

    def forward(self, hidden_states: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """(tokens, d) to (tokens, d), for each token's experts (tokens, k) and their weights (tokens, k)."""
        layer = self._layers()[0]
        if layer.disable_adapters or layer.merged:
            for each in self._layers():
                each.check_merged()
            output: Tensor = self.base_layer(hidden_states, *args, **kwargs)
            return output
        experts = self.base_layer
        chosen, weights = sorted(
            (*args, *kwargs.values()), key=torch.is_floating_point
        )  # models name them each its way
        if getattr(experts, "_is_expert_parallel", False):
            raise ConfigError(
                f"{self.layer_name!r}: adapted experts do not run with expert parallelism: switch it off, or "
                "leave the experts out of target_parameters"
            )
        tasks = {
            adapter_name: self.router.rows(adapter_name, hidden_states, self.layer_name)
            for adapter_name in layer.active_adapters
            if adapter_name in layer.colora_core
        }
        result = torch.zeros_like(hidden_states)
        for expert in torch.unique(chosen).tolist():
            if expert >= experts.num_experts:
                continue  # transformers' mark of a place without an expert
            token, place = torch.where(chosen == expert)
            own = {name: ids if isinstance(ids, int) else ids[token] for name, ids in tasks.items()}
            output = self._expert(hidden_states[token], expert, own) * weights[token, place, None]
            result = result.index_add(0, token, output.to(result.dtype))
        return result

    def _expert(self, x: Tensor, expert: int, tasks: Mapping[str, Tensor | int]) -> Tensor:
        experts = self.base_layer
        if experts.has_gate:
            hidden = experts._apply_gate(self._project("gate_up_proj", x, expert, tasks))
        else:
            hidden = experts.act_fn(self._project("up_proj", x, expert, tasks))
        output = self._project("down_proj", hidden, expert, tasks)
        return experts.post_expert_norm(output) if experts.has_post_expert_norm else output

    def _project(self, name: str, x: Tensor, expert: int, tasks: Mapping[str, Tensor | int]) -> Tensor:
        layers = self._modules.get(name)
        if layers is None:
            weight = getattr(self.base_layer, name)[expert]
            bias = getattr(self.base_layer, f"{name}_bias")[expert] if self.base_layer.has_bias else None
            return F.linear(x, weight.T if self.base_layer.is_transposed else weight, bias)
        return layers[expert](x, self.base_layer, tasks)  # type: ignore[index]

    def has_another(self, adapter_name: str) -> bool:
        """Whether it has an adapter of another name."""
        return any(set(layer.colora_core) - {adapter_name} for layer in self._layers())

    def projections(self) -> dict[str, nn.ModuleList]:
        """The adapted parameters, and for each the layers of its experts."""
        return {name: module for name, module in self._modules.items() if isinstance(module, nn.ModuleList)}

    def _layers(self) -> list[ExpertLinear]:
        return [layer for layers in self.projections().values() for layer in layers]  # type: ignore[misc]

    def get_base_layer(self) -> nn.Module:
        """The module of the base model."""
        module: nn.Module = self.base_layer
        return module

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The module of the base model, with the chosen task's update in its weights if `merge`; for PEFT."""
        if merge:
            for layer in self._layers():
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        return self.get_base_layer()


def expert_parameters(module: nn.Module) -> list[str]:
    """The names of the projections of a module of fused experts."""
    names = ("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj", "down_proj")
    return [name for name in names if isinstance(getattr(module, name, None), Tensor)]


def missing_interface(experts: nn.Module) -> list[str]:
    """What of transformers' interface a module of experts lacks."""
    return [name for name in _INTERFACE if not hasattr(experts, name)]
