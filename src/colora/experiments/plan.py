"""From an experiment to its trials: every combination of what it lists, in a fixed order."""

from collections.abc import Iterator, Sequence
from itertools import product

from colora.experiments.config import Experiment, MethodSettings
from colora.experiments.methods.method import Method
from colora.experiments.methods.registry import METHODS
from colora.experiments.trial import Trial

__all__ = ["planned_trials", "variants"]

# What a trial takes over from its experiment as it is.
COMMON = ("base", "dtype", "first_layer", "warmup_steps", "split", "test", "generate", "max_length", "max_new_tokens")

UNUSED_STEPS = 10  # of a round, where there are no rounds


def planned_trials(experiment: Experiment) -> list[Trial]:
    """The trials by seed, regime, group, number of tasks, number of examples, rank and method: the last changes first.

    So the first trials are all of the first seed, and the first of these compare every method on one group. A setting
    that a method does not know has the same value in all its trials, so that experiments share as many as they can.
    """
    common = {name: getattr(experiment, name) for name in COMMON}
    return [
        Trial(
            method=method, group=group, tasks=tuple(tasks), regime=regime, examples=examples, seed=seed,
            rank=rank, alpha=settings.alpha or experiment.alpha or rank,
            steps=settings.steps or experiment.steps, rows=settings.rows or experiment.rows,
            local_steps=(settings.local_steps or experiment.local_steps) if METHODS[method].federated else UNUSED_STEPS,
            lr=settings.lr or experiment.lr,
            core_lr=(settings.core_lr or experiment.core_lr) if METHODS[method].core_rate else None,
            options=settings.options, **common,
        )
        for seed, regime, (group, tasks), examples, place in product(
            experiment.seeds, experiment.regimes, _sized(experiment), experiment.examples, range(len(experiment.rank))
        )
        for method, settings in variants(experiment)
        if _wanted(settings, regime, group, examples, len(tasks), seed)
        for rank in _ranks(experiment, METHODS[method], settings, place)
    ]  # fmt: skip


def variants(experiment: Experiment) -> Iterator[tuple[str, MethodSettings]]:
    """Each variant of each method, in the order of the file."""
    for method, several in experiment.methods.items():
        for settings in several:
            yield method, settings


def _sized(experiment: Experiment) -> list[tuple[str, list[str]]]:
    sizes = experiment.tasks_used or [max(map(len, experiment.groups.values()))]
    return [(group, tasks[:size]) for group, tasks in experiment.groups.items() for size in sizes]


def _wanted(settings: MethodSettings, regime: str, group: str, examples: int, tasks: int, seed: int) -> bool:
    chosen: tuple[tuple[Sequence[object] | None, object], ...] = (
        (settings.regimes, regime), (settings.groups, group), (settings.examples, examples),
        (settings.tasks_used, tasks), (settings.seeds, seed),
    )  # fmt: skip
    return all(only is None or found in only for only, found in chosen)


def _ranks(experiment: Experiment, method: Method, settings: MethodSettings, place: int) -> list[int]:
    """The rank at this place of the sweep; a method with a rank of its own, or with none, runs at the first alone."""
    if settings.rank is not None or not method.terms:
        return [settings.rank or experiment.rank[0]] if place == 0 else []
    return [experiment.rank[place]]
