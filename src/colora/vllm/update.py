"""The bank's part of a step: y += s · B Λ A x with the core of each row's slot, for rows of any mixture of tasks.

Shapes do not depend on which tasks are there, so that a step can be compiled, or captured as a graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["BankUpdate", "Cores", "Part"]


@dataclass(frozen=True)
class Part:
    """One adapted layer of the bank, as far as this process has it.

    Attributes:
        A: (r, d_in), without what other processes have of d_in.
        B: (d_out, r), without what other processes have of d_out; s is in it.
        start: first row of the layer's output that B is for.
    """

    A: Tensor
    B: Tensor
    start: int


class Cores:
    """The cores of all slots and layers, and the slot of each row of the step.

    Args:
        slots: adapters at a time; slot 0 besides them is zero and stays so.
        layers: adapted layers of the bank.
        rank: r.
        rows: the most in a step.
        dtype, device: of the model.

    Attributes:
        stacked: (slots + 1, layers, r, r).
        slot_of: (rows,), the slot of each row of the step; 0 for rows without an adapter and for padding.
        active: whether any row of the step has an adapter. What is compiled does not ask.
    """

    def __init__(self, slots: int, layers: int, rank: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.stacked = torch.zeros(slots + 1, layers, rank, rank, dtype=dtype, device=device)
        self.slot_of = torch.zeros(rows, dtype=torch.int64, device=device)
        self.active = False
        self._used = 0

    def fill(self, slot: int, core: Tensor | None) -> None:
        """Put a task's cores (layers, r, r) into a slot; None: zeros.

        Raises:
            ValueError: slot 0.
        """
        if slot == 0:
            raise ValueError("slot 0 is that of rows without an adapter")
        if core is None:
            self.stacked[slot].zero_()
        else:
            self.stacked[slot].copy_(core, non_blocking=True)

    def set_rows(self, slots: Tensor) -> None:
        """Say the slots of the next step's rows, a CPU tensor (n,); all rows after them have none."""
        count = len(slots)
        self.slot_of[:count].copy_(slots, non_blocking=True)
        if count < self._used:
            self.slot_of[count : self._used].zero_()
        self.active = bool(slots.any())
        self._used = count


class BankUpdate(nn.Module):
    """The update of one layer of the model, which may hold several of the bank's (q, k and v; gate and up).

    It is a module of that layer, so that what moves the model's tensors, or puts them aside, does so with these.

    Args:
        parts: the bank's layers in it, in the order of their cores.
        first: place of the first one's cores among those of the bank.
        outputs: rows of the layer's output in this process.
        cores: those of all layers.
        linear: makes a module that multiplies with a matrix (out, in), in the type of the cores.
    """

    cores: Tensor
    slot_of: Tensor

    def __init__(
        self, parts: list[Part], first: int, outputs: int, cores: Cores, linear: Callable[[Tensor], nn.Module]
    ) -> None:
        super().__init__()
        self._linear, self._outputs, self._step = linear, outputs, cores
        self.register_buffer("cores", cores.stacked[:, first : first + len(parts)], persistent=False)
        self.register_buffer("slot_of", cores.slot_of, persistent=False)
        self.set_factors(parts)

    def set_factors(self, parts: list[Part]) -> None:
        """Take A and B of other parts of the same shapes."""
        rank = parts[0].A.shape[0]
        # One product for all parts, with their B as blocks of one matrix: a product's start costs more than the zeros.
        B = torch.zeros(self._outputs, rank * len(parts))
        for number, part in enumerate(parts):
            B[part.start : part.start + part.B.shape[0], number * rank : (number + 1) * rank] = part.B
        self.A = self._linear(torch.cat([part.A for part in parts]))
        self.B = self._linear(B)

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        """Add the update of these rows to the layer's output, in place.

        Args:
            x: (..., d_in).
            output: (..., d_out), of the layer itself.

        Returns:
            `output`.
        """
        if not (self._step.active or torch.compiler.is_compiling()):
            return output
        hidden = self.A(x.reshape(-1, x.shape[-1]))
        own = self.cores[self.slot_of[: hidden.shape[0]]]  # (n, parts, r, r)
        hidden = hidden.view(own.shape[:3])
        if torch.compiler.is_compiling():  # into one kernel, where nothing is rounded in between
            hidden = (own * hidden[:, :, None]).sum(-1)
        else:
            hidden = (own @ hidden[..., None]).squeeze(-1)
        return output.add_(self.B(hidden.flatten(1)).view_as(output))
