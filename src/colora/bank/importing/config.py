"""The config of a plain LoRA: what of PEFT's options an import understands, and each layer's own rank and scale.

A LoRA counts as plain if each of its updates is lora_alpha / r · B A (or / √r) on a linear layer and nothing else is
changed. Every option of PEFT's that would add to that (DoRA, biases, further modules, embeddings, ...) is refused, also
those of later versions of PEFT.
"""

from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key

from colora.common.json_text import parse_json
from colora.errors import ConfigError

__all__ = ["CONFIG", "layer_rank", "layer_scale", "lora_config"]

CONFIG = "adapter_config.json"
# Fields that are read here, or that say how a LoRA was trained and not what it is. All others must have their default.
HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",  # which also names linear layers, by their weights
    "task_type",
    "use_rslora",
}
# The other ways to start (PiSSA, OLoRA, LoftQ, ...) change the base weights, and the LoRA is a difference from those.
STARTS = (True, False, "gaussian", "orthogonal", "eva")


def lora_config(path: Path) -> dict[str, Any]:
    """The checked config, with PEFT's defaults for what it does not say.

    Raises:
        ConfigError: listing every field that makes it something else than a plain LoRA.
    """
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{CONFIG} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{CONFIG}: expected an object, found {type(config).__name__}")
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"{CONFIG}: peft_type: expected 'LORA', found {config.get('peft_type')!r}")
    defaults = vars(LoraConfig())
    faults = [
        f"{CONFIG}: {key}: only plain LoRAs can be imported, expected {defaults.get(key)!r}, found {value!r}"
        for key, value in sorted(config.items())
        if key not in HARMLESS and (value or defaults.get(key)) and value != defaults.get(key)
    ]
    if not all(isinstance(one, str) and one.endswith(".weight") for one in config.get("target_parameters") or []):
        faults.append(
            f"{CONFIG}: target_parameters: only plain LoRAs can be imported, expected weights of linear layers, "
            f"found {config['target_parameters']!r}"
        )
    config = defaults | config
    if config["init_lora_weights"] not in STARTS:
        faults.append(
            f"{CONFIG}: init_lora_weights: {config['init_lora_weights']!r} changes the base weights; convert the LoRA "
            "when saving it (path_initial_model_for_weight_conversion)"
        )
    for key in ("r", "lora_alpha"):
        if isinstance(config[key], bool) or not isinstance(config[key], int | float) or not config[key] > 0:
            faults.append(f"{CONFIG}: {key}: expected a number above 0, found {config[key]!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        numbers = config[key].values() if isinstance(config[key], dict) else [config[key]]
        if not all(isinstance(one, int | float) and one > 0 for one in numbers if config[key]):
            faults.append(f"{CONFIG}: {key}: expected numbers above 0 by layer, found {config[key]!r}")
    if faults:
        raise ConfigError("", faults)
    return config


def layer_rank(config: dict[str, Any], layer: str) -> Any:
    """The rank that the config gives a layer."""
    return _by_pattern(config, "rank_pattern", "r", layer)


def layer_scale(config: dict[str, Any], layer: str, r: int) -> float:
    """The factor of B A in a layer of rank r."""
    alpha = float(_by_pattern(config, "alpha_pattern", "lora_alpha", layer))
    return alpha / (r**0.5 if config["use_rslora"] else r)


def _by_pattern(config: dict[str, Any], patterns: str, default: str, layer: str) -> Any:
    """As PEFT finds a layer's own rank or alpha."""
    table = config[patterns] or {}
    return table.get(get_pattern_key(list(table), layer), config[default])
