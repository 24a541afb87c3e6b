"""An experiment: one YAML file that says which methods are compared, on which tasks, with which budget."""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from colora.common.files import NAME_RULE, fits_name_rule
from colora.common.systems import file_name_fault
from colora.experiments.methods.registry import METHODS
from colora.experiments.names import unknown
from colora.experiments.trial import Regime
from colora.tasks.families.named import GROUPS

__all__ = ["Experiment", "GroupSettings", "MethodSettings"]

T = TypeVar("T")
Filled = TypeVar("Filled", list[object], dict[str, object])
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _different(values: list[T]) -> list[T]:
    twice = dict.fromkeys(str(value) for value in values if values.count(value) > 1)
    if twice:
        raise ValueError(f"expected each once, found {', '.join(twice)} more than once")
    return values


def _filled(values: Filled) -> Filled:
    if not values:
        raise ValueError("expected at least one, found none")
    return values


def _name(value: str) -> str:
    if not fits_name_rule(value):
        raise ValueError(f"expected {NAME_RULE}, found {value!r}")
    if fault := file_name_fault(value):
        raise ValueError(fault)
    return value


def _groups(value: object) -> object:
    """Every way to write groups as a mapping from name to tasks."""
    if isinstance(value, str | list):
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected names of groups, found {names!r}")
        value = {name: name for name in _different(names)}
    if not isinstance(value, dict):
        return value
    asked = [tasks for tasks in value.values() if isinstance(tasks, str)]
    faults = unknown("group", asked, GROUPS)
    for name, tasks in value.items():
        if isinstance(tasks, list) and name in GROUPS and tasks != list(GROUPS[name]):
            faults.append(f"{name!r} is the name of a known group with other tasks; give yours another name")
    if faults:
        raise ValueError("; ".join(faults))
    return {name: list(GROUPS[tasks]) if isinstance(tasks, str) else tasks for name, tasks in value.items()}


def _methods(value: object) -> object:
    """Every way to write methods as a mapping from name to a list of settings."""
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(_different(value))
    if not isinstance(value, dict):
        return value
    faults = unknown("method", map(str, value), METHODS)
    if faults:
        raise ValueError("; ".join(faults))
    return {name: [{}] if one is None else _listed(one) for name, one in value.items()}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)


OneOrMore = (BeforeValidator(_listed), AfterValidator(_different), AfterValidator(_filled))
Named = Annotated[str, AfterValidator(_name)]
TaskNames = Annotated[list[str], AfterValidator(_different), AfterValidator(_filled)]
Groups = Annotated[dict[Named, TaskNames], BeforeValidator(_groups), AfterValidator(_filled)]


class MethodSettings(_Settings):
    """One variant of a method: what differs from the experiment's own settings."""

    lr: Rate | None = Field(None, description="Peak learning rate of the factors A and B.")
    core_lr: Rate | None = Field(None, description="Peak learning rate of the cores.")
    weight_decay: Decay | None = Field(None, description="Decoupled weight decay of A and B.")
    rank: Count | None = Field(None, description="Rank for this method.")
    alpha: Rate | None = Field(None, description="Scale: updates are multiplied by alpha / rank. Default: the rank.")
    steps: Count | None = Field(
        None, description="Optimiser steps. A number other than the experiment's needs allow_unequal_steps."
    )
    rows: Count | None = Field(
        None,
        description=("Rows of each task in a step. A number other than the experiment's needs allow_unequal_steps."),
    )
    local_steps: Count | None = Field(
        None, description="Local steps of each client in a round, for a federated method."
    )
    prompt: str | None = Field(None, description="Prompt for this variant alone. Use it to compare prompts.")
    options: dict[str, float] = Field({}, description="Options that only this method has, by name.")
    regimes: list[Regime] | None = Field(None, description="Run this variant only in these regimes of the experiment.")
    groups: list[str] | None = Field(None, description="Run this variant only on these groups of the experiment.")
    examples: list[Count] | None = Field(
        None, description="Run this variant only with these numbers of examples of the experiment."
    )
    tasks_used: list[Count] | None = Field(
        None, description="Run this variant only with these numbers of tasks of the experiment."
    )
    seeds: list[Seed] | None = Field(None, description="Run this variant only with these seeds of the experiment.")


