"""What several LoRAs must agree on to become one bank: the base model, its layers, and a rank that fits them."""

from collections.abc import Sequence
from pathlib import Path

from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn

from colora.bank.importing.read import Lora
from colora.common.text import shortened
from colora.errors import ConfigError

__all__ = ["bank_rank", "common_base", "layer_sizes", "target_names"]


def common_base(loras: Sequence[Lora]) -> str:
    """The base that all name. Raises ConfigError if there is none, or one of a certain revision."""
    named: dict[str, str] = {}
    for lora in loras:
        if not lora.base:
            raise ConfigError(f"{lora.folder}: the LoRA does not name its base model; name it with --base")
        if lora.revision not in (None, "main"):
            raise ConfigError(
                f"{lora.folder}: its base is revision {lora.revision!r} of {lora.base}; download that and name its "
                "folder with --base"
            )
        place = Path(lora.base).expanduser()
        named.setdefault(str(place.resolve()) if place.exists() else lora.base, f"{lora.folder}: {lora.base}")
    if len(named) > 1:
        raise ConfigError(
            "expected LoRAs on one base model, found several; if they are the same, name it with --base. Found:",
            list(named.values()),
        )
    return str(loras[0].base)


def layer_sizes(loras: Sequence[Lora], model: nn.Module) -> dict[str, tuple[int, int]]:
    """d_out and d_in of every layer that some LoRA adapts, in the order of the base model.

    Raises:
        ConfigError: listing layers that the base lacks or has in another shape.
    """
    modules = dict(model.named_modules())
    sizes: dict[str, tuple[int, int]] = {}
    faults = []
    for lora in loras:
        for layer, (d_out, _, d_in) in lora.shapes.items():
            if layer not in modules:
                faults.append(f"{lora.folder}: layer {layer}: the base model has no such layer")
                continue
            inputs, outputs = _get_in_out_features(modules[layer])
            if (outputs, inputs) != (d_out, d_in):
                faults.append(
                    f"{lora.folder}: layer {layer}: expected {outputs} x {inputs} as in the base model, "
                    f"found {d_out} x {d_in}"
                )
            sizes[layer] = (d_out, d_in)
    if faults:
        raise ConfigError("these LoRAs belong to another base model; nothing was written:", shortened(faults, 8))
    return {name: sizes[name] for name in modules if name in sizes}


def bank_rank(loras: Sequence[Lora], sizes: dict[str, tuple[int, int]], rank: int | None) -> int:
    """The rank asked for, or the default that `import_loras` tells. Raises ConfigError if it does not fit a layer."""
    narrow = min(sizes, key=lambda layer: min(sizes[layer]))
    most = min(sizes[narrow])
    if rank is None:
        needed = max(sum(lora.shapes[layer][1] for lora in loras if layer in lora.shapes) for layer in sizes)
        return min(2 * max(lora.rank for lora in loras), needed, most)
    if not 1 <= rank <= most:
        raise ConfigError(
            f"rank: expected 1 to {most}, because layer {narrow} is {sizes[narrow][0]} x "
            f"{sizes[narrow][1]}, found {rank}"
        )
    return rank


def target_names(model: nn.Module, layers: set[str]) -> list[str]:
    """The layers by their last names if these mean no others, else by their full names."""
    last = {name.rsplit(".", 1)[-1] for name in layers}
    if {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in last} == layers:
        return sorted(last)
    return sorted(layers)
