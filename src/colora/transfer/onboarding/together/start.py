"""Where the cores of several new tasks start: `choose_start`, each candidate of all of them in the same passes."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from colora.adapter.core_size import resized_core
from colora.algebra import fresh_core
from colora.models.modes import eval_mode_with_gradients
from colora.transfer.onboarding.start import NEIGHBOURS, SCALES, evenly
from colora.transfer.onboarding.together.newcomer import Newcomer
from colora.transfer.onboarding.together.passes import Line, Passes
from colora.transfer.onboarding.together.slots import Slots

__all__ = ["Known", "choose_starts"]


class Known:
    """The tasks of a bank that new ones may start from.

    Args:
        names: of the tasks. cores: of the same.
    """

    def __init__(self, names: Sequence[str], cores: Float[Tensor, "K numbers"]) -> None:
        self.names, self.cores = list(names), cores
        self.mean = cores.mean(0)
        self.norm = float(torch.linalg.vector_norm(cores, dim=1).mean())


def choose_starts(
    slots: Slots,
    passes: Passes,
    newcomers: Sequence[Newcomer],
    known: Known,
    at_zero: Float[Tensor, "newcomers numbers"],
) -> None:
    """Write the best start into the slot of each new task, and fill in `start` and `start_nll`.

    Args:
        newcomers: those in the first slots; those with a fault are passed over.
        at_zero: the gradient of each by its core at Λ = 0.
    """
    live = [slot for slot, one in enumerate(newcomers) if one.fault is None]
    if not live:
        return
    rows_of = {slot: newcomers[slot].rows for slot in live}
    lines = [Line(slot, rows[place]) for slot, rows in rows_of.items() for place in evenly(len(rows))]
    near = _nearest(slots, passes, lines, live, known)
    fresh = fresh_core(slots.rank)
    identity = torch.cat([resized_core(fresh, stack.shape[-1]).flatten() for stack in slots.stacks.values()])
    identity = identity.to(known.cores)
    slopes = at_zero[live].to(known.cores)
    lengths = torch.linalg.vector_norm(slopes, dim=1, keepdim=True)
    lengths[lengths == 0] = 1.0
    starts = {"identity": identity.expand(len(live), -1), "mean": known.mean.expand(len(live), -1)}
    for scale in SCALES:
        starts[f"gradient × {scale:g}"] = -scale * known.norm / lengths * slopes

    def cores_of(candidate: str | int) -> Float[Tensor, "live numbers"]:
        return starts[candidate] if isinstance(candidate, str) else known.cores[near[:, candidate]]

    candidates: list[str | int] = [*starts, *range(near.shape[1])]
    for candidate in candidates:
        slots.write(live, cores_of(candidate))
        found = passes.nll(lines, len(newcomers))
        for place, slot in enumerate(live):
            newcomers[slot].start_nll[_name(candidate, known, near[place])] = found[slot]
    best = []
    for place, slot in enumerate(live):
        nll = list(newcomers[slot].start_nll.values())
        chosen = min(range(len(nll)), key=lambda number: nll[number] if math.isfinite(nll[number]) else math.inf)
        newcomers[slot].start = list(newcomers[slot].start_nll)[chosen]
        best.append(cores_of(candidates[chosen])[place])
    slots.write(live, torch.stack(best))


def _name(candidate: str | int, known: Known, near: Tensor) -> str:
    return candidate if isinstance(candidate, str) else f"core of {known.names[int(near[candidate])]}"


def _nearest(slots: Slots, passes: Passes, lines: Sequence[Line], live: list[int], known: Known) -> Tensor:
    """For each new task, the places of the known tasks whose cores are tried: (live, at most `NEIGHBOURS`).

    Of more, those whose cores lie furthest down the gradient at the mean core.
    """
    if len(known.names) <= NEIGHBOURS:
        return torch.arange(len(known.names)).expand(len(live), -1)
    slots.write(live, known.mean.expand(len(live), -1))
    stacks = list(slots.stacks.values())
    total = [torch.zeros_like(stack) for stack in stacks]
    tokens = passes.tokens(lines, len(stacks[0]))
    with eval_mode_with_gradients(slots.model, stacks):
        for batch in passes.batches(lines):
            index = torch.tensor([line.slot for line in batch], device=tokens.device)
            loss = (passes.row_nll(batch) / tokens[index]).sum()
            slopes = torch.autograd.grad(loss, stacks, materialize_grads=True)
            for sum_of_layer, slope in zip(total, slopes, strict=True):
                sum_of_layer += slope
    slope = slots.flat([one[live] for one in total])
    gain = slope.to(known.cores) @ (known.cores - known.mean).T
    return gain.argsort(dim=1)[:, :NEIGHBOURS].cpu()
