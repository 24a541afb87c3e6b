"""The bank's part of a step: y += s · B Λ A x with the core of each row's slot, for rows of any mixture of tasks.

Shapes do not depend on which tasks are there, so that a step can be compiled, or captured as a graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
        active: whether any row of the step has an adapter. Where a step is compiled it is never false.
    """

    def __init__(self, slots: int, layers: int, rank: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.stacked = torch.zeros(slots + 1, layers, rank, rank, dtype=dtype, device=device)
        self.slot_of = torch.zeros(rows, dtype=torch.int64, device=device)
        self.always = device.type != "cpu"
        self.active = self.always
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
        self._used = count
        self.active = self.always or bool(slots.any())


class BankUpdate:
    """The update of one layer of the model, which may hold several of the bank's (q, k and v; gate and up).

    Args:
        parts: the bank's layers in it, in the order of their cores.
        first: place of the first one's cores among those of the bank.
        outputs: rows of the layer's output in this process.
        cores: those of all layers.
    """

    def __init__(self, parts: list[Part], first: int, outputs: int, cores: Cores) -> None:
        rows, inputs = sum(part.A.shape[0] for part in parts), parts[0].A.shape[1]
        self.A = cores.stacked.new_zeros(rows, inputs)
        # The parts' B as blocks of one matrix: one product in place of one for each.
        self.B = cores.stacked.new_zeros(rows, outputs)
        self.cores, self._cores = cores, cores.stacked[:, first : first + len(parts)]
        self.fill(parts)

    def fill(self, parts: list[Part]) -> None:
        """Copy A and B of other parts of the same shapes, in place."""
        self.A.copy_(torch.cat([part.A for part in parts]))
        for number, part in enumerate(parts):
            rank = part.A.shape[0]
            rows = slice(number * rank, (number + 1) * rank)
            self.B[rows, part.start : part.start + part.B.shape[0]].copy_(part.B.t())

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        """Add the update of these rows to the layer's output, in place.

        Args:
            x: (..., d_in).
            output: (..., d_out), of the layer itself.

        Returns:
            `output`.
        """
        if not self.cores.active:
            return output
        rows, flat = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
        own = self._cores[self.cores.slot_of[: rows.shape[0]]]  # (n, parts, r, r)
        hidden = torch.nn.functional.linear(rows, self.A).view(*own.shape[:3], 1)
        flat.addmm_((own @ hidden).flatten(1), self.B)
        return output
