"""The bank's part of a step: y += s · B Λ A x with the core of each row's slot, for rows of any mixture of tasks.

Shapes do not depend on which tasks are there, so that a step can be compiled, or captured as a graph.
"""

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
        slot_of: (rows + 1,), the slot of each row of the step; 0 for rows without an adapter and for padding. The last
            one says whether any row has an adapter.
    """

    def __init__(self, slots: int, layers: int, rank: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.stacked = torch.zeros(slots + 1, layers, rank, rank, dtype=dtype, device=device)
        self.slot_of = torch.zeros(rows + 1, dtype=torch.int64, device=device)
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
        self.slot_of[-1] = int(slots.any())
        self._used = count


class BankUpdate(nn.Module):
    """The update of one layer of the model, which may hold several of the bank's (q, k and v; gate and up).

    It is a module of that layer, so that what moves the model's tensors, or puts them aside, does so with these.

    Args:
        parts: the bank's layers in it, in the order of their cores.
        first: place of the first one's cores among those of the bank.
        outputs: rows of the layer's output in this process.
        cores: those of all layers.
    """

    A: Tensor
    B: Tensor
    cores: Tensor
    slot_of: Tensor

    def __init__(self, parts: list[Part], first: int, outputs: int, cores: Cores) -> None:
        super().__init__()
        rows, inputs, stacked = sum(part.A.shape[0] for part in parts), parts[0].A.shape[1], cores.stacked
        self.bounds = [bound for part in parts for bound in (part.start, part.start + part.B.shape[0])]
        self.register_buffer("A", stacked.new_zeros(rows, inputs), persistent=False)
        # The parts' B as blocks of one matrix.
        self.register_buffer("B", stacked.new_zeros(rows, outputs), persistent=False)
        self.register_buffer("cores", stacked[:, first : first + len(parts)], persistent=False)
        self.register_buffer("slot_of", cores.slot_of, persistent=False)
        self.fill(parts)

    def fill(self, parts: list[Part]) -> None:
        """Copy A and B of other parts of the same shapes, in place."""
        self.A.copy_(torch.cat([part.A for part in parts]))
        for number, part in enumerate(parts):
            rank = part.A.shape[0]
            block = self.B[number * rank : (number + 1) * rank, part.start : part.start + part.B.shape[0]]
            block.copy_(part.B.t())

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        """Add the update of these rows to the layer's output, in place.

        Args:
            x: (..., d_in).
            output: (..., d_out), of the layer itself.

        Returns:
            `output`.
        """
        add_update = torch.ops.colora.add_update if torch.compiler.is_compiling() else _add_update
        add_update(x, output, self.A, self.B, self.cores, self.slot_of, self.bounds)
        return output


def _add_update(
    x: Tensor, output: Tensor, A: Tensor, B: Tensor, cores: Tensor, slot_of: Tensor, bounds: list[int]
) -> None:
    on_cpu = output.device.type == "cpu"
    if on_cpu and not slot_of[-1]:
        return
    rows, flat = x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1])
    own = cores[slot_of[: rows.shape[0]]]  # (n, parts, r, r)
    count, parts, rank, _ = own.shape
    hidden = torch.nn.functional.linear(rows, A).view(count * parts, rank, 1)
    hidden = torch.bmm(own.view(count * parts, rank, rank), hidden).view(count, parts * rank)
    if not on_cpu or output.dtype != torch.float32:
        flat.addmm_(hidden, B)
        return
    # Here the zeros between the blocks cost more than a product for each block: 2.6 ms a step in place of 2.7 with 16
    # rows, 12.0 in place of 16.7 with 200 (SmolLM2, rank 16, two cores). In bfloat16 one product is the faster way.
    for part in range(parts):
        block, (start, stop) = slice(part * rank, (part + 1) * rank), bounds[2 * part : 2 * part + 2]
        flat[:, start:stop].addmm_(hidden[:, block], B[block, start:stop])


# One operation for what compiles the model. Nothing of a bank is in the compiled code but where the operation stands,
# which `colora.vllm.compiling` puts among what its cache goes by.
_LIBRARY = torch.library.Library("colora", "DEF")
_LIBRARY.define(
    "add_update(Tensor x, Tensor(a!) output, Tensor A, Tensor B, Tensor cores, Tensor slot_of, int[] bounds) -> ()"
)
_LIBRARY.impl("add_update", _add_update, "CompositeExplicitAutograd")
torch.library.register_fake("colora::add_update", lambda *_: None, lib=_LIBRARY)
