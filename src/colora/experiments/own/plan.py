"""What a comparison of a user's tasks will run: the plan, the trials of each stage, and what is given up first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from colora.experiments.methods.registry import METHODS
from colora.experiments.own.contenders import MOST_SETTINGS, Contender, Setting
from colora.experiments.own.data import OwnTasks
from colora.experiments.trial import Trial

__all__ = ["LEAST_STEPS", "MOST_FOLDS", "MOST_SEEDS", "Plan", "Stage", "Trials", "full_plan", "smaller_plans"]

MOST_SEEDS, MOST_FOLDS = 3, 3
MOST_HELD = 100  # examples of a task that a setting is chosen by
WARMUP_SHARE = 10
STEP_SHARES, LEAST_STEPS = (0.75, 0.5, 0.35, 0.25), 10


class Plan(BaseModel):
    """How much is run. Without settings to choose among there are no folds, and contenders have their first setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(ge=1, description="Trainings of each contender in the end.")
    settings: int = Field(ge=1, le=MOST_SETTINGS, description="Tried of each contender that is trained.")
    folds: int = Field(ge=0, description="Parts of the examples that settings are chosen on; 0: none are chosen.")
    curve: tuple[int, ...] = Field((), description="Numbers of training examples measured besides all of them.")
    steps: int = Field(ge=1, description="Optimiser steps of every training.")

    def __str__(self) -> str:
        chosen = f"{self.settings} settings each on {_count(self.folds, 'fold')}" if self.folds else "one setting each"
        curve = f", also with {', '.join(map(str, self.curve))} examples a task" if self.curve else ""
        return f"{chosen}, {self.steps} steps, {_count(self.seeds, 'seed')}{curve}"


def full_plan(data: OwnTasks, steps: int, curve: Sequence[int]) -> Plan:
    """What is run if there is time for everything."""
    folds = 1 if data.has_validation else data.most_folds(MOST_FOLDS)
    most = max(data.pool_sizes)
    points = tuple(sorted({number for number in curve if number < most}))
    can_choose = data.has_validation or folds > 1
    return Plan(
        seeds=MOST_SEEDS,
        settings=MOST_SETTINGS if can_choose else 1,
        folds=folds if can_choose else 0,
        curve=points,
        steps=steps,
    )


def smaller_plans(plan: Plan) -> Iterator[tuple[Plan, str]]:
    """Ever smaller plans, and what each gives up: seeds, then settings, folds, points of the curve, steps last."""
    while plan.seeds > 1:
        plan = plan.model_copy(update={"seeds": plan.seeds - 1})
        yield plan, f"seeds: {plan.seeds}"
    while plan.settings > 2:
        plan = plan.model_copy(update={"settings": plan.settings - 1})
        yield plan, f"settings of each contender: {plan.settings}"
    while plan.folds > 1:
        plan = plan.model_copy(update={"folds": plan.folds - 1})
        yield plan, f"folds: {plan.folds}"
    if plan.folds:
        plan = plan.model_copy(update={"settings": 1, "folds": 0})
        yield plan, "settings of each contender: 1, so that none is chosen"
    while plan.curve:
        plan = plan.model_copy(update={"curve": plan.curve[1:]})
        yield plan, f"points of the curve besides all examples: {len(plan.curve)}"
    whole = plan.steps
    for share in STEP_SHARES:
        steps = max(LEAST_STEPS, round(whole * share))
        if steps < plan.steps:
            plan = plan.model_copy(update={"steps": steps, "settings": 1})
            yield plan, f"steps: {steps} of {whole}"


@dataclass(frozen=True)
class Stage:
    """Trials that are run before the next decision.

    Attributes:
        name: for the progress bar.
        trials: of the stage.
        needed: whether there is no answer without it; the others are dropped when time runs out.
    """

    name: str
    trials: tuple[Trial, ...]
    needed: bool = True


class Trials:
    """The trials of a comparison.

    Args:
        template: a trial of the first contender on everything: what all trials have in common.
        contenders: what is compared.
        data: the tasks.
    """

    def __init__(self, template: Trial, contenders: Sequence[Contender], data: OwnTasks) -> None:
        self.template, self.contenders, self.data = template, list(contenders), data

    def of(self, one: Contender, setting: Setting | None, steps: int, seed: int) -> Trial:
        """A contender's training on everything; one that is not trained has the same trial whatever the plan.

        Args:
            one: the contender.
            setting: of it; None of one that is not trained.
            steps: optimiser steps.
            seed: counted from the run file's.
        """
        changes: dict[str, object] = {"method": one.method, "seed": self.template.seed + seed}
        known = METHODS[one.method].options or {}
        changes["options"] = {name: value for name, value in self.template.options.items() if name in known}
        if setting is None:
            changes["weight_decay"] = 0.0
        else:
            changes |= {"steps": steps, "warmup_steps": steps // WARMUP_SHARE}
            changes |= {"lr": setting.lr, "core_lr": setting.core_lr}
        return self.template.model_copy(update=changes)

    def choosing(self, plan: Plan) -> list[Stage]:
        """One stage for each part of the examples: every setting of every contender that is trained."""
        stages = []
        parts = self.data.parts(plan.folds)
        for number, part in enumerate(parts):
            held = min(MOST_HELD, self.data.validation_examples(plan.folds))
            changes = {"group": part, "split": "val", "test": held, "generate": min(held, self.template.generate)}
            trials = tuple(
                self.of(one, setting, plan.steps, seed=0).model_copy(update=changes)
                for one in self.contenders
                for setting in one.settings[: plan.settings]
            )
            of = f", fold {number + 1} of {len(parts)}" if len(parts) > 1 else ""
            stages.append(Stage(f"choosing settings{of}", trials, needed=number == 0))
        return stages

    def final(self, plan: Plan, chosen: Mapping[str, Setting | None]) -> list[Stage]:
        """Every contender at its setting on all examples, with the first seed; the curve; then the other seeds."""
        there = [one for one in self.contenders if one.method in chosen]

        def with_seed(seed: int) -> tuple[Trial, ...]:
            # What is not trained gives the same with every seed.
            some = [one for one in there if one.trained or seed == 0]
            return tuple(self.of(one, chosen[one.method], plan.steps, seed) for one in some)

        first = with_seed(0)
        curve = tuple(
            trial.model_copy(update={"examples": number})
            for number in plan.curve
            for trial in first
            if trial.method != "base"
        )
        stages = [Stage("all examples", first)]
        stages += [Stage("fewer examples", curve, needed=False)] if curve else []
        stages += [Stage(f"seed {seed}", with_seed(seed), needed=False) for seed in range(1, plan.seeds)]
        return stages

    def expected(self, plan: Plan) -> list[Stage]:
        """All stages, with the first settings in place of those that will be chosen: they take as long."""
        assumed = {one.method: one.settings[0] if one.settings else None for one in self.contenders}
        return [*self.choosing(plan), *self.final(plan, assumed)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
