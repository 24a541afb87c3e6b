"""What the fields of an experiment must be to each other: above all, that every method gets the same budget."""

from collections.abc import Iterator, Sequence

from colora.errors import ConfigError
from colora.experiments.config import Experiment, MethodSettings
from colora.experiments.methods.registry import METHODS
from colora.experiments.names import misnamed_tasks
from colora.experiments.plan import of_group, planned_trials, variants
from colora.tasks.prompting.templates import parse_template

__all__ = ["inconsistencies"]


def inconsistencies(experiment: Experiment) -> list[str]:
    """Every fault between fields, each with its place; none if the experiment can be run."""
    faults = [*_budgets(experiment), *_sizes(experiment), *_filters(experiment), *_settings(experiment)]
    return faults or list(_trials(experiment))


def _budgets(experiment: Experiment) -> Iterator[str]:
    budgets: dict[str, set[tuple[int, int]]] = {}
    for method, settings in variants(experiment):
        if METHODS[method].terms:  # the base model as it is has none, and no budget
            budget = (settings.steps or experiment.steps, settings.rows or experiment.rows)
            budgets.setdefault(method, set()).add(budget)
    if len(set().union(*budgets.values())) > 1 and not experiment.allow_unequal_steps:
        listed = "; ".join(
            f"{method}: {' and '.join(f'{steps} steps of {rows} rows of each task' for steps, rows in sorted(found))}"
            for method, found in budgets.items()
        )
        yield (
            f"methods: expected the same budget for all, found {listed}. "
            "With allow_unequal_steps: true they are run nevertheless"
        )


def _sizes(experiment: Experiment) -> Iterator[str]:
    for group in ("", *experiment.by_group):
        own, place = of_group(experiment, group), f"by_group.{group}." if group else ""
        if own.generate > own.test:
            yield f"{place}generate: expected at most test ({own.test}), found {own.generate}"
    yield from _prompt_faults("prompt", experiment.prompt)
    for group, tasks in experiment.groups.items():
        for fault in misnamed_tasks(tasks):
            yield f"groups.{group}: {fault}"
    most = max(experiment.tasks_used or [1])
    for group, tasks in experiment.groups.items():
        if len(tasks) < most:
            yield f"tasks_used: expected at most the {len(tasks)} tasks of group {group!r}, found {most}"


def _filters(experiment: Experiment) -> Iterator[str]:
    allowed_values: dict[str, Sequence[object]] = {
        "regimes": list(experiment.regimes),
        "groups": list(experiment.groups),
        "examples": experiment.examples,
    }
    for place, _, settings in _placed(experiment):
        for name, allowed in allowed_values.items():
            chosen = getattr(settings, name)
            other = [one for one in chosen or () if one not in allowed]
            if chosen == []:
                yield f"{place}.{name}: expected at least one, found none"
            if other:
                yield (
                    f"{place}.{name}: expected some of the experiment's {name} ({', '.join(map(str, allowed))}), "
                    f"found {', '.join(map(str, other))}"
                )
    for group in experiment.by_group:
        if group not in experiment.groups:
            yield f"by_group.{group}: expected a group of this experiment: {', '.join(experiment.groups)}"
    for method in experiment.grid:
        if method not in experiment.methods:
            yield f"grid.{method}: expected a method of this experiment: {', '.join(experiment.methods)}"


def _settings(experiment: Experiment) -> Iterator[str]:
    for place, name, settings in _placed(experiment):
        method = METHODS[name]
        local = settings.local_steps or experiment.local_steps
        for steps in sorted({settings.steps or of_group(experiment, group).steps for group in experiment.groups}):
            if method.federated and steps % local:
                yield f"{place}: expected steps to be a multiple of local_steps, found {steps} and {local}"
            if steps <= experiment.warmup_steps:
                yield f"{place}: expected more steps than warmup_steps, found {steps} and {experiment.warmup_steps}"
        if settings.local_steps is not None and not method.federated:
            yield f"{place}.local_steps: a method that is not federated has no rounds"
        if settings.core_lr is not None and not method.core_rate:
            yield f"{place}.core_lr: this method has no cores with a rate of their own"
        yield from _prompt_faults(f"{place}.prompt", settings.prompt)
        try:
            method.with_defaults(settings.options)
        except ConfigError as error:
            yield f"{place}.options: {error}"


def _prompt_faults(place: str, prompt: str | None) -> Iterator[str]:
    if prompt is not None and prompt != "auto":
        try:
            parse_template(prompt)
        except ConfigError as error:
            yield f"{place}: {error}"


def _placed(experiment: Experiment) -> Iterator[tuple[str, str, MethodSettings]]:
    """Each variant with its place in the file and its method."""
    for method, several in experiment.methods.items():
        for number, settings in enumerate(several):
            yield f"methods.{method}" + (f".{number}" if len(several) > 1 else ""), method, settings


def _trials(experiment: Experiment) -> Iterator[str]:
    seen: set[str] = set()
    twice = []
    for trial in planned_trials(experiment):
        if trial.key in seen and trial.method not in twice:
            twice.append(trial.method)
        seen.add(trial.key)
    for method in twice:
        yield f"methods.{method}: two variants give the same trial; settings that are the defaults count as these"
