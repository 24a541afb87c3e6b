"""Parts of a model whose rows are not the rows of the batch: vision and audio towers, and projectors behind them.

A vision-language model puts what its tower makes of the images into the place of marked tokens. The tower's batch holds
images, so that row i of it says nothing about row i of the text, and a task by row would be the wrong one. Where
there are no such marks and nothing is generated (CLIP, ViT), or where an encoder's rows go to the decoder one by one
(Whisper), the rows are those of the batch.
"""

import re
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["is_inside", "parts_of_other_rows"]

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_MARKED_TOKEN = re.compile(r"(^|_)(image|img|video|audio|speech|vision)(_context)?_token_(id|index)$")
_MODALITY = re.compile(r"(^|_)(vision|visual|vit|image|img|video|audio|speech)(_|$)")
_TOWER = re.compile(_MODALITY.pattern + r"|(^|_)(perceiver|resampler|connector|qformer|projector|mm|vlm)(_|$)")


def parts_of_other_rows(model: nn.Module) -> list[str]:
    """Names of the modules that see images or sounds instead of the rows of the batch; the outermost ones only.

    The text model is what is made from the model's text config; all beside it is such a part. Inside it, and where the
    text has no config of its own, a part is what is made from another config, or is named for what it sees.
    """
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if isinstance(module, PreTrainedModel) and isinstance(config, PreTrainedConfig) and _is_mixed(module, config):
            prefix = f"{name}." if name else ""
            found |= {prefix + part: None for part in _parts(module, config)}
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def is_inside(name: str, parts: Iterable[str]) -> bool:
    """Whether a module is one of these parts, or inside one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _is_mixed(module: PreTrainedModel, config: PreTrainedConfig) -> bool:
    fields = vars(config)
    if any(value is not None and _MARKED_TOKEN.search(field) for field, value in fields.items()):
        return True
    sees = any(isinstance(value, PreTrainedConfig) and _MODALITY.search(field) for field, value in fields.items())
    return sees and module.can_generate() and not config.is_encoder_decoder


def _parts(model: PreTrainedModel, config: PreTrainedConfig) -> list[str]:
    text = next((own for field in _TEXT_CONFIGS if (own := getattr(config, field, None)) is not None), None)
    ends = {"encoder", "decoder"} if config.is_encoder_decoder else set()
    others = {
        type(value)
        for field, value in vars(config).items()
        if isinstance(value, PreTrainedConfig) and field not in ends
    } - {type(text), type(config)}
    found: list[str] = []
    roots = [] if text is None else _outermost(model, type(text))
    for name, module in model.named_modules():
        if not name or any(name.startswith(f"{part}.") for part in found):
            continue
        inside = any(name == root or name.startswith(f"{root}.") for root in roots)
        around = any(root.startswith(f"{name}.") for root in roots)
        made = isinstance(module, PreTrainedModel) and type(module.config) in others
        if made or (not around and (_TOWER.search(name.rsplit(".", 1)[-1]) or (roots and not inside))):
            found.append(name)
    return found


def _outermost(model: PreTrainedModel, kind: type[PreTrainedConfig]) -> list[str]:
    """Names of the models inside `model` that are made from a config of this class, but for those inside another."""
    found: list[str] = []
    for name, module in model.named_modules():
        own = name and isinstance(module, PreTrainedModel) and type(module.config) is kind
        if own and not any(name.startswith(f"{root}.") for root in found):
            found.append(name)
    return found
