"""How weights lie in memory, for products with few rows."""

import torch
from torch import nn

__all__ = ["lay_out_by_columns"]


@torch.no_grad()
def lay_out_by_columns(model: nn.Module) -> None:
    """Let the float32 weights of linear layers on a CPU lie column by column; shapes, values and sharing stay.

    torch's product of a few rows with a weight that lies row by row takes longer there than with one that lies column
    by column: a decoding step of 16 rows takes 1.5 times as long, of one or of 64 rows the same
    (`python -m benchmarks.serving.decoding`). To be called before a model decodes in batches, not on one that is to be
    saved: safetensors refuses such weights.
    """
    weights = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    for parameter in model.parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            continue
        # The others are copied too: as long as one lies in the mapped file, all of the file stays in memory.
        by_columns = id(parameter) in weights
        parameter.data = parameter.data.t().contiguous().t() if by_columns else parameter.data.clone()
