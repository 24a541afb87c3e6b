"""Merging into a weight that another module holds too, as a tied output layer shares that of the embeddings.

Added to the shared weight, the update would change the embeddings as well. So a layer gets a weight of its own before
it is merged, and gives it back when it is unmerged; a merged model that is to stand alone is untied for good, and its
config says so.
"""

from collections import Counter

from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from colora.adapter.layer import CoLoRALinear
from colora.errors import ConfigError

__all__ = ["check_untying", "own_weights", "tied_parts", "untie"]


def tied_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules, adapted or trained whole, whose base weight another module of the model holds too; by their name."""
    holders, found = _holders(model), {}
    for name, module in model.named_modules():
        base = module.get_base_layer() if isinstance(module, CoLoRALinear) else None
        if isinstance(module, ModulesToSaveWrapper):
            base = module.original_module
        weight = None if base is None else base._parameters.get("weight")
        if weight is not None and holders[id(weight)] > 1:
            found[name] = module
    return found


def own_weights(model: nn.Module) -> None:
    """Give every adapted layer with a shared weight a copy of its own, until it is unmerged.

    Raises:
        ConfigError: such a weight is offloaded, and cannot be copied here.
    """
    for name, layer in tied_parts(model).items():
        if not isinstance(layer, CoLoRALinear):
            continue
        base = layer.get_base_layer()
        weight: nn.Parameter = base.weight  # type: ignore[assignment]
        if weight.is_meta:
            raise ConfigError(
                f"{name} shares its weight with another module and is offloaded: it cannot be merged. Load the base on "
                "one device, or export a LoRA"
            )
        layer.shared_weight.append(weight)
        base.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)


def check_untying(model: nn.Module) -> None:
    """See that a merged model could be untied for good.

    Raises:
        ConfigError: an encoder-decoder; some of them (T5) scale their logits by whether the embeddings are tied.
    """
    tied = tied_parts(model)
    if tied and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ConfigError(
            f"{', '.join(tied)} shares its weight with the embeddings. A {type(model).__name__} that is "
            "not tied computes something else, so the bank cannot be merged permanently. Export a LoRA, "
            "or merge in memory (merge_adapter)"
        )


def untie(model: nn.Module) -> None:
    """Give every module weights of its own, and let the configs say that nothing is tied."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in seen:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            seen.add(id(parameter))
        if isinstance(module, PreTrainedModel):
            module.config.tie_word_embeddings = False
            if hasattr(module, "all_tied_weights_keys"):
                module.all_tied_weights_keys = {}


def _holders(model: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
