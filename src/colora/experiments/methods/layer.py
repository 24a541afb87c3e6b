"""`ConstrainedLinear`: a frozen linear layer with the terms of a method, for batches with the tasks in equal blocks.

A batch has K · m rows, the m rows of task 0 first, then those of task 1, and so on. So the rows of a task are a slice,
a copy of its own is a batched product, and nothing is gathered.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colora.adapter.core_start import rotated_cores
from colora.algebra import fresh_core
from colora.errors import TaskIdError
from colora.experiments.methods.method import Term

__all__ = ["ConstrainedLinear", "TermLayer", "distinct_parts"]


class TermLayer(nn.Module):
    """A, B and Λ of one term in one layer; the first dimension is 1, or K where each task has a copy.

    Parameters (frozen parts are parameters without gradient):
        A (1 | K, r, d_in), B (1 | K, d_out, r), core (1 | K, r, r), or (1 | K, r) if diagonal, or None. Several layers
        may hold one and the same core.

    Attributes:
        silent: the term adds nothing at the moment.
    """

    def __init__(self, term: Term, tasks: int, rank: int, inputs: int, outputs: int, device: torch.device) -> None:
        super().__init__()
        self.term = term
        self.silent = False

        def empty(own: bool, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(tasks if own else 1, *shape, device=device))

        self.A = empty(term.A.own, rank, inputs)
        self.B = empty(term.B.own, outputs, rank)
        self.core: nn.Parameter | None = None
        if term.core is not None:
            self.core = empty(term.core.own, rank) if term.diagonal else empty(term.core.own, rank, rank)

    @torch.no_grad()
    def start(self, alike: bool) -> None:
        """A as LoRA's (Kaiming uniform), B = 0, Λ = I; `alike`: all copies of A begin as one, as a server sends it."""
        bound = 1 / math.sqrt(self.A.shape[-1])
        self.A.uniform_(-bound, bound)
        if alike:
            self.A.copy_(self.A[:1].clone().expand_as(self.A))
        self.B.zero_()
        if self.core is not None:
            self.core.copy_(torch.ones_like(self.core) if self.term.diagonal else self._identity().expand_as(self.core))

    @torch.no_grad()
    def rotate(self, rotated: float, generator: torch.Generator) -> None:
        """Turn the start of each task's own core, see `colora.adapter.core_start`."""
        if self.core is not None and self.term.core is not None and self.term.core.own and not self.term.diagonal:
            self.core.copy_(rotated_cores(len(self.core), self.core.shape[-1], rotated, generator))

    def _identity(self) -> Tensor:
        return fresh_core(self.A.shape[-2], self.A.dtype, self.A.device)

    def parts(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The tensors by the names of the term's parts."""
        yield "A", self.A
        yield "B", self.B
        if self.core is not None:
            yield "core", self.core

    def factors(self, task: int) -> tuple[Tensor, Tensor]:
        """B and Λ A of a task, (d_out, r) and (r, d_in): its update without the scale is their product."""
        A, B = self.A[task % len(self.A)], self.B[task % len(self.B)]
        if self.core is None:
            return B, A
        core = self.core[task % len(self.core)]
        return B, (core[:, None] * A if self.term.diagonal else core @ A)

    def add_to(self, result: Tensor, x: Tensor, scale: float) -> Tensor:
        """`result` (K, rows, d_out) + s · B Λ A x for x (K, rows, d_in)."""
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        hidden = F.linear(x, A[0]) if len(A) == 1 else torch.bmm(x, A.mT)
        if self.core is not None:
            core = self.core.to(x.dtype)
            if self.term.diagonal:
                hidden = hidden * core[:, None]
            else:
                hidden = F.linear(hidden, core[0]) if len(core) == 1 else torch.bmm(hidden, core.mT)
        if len(B) == 1:  # one product that adds up in place of a product and a sum
            flat = torch.addmm(result.flatten(0, 1), hidden.flatten(0, 1), B[0].t(), alpha=scale)
            return flat.view(result.shape)
        return torch.baddbmm(result, hidden, B.mT, alpha=scale)


class ConstrainedLinear(nn.Module):
    """y = W_k x for the task k of each row, W_k = W0 + W+ + s · Σ B Λ A.

    Attributes:
        base: the frozen layer with W0.
        terms: a `TermLayer` for each term of the method.
        scale: s.
        folded: what was added to the weight for all tasks, (d_out, d_in), or None. Kept apart from W0, which may be too
            coarse to take it (bfloat16), and which the next method finds as it was.
    """

    def __init__(self, base: nn.Linear, terms: tuple[Term, ...], ranks: list[int], tasks: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.tasks, self.scale = tasks, scale
        device = base.weight.device
        self.terms = nn.ModuleList(
            TermLayer(term, tasks, rank, base.in_features, base.out_features, device)
            for term, rank in zip(terms, ranks, strict=True)
        )
        self.folded: Tensor | None = None

    def term_layers(self) -> list[TermLayer]:
        """The terms, typed."""
        return [term for term in self.terms if isinstance(term, TermLayer)]

    def acting(self) -> list[TermLayer]:
        """The terms that are not silent."""
        return [term for term in self.term_layers() if not term.silent]

    def forward(self, x: Tensor) -> Tensor:
        """x (K · m, ..., d_in), the rows of task 0 first. Raises TaskIdError if the rows are not K equal blocks."""
        result: Tensor = self.base(x)
        if self.folded is not None:
            result = result + F.linear(x, self.folded.to(x.dtype))
        if not self.terms:
            return result
        if x.shape[0] % self.tasks:
            raise TaskIdError(f"expected {self.tasks} equal blocks of rows, one a task, found {x.shape[0]} rows")
        shape = result.shape
        blocks = x.reshape(self.tasks, -1, x.shape[-1])
        result = result.reshape(self.tasks, -1, shape[-1])
        for term in self.acting():
            result = term.add_to(result, blocks, self.scale)
        return result.view(shape)


def distinct_parts(layers: Iterable[ConstrainedLinear]) -> Iterator[tuple[TermLayer, str, nn.Parameter]]:
    """Every tensor of all layers once, with a term that holds it and its name there, "A'" being A of a second term."""
    seen: set[int] = set()
    for layer in layers:
        for number, term in enumerate(layer.term_layers()):
            for name, tensor in term.parts():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield term, name + "'" * number, tensor
