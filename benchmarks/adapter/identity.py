"""How far rounding moves the sketch by which a bank knows its base model, against the limits in `adapter.identity`.

    python -m benchmarks.adapter.identity [--output benchmarks/adapter/records/identity.json]

Weights are rounded in place and the relative distance of the sampled weights is measured. "fine-tuned" stands for a
base that was trained on: noise of 2 % of each matrix's norm.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from colora.adapter.identity import REFUSE_ABOVE, WARN_ABOVE, base_identity, sketch_distance
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.models.base import load_base


def blockwise(bits: int, block: int) -> Callable[[Tensor], Tensor]:
    """Symmetric absmax rounding to `bits`, a scale for every `block` weights."""

    def rounded(weight: Tensor) -> Tensor:
        rows = weight.reshape(-1, block)
        step = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
        return ((rows / step).round() * step).reshape(weight.shape)

    return rounded


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "the same": lambda weight: weight,
    "bfloat16": lambda weight: weight.bfloat16().float(),
    "float16": lambda weight: weight.half().float(),
    "8 bits, blocks of 64": blockwise(8, 64),
    "4 bits, blocks of 64": blockwise(4, 64),
    "fine-tuned": lambda weight: weight + 0.02 * weight.std() * torch.randn_like(weight),
    "unrelated": lambda weight: weight.std() * torch.randn_like(weight),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/adapter/records/identity.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    model, _ = load_base(args.base)
    layers = {name: module for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    sketch = base_identity(layers, model.config.model_type)["sketch"]
    original = {name: module.weight.detach().clone() for name, module in layers.items()}
    distances = {}
    for name, change in CHANGES.items():
        for key, module in layers.items():
            module.weight.data = change(original[key])
        distances[name] = round(sketch_distance(sketch, dict(layers)) or 0.0, 4)
    report = {"limits": {"warn": WARN_ABOVE, "refuse": REFUSE_ABOVE}, "distance": distances}
    write_json(args.output, {**report, "environment": environment()})
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
