"""bitsandbytes' 4-bit layers on a CPU: kept as they can be differentiated.

In evaluation mode, on a CPU that multiplies bfloat16, such a layer packs its weight anew for a product that has no
gradient (bitsandbytes 0.50). It stays packed in training mode, and nothing fails: what comes from below is lost from
every gradient. Measuring a validation loss, or taking gradients in evaluation mode, would be enough for that.
"""

from torch import nn

__all__ = ["keep_differentiable"]


def keep_differentiable(model: nn.Module) -> None:
    """Unpack the layers of a base that are packed, and let none pack itself again."""
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            layer.state_dict()  # reading the state unpacks
