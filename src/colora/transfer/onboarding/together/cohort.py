"""Cohorts: new tasks that are measured, started and trained in the same passes."""

from collections.abc import Callable, Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor

from colora.adapter.model import bank_tuner
from colora.models.batching import device_of
from colora.models.modes import training_mode
from colora.tasks.encode import EncodedRow
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.together.first_look import FirstLook
from colora.transfer.onboarding.together.fit import fit_together
from colora.transfer.onboarding.together.newcomer import Newcomer
from colora.transfer.onboarding.together.passes import Line, Passes, length_of
from colora.transfer.onboarding.together.slots import slots_in_place
from colora.transfer.onboarding.together.start import Known, choose_starts

__all__ = ["Trained", "cohorts", "draws_random_numbers", "train_together"]

PASSES = 2
"""Passes of a step of a cohort. More of them pad less, and lose more where a run is cut off."""

Trained = tuple[Newcomer, dict[str, Tensor]]


def train_together(
    model: PeftModel,
    newcomers: Sequence[Newcomer],
    pad_token_id: int,
    settings: Settings,
    most_tokens: int,
    known: Sequence[str] | None = None,
    stepped: Callable[[int], None] = lambda tasks: None,
    rank: int | None = None,
) -> Iterator[list[Trained]]:
    """Train the cores of new tasks, cohort by cohort; no task looks at another.

    Each is trained as `add_new_task` would train it, within rounding, whatever else is in its cohort. A model that
    draws random numbers while it trains (dropout) has cohorts of one task, so that each meets the same ones as alone.

    Args:
        model: with one active bank; as long as this goes on it has the cores of new tasks alone, and at the end it is
            as it was.
        newcomers: in any order; what is found out about them is filled in.
        pad_token_id: what fills shorter rows.
        most_tokens: of a forward pass, padding included.
        known: the tasks of the bank that new ones may start from; by default all.
        stepped: told after each step how many tasks took part.
        rank: of the new cores; None: that of the bank, whose other cores may be padded with zeros.

    Yields:
        the tasks of a cohort, each with its core (rank, rank) for each layer; none of a task with a fault.

    Raises:
        ConfigError: the bank is merged into the base, or its cores are in a store.
    """
    if not newcomers:
        return
    names = bank_tuner(model).tasks
    places = {name: place for place, name in enumerate(names)}
    chosen = list(names if known is None else known)
    alone = draws_random_numbers(model, newcomers[0].rows[0], pad_token_id)
    groups = [[one] for one in newcomers] if alone else list(cohorts(newcomers, settings.rows, most_tokens))
    with slots_in_place(model, max(map(len, groups)), rank) as (slots, cores):
        # Of the whole bank no copy: only a few of its tasks left out need one.
        own = cores if chosen == names else cores[[places[name] for name in chosen]]
        passes = Passes(model, pad_token_id, most_tokens, random=alone)
        look, start_from = FirstLook(slots, passes), Known(chosen, slots.corners(own))
        for cohort in groups:
            choose_starts(slots, passes, cohort, start_from, look(cohort))
            _measure_starts(passes, cohort)
            fit_together(slots, passes, cohort, settings, stepped)
            _measure(passes, cohort)
            found = slots.read(list(range(len(cohort)))).cpu()
            yield [
                (one, slots.layered(core) if one.fault is None else {}) for one, core in zip(cohort, found, strict=True)
            ]


def cohorts(newcomers: Sequence[Newcomer], rows: int, most_tokens: int) -> Iterator[list[Newcomer]]:
    """New tasks of similar length together: as many as have their step of `rows` in `PASSES` passes."""
    cohort: list[Newcomer] = []
    for one in sorted(newcomers, key=_longest):
        if cohort and (len(cohort) + 1) * rows * _longest(one) > PASSES * most_tokens:
            yield cohort
            cohort = []
        cohort.append(one)
    if cohort:
        yield cohort


def draws_random_numbers(model: PeftModel, row: EncodedRow, pad_token_id: int) -> bool:
    """Whether a forward pass in training draws random numbers, for dropout or for anything else: it is tried."""
    device = device_of(model)
    passes = Passes(model, pad_token_id, 1)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), training_mode(model):
        before = _random_state(device)
        passes.row_nll([Line(0, row)])
        return not torch.equal(before, _random_state(device))


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _measure_starts(passes: Passes, cohort: Sequence[Newcomer]) -> None:
    """What the chosen starts come to on all examples of training."""
    live = [slot for slot, one in enumerate(cohort) if one.fault is None]
    found = passes.nll([Line(slot, row) for slot in live for row in cohort[slot].rows], len(cohort))
    for slot in live:
        cohort[slot].at_start = found[slot]


def _measure(passes: Passes, cohort: Sequence[Newcomer]) -> None:
    """What the trained cores come to, on the examples of training and of validation."""
    live = [slot for slot, one in enumerate(cohort) if one.fault is None]
    if not live:
        return
    after = passes.nll([Line(slot, row) for slot in live for row in cohort[slot].rows], len(cohort))
    for slot in live:
        cohort[slot].after = after[slot]
    if held_out := [Line(slot, row) for slot in live for row in cohort[slot].held_out]:
        found = passes.nll(held_out, len(cohort))
        for slot in live:
            cohort[slot].validation = found[slot] if cohort[slot].held_out else None


def _longest(one: Newcomer) -> int:
    return max(map(length_of, one.rows))
