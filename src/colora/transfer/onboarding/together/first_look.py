"""A first look at several new tasks, without any adapter: their likelihood, and what their gradients would change.

Of each task's gradient G in each layer, reduced as `task_gradients` does, only what is asked of it is kept: its shares
for the coverage, and the gradient of the core at Λ = 0, s Bᵀ G Aᵀ. The gradients of a hundred tasks would not fit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from colora.adapter.layer import CoLoRALinear
from colora.adapter.mixtures.experts import ExpertLinear
from colora.models.modes import eval_mode_with_gradients
from colora.training.task_gradients import RANK, reduced
from colora.transfer.onboarding.coverage import Coverage, orthonormal
from colora.transfer.onboarding.together.newcomer import Newcomer
from colora.transfer.onboarding.together.passes import Line, Passes, length_of
from colora.transfer.onboarding.together.slots import Slots

__all__ = ["FirstLook"]

GRADIENT_EXAMPLES = 16


class FirstLook:
    """What new tasks are measured with before their cores have any number.

    Args:
        slots: of the model. passes: over the same.
    """

    def __init__(self, slots: Slots, passes: Passes) -> None:
        self.slots, self.passes = slots, passes
        self._bases = {}
        for name, layer in slots.layers.items():
            A, B = layer.colora_A[slots.bank].detach(), layer.colora_B[slots.bank].detach()
            self._bases[name] = (orthonormal(A.cpu().mT), orthonormal(B.cpu()))

    def __call__(self, newcomers: Sequence[Newcomer]) -> Float[Tensor, "newcomers numbers"]:
        """Fill in `before` and `coverage` of the tasks in the first slots, or their `fault`.

        Returns:
            the gradient of each task's nats per token by its core, at Λ = 0.
        """
        slopes = torch.zeros_like(self.slots.read(list(range(len(newcomers)))), device="cpu")
        self.slots.write(list(range(len(newcomers))), slopes)
        for group in self._groups(newcomers):
            self._look(group, newcomers, slopes)
        rest = [slot for slot, one in enumerate(newcomers) if len(one.rows) > GRADIENT_EXAMPLES]
        if rest:
            found = self.passes.nll([Line(slot, row) for slot in rest for row in newcomers[slot].rows], len(newcomers))
            for slot in rest:
                newcomers[slot].before = found[slot]
        return self.slots.corners(slopes)

    def _groups(self, newcomers: Sequence[Newcomer]) -> Iterator[list[int]]:
        """Slots that share a pass. A task's examples are not torn apart: its gradient is reduced once, and whole."""
        group: list[int] = []
        rows, longest = 0, 0
        for slot in sorted(range(len(newcomers)), key=lambda slot: -max(map(length_of, newcomers[slot].rows))):
            count = min(GRADIENT_EXAMPLES, len(newcomers[slot].rows))
            longest = longest or max(map(length_of, newcomers[slot].rows))
            if group and (rows + count) * longest > self.passes.most_tokens:
                yield group
                group, rows, longest = [], 0, max(map(length_of, newcomers[slot].rows))
            group.append(slot)
            rows += count
        yield group

    def _look(self, group: list[int], newcomers: Sequence[Newcomer], slopes: Tensor) -> None:
        lines = [Line(slot, row) for slot in group for row in newcomers[slot].rows[:GRADIENT_EXAMPLES]]
        sums = {slot: _Sums() for slot in group}
        tokens = self.passes.tokens(lines, len(newcomers))
        index = torch.tensor([line.slot for line in lines], device=tokens.device)
        ends = [layer.colora_B[self.slots.bank] for layer in self.slots.layers.values()]
        gradients: dict[str, Tensor] = {}
        with eval_mode_with_gradients(self.slots.model, ends), self._watched(sums, gradients):
            nll = self.passes.row_nll(lines) / tokens[index]
            finite = torch.isfinite(nll)
            torch.autograd.grad(nll[finite].sum(), ends, allow_unused=True)  # no .grad is touched
        losses = torch.zeros(len(newcomers), dtype=torch.float64).index_add(0, index.cpu(), nll.detach().cpu().double())
        for place, slot in enumerate(group):
            newcomers[slot].before = float(losses[slot])
            newcomers[slot].coverage = found = sums[slot].coverage()
            own = [
                gradients[name][place] if name in gradients else torch.zeros(stack.shape[1:])
                for name, stack in self.slots.stacks.items()
            ]
            slopes[slot] = torch.cat([slope.flatten() for slope in own])
            if not math.isfinite(newcomers[slot].before) or not math.isfinite(found.shared):
                newcomers[slot].fault = "its loss or its gradient without an adapter is NaN or infinite"
                slopes[slot] = 0

    @contextmanager
    def _watched(self, sums: "Mapping[int, _Sums]", gradients: dict[str, Tensor]) -> Iterator[None]:
        """Inside, what a backward pass tells of each layer is added up task by task."""

        def watch(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            x, ids = args[0].detach(), self._slots_of(module, args)

            def backward(gradient: Tensor) -> None:
                slopes = [self._reduce(name, gradient[ids == slot], x[ids == slot], own) for slot, own in sums.items()]
                gradients[name] = gradients[name] + torch.stack(slopes) if name in gradients else torch.stack(slopes)

            output.register_hook(backward)

        handles = [layer.register_forward_hook(partial(watch, name)) for name, layer in self.slots.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _slots_of(self, layer: nn.Module, args: tuple[Any, ...]) -> Tensor:
        """The slot of each row or token that a layer sees."""
        bank, x = self.slots.bank, args[0]
        assert isinstance(layer, CoLoRALinear)
        told = isinstance(layer, ExpertLinear)  # for it sees some tokens of many rows
        ids = args[2][bank] if told else layer.router.rows(bank, x, layer.layer_name, layer.layout)
        return torch.full(x.shape[:1], ids, device=x.device) if isinstance(ids, int) else ids.to(x.device)

    def _reduce(self, name: str, deltas: Tensor, inputs: Tensor, sums: "_Sums") -> Tensor:
        """Add what one task's gradient in one layer holds; the gradient of its core, (r, r), on the CPU."""
        deltas, inputs = deltas.flatten(0, -2), inputs.flatten(0, -2)
        real = deltas.any(1)  # padding has none
        work = torch.promote_types(deltas.dtype, torch.float32)
        left, right = (factor.cpu() for factor in reduced(deltas[real].to(work), inputs[real].to(work), RANK))
        layer, (q_a, q_b) = self.slots.layers[name], self._bases[name]
        A, B = (part[self.slots.bank].detach().cpu().to(work) for part in (layer.colora_A, layer.colora_B))
        wide = right.double()
        inside = float(((q_b.mT @ left.double()) @ (wide @ q_a)).square().sum())
        # The columns of left are orthonormal: right has G's singular values, and their squares are these.
        squares = torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0)
        sums.add(name, inside, float(squares[-A.shape[0] :].sum()), float(wide.square().sum()))
        return layer.scaling[self.slots.bank] * (B.mT @ left) @ (right @ A.mT)


class _Sums:
    """Squares of one task's gradient, layer by layer."""

    def __init__(self) -> None:
        self.inside: dict[str, float] = {}
        self.leading, self.total = 0.0, dict[str, float]()

    def add(self, layer: str, inside: float, leading: float, total: float) -> None:
        self.inside[layer] = self.inside.get(layer, 0.0) + inside
        self.total[layer] = self.total.get(layer, 0.0) + total
        self.leading += leading

    def coverage(self) -> Coverage:
        whole = sum(self.total.values()) or 1.0
        shares = {layer: value / (self.total[layer] or 1.0) for layer, value in self.inside.items()}
        return Coverage(sum(self.inside.values()) / whole, self.leading / whole, shares)
