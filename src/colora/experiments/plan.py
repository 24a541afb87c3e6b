"""From an experiment to its trials: every combination of what it lists, in a fixed order."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TypedDict

from colora.experiments.config import Experiment, MethodSettings
from colora.experiments.methods.method import Method
from colora.experiments.methods.registry import METHODS
from colora.experiments.trial import Trial

__all__ = ["of_group", "planned_trials", "variants"]

# What a trial takes over from its experiment as it is.
COMMON = ("base", "dtype", "first_layer", "warmup_steps", "split", "test", "generate", "max_length", "max_new_tokens")

UNUSED_STEPS = 10  # of a round, where there are no rounds


def planned_trials(experiment: Experiment) -> list[Trial]:
    """The trials by seed, regime, group, number of tasks, number of examples, rank and method: the last changes first.

    So the first trials are all of the first seed, and the first of these compare every method on one group. A setting
    that a method does not know has the same value in all its trials, so that experiments share as many as they can.
    """
    return [
        Trial(
            method=method,
            group=group,
            tasks=tuple(tasks),
            regime=regime,
            examples=examples,
            seed=seed,
            **{name: getattr(own, name) for name in COMMON},
            prompt=settings.prompt or own.prompt,
            **_decided(own, METHODS[method], settings, rank),
        )
        for seed, regime, (group, tasks), examples, index in product(
            experiment.seeds, experiment.regimes, _sized(experiment), experiment.examples, range(len(experiment.rank))
        )
        for own in (of_group(experiment, group),)
        for method, settings in variants(experiment)
        if _wanted(settings, regime, group, examples, len(tasks), seed)
        for rank in _ranks(experiment, METHODS[method], settings, index)
    ]


def of_group(experiment: Experiment, group: str) -> Experiment:
    """The experiment with what this group needs in place of its own settings."""
    own = experiment.by_group.get(group)
    return experiment if own is None else experiment.model_copy(update=own.model_dump(exclude_none=True))


def variants(experiment: Experiment) -> Iterator[tuple[str, MethodSettings]]:
    """Each variant of each method, in the order of the file."""
    for method, several in experiment.methods.items():
        for settings in several:
            yield method, settings


class _Decided(TypedDict):
    rank: int
    alpha: float
    steps: int
    rows: int
    local_steps: int
    lr: float
    core_lr: float | None
    weight_decay: float
    options: dict[str, float]


def _decided(experiment: Experiment, method: Method, settings: MethodSettings, rank: int) -> _Decided:
    """What a method's own settings decide; the experiment's where they say nothing."""
    local_steps = settings.local_steps or experiment.local_steps
    core_lr = settings.core_lr or experiment.core_lr
    decay = experiment.weight_decay if settings.weight_decay is None else settings.weight_decay
    return {
        "rank": rank,
        "alpha": settings.alpha or experiment.alpha or rank,
        "steps": settings.steps or experiment.steps,
        "rows": settings.rows or experiment.rows,
        "local_steps": local_steps if method.federated else UNUSED_STEPS,
        "lr": settings.lr or experiment.lr,
        "core_lr": core_lr if method.core_rate else None,
        "weight_decay": decay if method.terms else 0.0,
        "options": settings.options,
    }


def _sized(experiment: Experiment) -> list[tuple[str, list[str]]]:
    sizes = experiment.tasks_used or [max(map(len, experiment.groups.values()))]
    return [(group, tasks[:size]) for group, tasks in experiment.groups.items() for size in sizes]


def _wanted(settings: MethodSettings, regime: str, group: str, examples: int, tasks: int, seed: int) -> bool:
    chosen: tuple[tuple[Sequence[object] | None, object], ...] = (
        (settings.regimes, regime),
        (settings.groups, group),
        (settings.examples, examples),
        (settings.tasks_used, tasks),
        (settings.seeds, seed),
    )
    return all(only is None or value in only for only, value in chosen)


def _ranks(experiment: Experiment, method: Method, settings: MethodSettings, index: int) -> list[int]:
    """The rank at this index of the sweep; a method with a rank of its own, or with none, runs at the first alone."""
    if settings.rank is not None or not method.terms:
        return [settings.rank or experiment.rank[0]] if index == 0 else []
    return [experiment.rank[index]]