class GroupSettings(_Settings):
    """What one group needs in place of the experiment's own, the same for every method: longer texts, say."""

    steps: Count | None = Field(None, description="Number of optimiser steps.")
    rows: Count | None = Field(None, description="Rows of each task in each step.")
    test: Count | None = Field(None, description="Examples of each task for measuring the likelihood.")
    generate: int | None = Field(
        None, ge=0, description="How many of these examples are also answered by generation, from the first on."
    )
    max_length: int | None = Field(None, ge=8, description="Most tokens in a row.")
    max_new_tokens: Count | None = Field(None, description="Most tokens in an answer.")


Variants = Annotated[list[MethodSettings], AfterValidator(_filled)]
Methods = Annotated[dict[str, Variants], BeforeValidator(_methods), AfterValidator(_filled)]


class Experiment(_Settings):
    """What `colora compare` runs. Where a field is a list, every combination is one trial."""

    name: Named = Field(..., description="Name of the experiment and of its file of records.")
    note: str | None = Field(None, description="Your note on what the experiment is for.")
    base: str = Field(
        "smollm2", min_length=1, description="The base model: a local folder, a .gguf file, a hub id, or 'smollm2'."
    )
    dtype: Literal["fp32", "bf16", "fp64"] = Field(
        "fp32", description="Number format of the base weights and of the computation."
    )
    first_layer: int = Field(
        0, ge=0, description="The first layer of the base to adapt. All later layers are adapted too."
    )
    groups: Groups = Field(
        ...,
        description=(
            "Known groups by name (one name, or a list), or a mapping from your own group names to lists of tasks."
        ),
    )
    tasks_used: Annotated[list[Count], *OneOrMore] | None = Field(
        None,
        description=("Number of tasks: use the first this many of each group. Default: all. One number or a list."),
    )
    regimes: Annotated[list[Regime], *OneOrMore] = Field(
        ["implicit"],
        description=(
            "Whether the prompt names the task: explicit (it does), implicit (it does not), or a list of both."
        ),
    )
    examples: Annotated[list[Count], *OneOrMore] = Field(
        [16], description="Training examples of each task. One number or a list."
    )
    seeds: Annotated[list[Seed], *OneOrMore] = Field(
        [0], description="Seeds of everything that is drawn. One number or a list."
    )
    methods: Methods = Field(
        ...,
        description=(
            "Each method with its settings (see methods.NAME below), or with a list of settings, "
            "which are its variants."
        ),
    )
    rank: Annotated[list[Count], *OneOrMore] = Field([8], description="Rank of every method. One number or a list.")
    alpha: Rate | None = Field(None, description="Scale: updates are multiplied by alpha / rank. Default: the rank.")
    lr: Rate = Field(2e-3, description="Peak learning rate of the factors for methods that do not set it.")
    core_lr: Rate | None = Field(None, description="Peak learning rate of the cores for methods that do not set it.")
    weight_decay: Decay = Field(0.0, description="Decoupled weight decay of A and B for methods that do not set it.")
    steps: Count = Field(60, description="Optimiser steps of every method. In a federated method: of each client.")
    warmup_steps: int = Field(
        0, ge=0, description="Steps in which the learning rates rise to their peak, in every method."
    )
    rows: Count = Field(2, description="Rows of each task in each step.")
    local_steps: Count = Field(10, description="Local steps of each client in a round of a federated method.")
    allow_unequal_steps: bool = Field(
        False, description="Allow methods with more or fewer steps or rows than the others."
    )
    split: Literal["val", "test"] = Field(
        "test", description="The split to measure on. Choose learning rates on 'val'."
    )
    test: Count = Field(24, description="Examples of each task for measuring the likelihood.")
    generate: int = Field(
        12, ge=0, description="How many of these examples are also answered by generation, from the first on."
    )
    prompt: str | None = Field(
        None,
        description=(
            "How input and answer become one text: a template such as 'Q: {input}\\nA: {output}', "
            "the name of a template, or 'auto', the template under which the untrained base model"
            " finds the training answers likeliest."
        ),
    )
    max_length: int = Field(64, ge=8, description="Most tokens in a row.")
    max_new_tokens: Count = Field(32, description="Most tokens in an answer.")
    by_group: dict[str, GroupSettings] = Field(
        {},
        description=(
            "Settings that replace those above for one group: steps, rows, test, generate, max_length, max_new_tokens."
        ),
    )
    grid: dict[str, str] = Field(
        {}, description=("For each method, the settings that were tried to choose its own. For the report only.")
    )
