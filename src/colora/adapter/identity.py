"""Which base model a bank belongs to: the shapes of the adapted layers and a sketch of their weights.

A bank makes sense only on the model it was trained on, yet that model may be loaded in another precision or
quantised. So the identity is no hash: it holds a few weights of a few layers, compared within a tolerance that lets
rounding to bfloat16, 8 and 4 bits pass and refuses other models.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils.quantization_utils import resolve_quantization_backend
from torch import Tensor, nn

from colora.adapter.mixtures.fused import fused_parameters
from colora.common.text import shortened
from colora.errors import BaseMismatchError

__all__ = ["REFUSE_ABOVE", "WARN_ABOVE", "base_identity", "check_base", "identify_base", "name_base", "sketch_distance"]

SKETCHED_LAYERS = 8
SKETCHED_WEIGHTS = 16
# Relative distances of sketches on SmolLM2, by `python -m benchmarks.adapter.identity`: bfloat16 0.001, 8 bits 0.007,
# noise of 2 % 0.02, 4 bits 0.12, unrelated weights 1.6.
WARN_ABOVE = 0.015
REFUSE_ABOVE = 0.4


def base_identity(layers: Mapping[str, nn.Module | Tensor], model_type: str | None) -> dict[str, Any]:
    """The identity of a base model, ready for JSON.

    Args:
        layers: the base layers that are adapted, or the fused weights of experts, by their full name.
        model_type: transformers' `config.model_type`, if any.
    """
    names = sorted(layers)
    step = max(1, len(names) // SKETCHED_LAYERS)
    chosen = {name: _sketch(layers[name]) for name in names[::step][:SKETCHED_LAYERS]}
    sketch = {name: " ".join(f"{value:.6g}" for value in values) for name, values in chosen.items() if values}
    shapes: dict[str, str] = {}
    for name in names:
        shapes.setdefault(_pattern(name), _shape(layers[name]))
    return {"model_type": model_type, "shapes": shapes, "sketch": sketch}


def identify_base(config: PeftConfig, model: nn.Module, layers: Mapping[str, nn.Module | Tensor]) -> None:
    """Write into a new bank's config which base model it belongs to; `layers` as for `base_identity`."""
    config.base_identity = base_identity(layers, getattr(getattr(model, "config", None), "model_type", None))
    name_base(config, model)


def name_base(config: PeftConfig, model: nn.Module) -> None:
    """Let a config with an identity name the base as everybody's tools find it, and beside it as CoLoRA does.

    A base that `load_base` knows by a short name has its id on the hub in `hub_id`: `base_model_name_or_path` is that,
    and the short name is `loaded_as` in the identity.
    """
    known = vars(model)
    if hub_id := known.get("hub_id"):
        config.base_model_name_or_path = hub_id
        config.base_identity["loaded_as"] = known["name_or_path"]


def check_base(identity: dict[str, Any], model: nn.Module, name_or_path: str | None) -> None:
    """Refuse a base model other than the one recorded.

    Raises:
        BaseMismatchError: listing missing layers, layers of other shapes, or weights that are other weights.
    """
    modules: dict[str, nn.Module | Tensor] = {**dict(model.named_modules()), **fused_parameters(model)}
    found: dict[str, dict[str, None]] = {}  # layers of a kind may differ in shape, as in pruned models
    for name, module in modules.items():
        if _is_linear(module):
            found.setdefault(_pattern(name), {})[_shape(module)] = None
    faults = []
    for pattern, expected in identity.get("shapes", {}).items():
        if pattern not in found:
            faults.append(f"layer {pattern}: expected {expected}, found no such layer")
        elif expected not in found[pattern]:
            faults.append(f"layer {pattern}: expected {expected}, found {', '.join(found[pattern])}")
    if faults:
        _refuse(identity, model, name_or_path, faults)
    distance = sketch_distance(identity.get("sketch", {}), modules)
    if distance is None or distance <= WARN_ABOVE:
        return
    if distance > REFUSE_ABOVE:
        fault = (
            f"same shapes, other weights: relative distance {distance:.2f} on sampled weights, expected under "
            f"{REFUSE_ABOVE}"
        )
        _refuse(identity, model, name_or_path, [fault])
    warnings.warn(
        f"the base model's weights differ from those this bank was trained on (relative distance {distance:.3f} on "
        "sampled weights); expected when the base is quantised to 4 bits, otherwise check that it is the same model",
        stacklevel=2,
    )


def _refuse(identity: dict[str, Any], model: nn.Module, name: str | None, faults: list[str]) -> None:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    raise BaseMismatchError(
        "\n".join(
            [
                f"this bank was trained on another base model (a {identity.get('model_type')}); found a {kind}"
                + (f" ({name})" if name else ""),
                *(f"  - {fault}" for fault in shortened(faults, 5)),
            ]
        )
    )


def _pattern(name: str) -> str:
    """The name with its layer numbers starred: a layer of each kind stands for all."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name.replace(".base_layer", ""))


def _is_linear(module: nn.Module | Tensor) -> bool:
    if isinstance(module, Tensor):
        return True
    weight = getattr(module, "weight", None)
    return hasattr(module, "in_features") or (isinstance(weight, Tensor) and weight.ndim == 2)


def _shape(module: nn.Module | Tensor) -> str:
    """Outputs × inputs, as an error message shows them; the whole shape of fused weights."""
    if isinstance(module, Tensor):
        return " x ".join(map(str, module.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns on kinds of layers that it does not know
        inputs, outputs = _get_in_out_features(module)
    return f"{outputs} x {inputs}"


def _sketch(layer: nn.Module | Tensor) -> list[float]:
    if isinstance(layer, Tensor):
        weight: object = layer
    else:
        # torchao's backend asks for the way to quantise again, which reading does not need.
        backend = resolve_quantization_backend(layer, get_apply_tensor_subclass=object)
        try:
            weight = backend.get_base_weight(layer) if backend is not None else layer.weight
        except (TypeError, AttributeError, NotImplementedError):
            return []  # a quantisation that cannot be read back: the shapes must do
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        return []
    gather = getattr(weight, "full_tensor", None)  # of a base that is sharded, which all processes look at together
    flat = (weight if gather is None else gather()).detach().reshape(-1)
    indices = torch.linspace(0, flat.numel() - 1, SKETCHED_WEIGHTS).long()
    values: list[float] = flat[indices.to(flat.device)].float().tolist()
    return values


def sketch_distance(sketch: dict[str, str], modules: Mapping[str, nn.Module | Tensor]) -> float | None:
    """‖found − expected‖ / ‖expected‖ over all sketched weights, or None where nothing can be compared."""
    expected: list[float] = []
    found: list[float] = []
    for name, text in sketch.items():
        values = [float(value) for value in text.split()]
        module = modules.get(name)
        module = getattr(module, "base_layer", module)
        if module is not None and len(now := _sketch(module)) == len(values):
            expected += values
            found += now
    if not expected:
        return None
    reference = torch.tensor(expected, dtype=torch.float64)
    norm = float(reference.norm())
    difference = float((torch.tensor(found, dtype=torch.float64) - reference).norm())
    return difference / norm if norm > 0 else float(difference > 0)
