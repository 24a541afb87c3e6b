"""A recovery experiment: one YAML file that says which methods recover what, over which settings and seeds."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from colora.common.files import NAME_RULE, fits_name_rule
from colora.common.systems import file_name_fault
from colora.common.yaml import read_yaml, tell_fault
from colora.errors import ConfigError
from colora.theory.experiments.records import MethodSettings, ProblemSettings, RecoveryTrial, Study

__all__ = ["FIGURES", "RecoveryExperiment", "load_recovery"]

FigureName = Literal["phase", "convergence", "noise", "similarity", "newcomer", "digits"]
FIGURES: tuple[FigureName, ...] = ("phase", "convergence", "noise", "similarity", "newcomer", "digits")


def _listed(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: one if isinstance(one, list) else [one] for key, one in value.items()}


def _seeds(value: object) -> object:
    """A number means that many seeds, from 0 on."""
    value = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    if value == []:
        raise ValueError("expected at least one seed, found none")
    return value


def _name(value: str) -> str:
    if not fits_name_rule(value):
        raise ValueError(f"expected {NAME_RULE}, found {value!r}")
    if fault := file_name_fault(value):
        raise ValueError(fault)
    return value


def _methods(value: dict[str, MethodSettings]) -> dict[str, MethodSettings]:
    if not value:
        raise ValueError("expected at least one method, found none")
    for name, one in value.items():
        if (one.solver is None) == (one.baseline is None):
            raise ValueError(
                f"{name}: expected one of 'solver' and 'baseline', found {'both' if one.solver else 'none'}"
            )
        if one.splits > 1 and one.solver != "alternating":
            raise ValueError(f"{name}: expected splits with solver 'alternating' only, found {one.splits}")
    return value


class RecoveryExperiment(BaseModel):
    """What `colora recover` runs. Where a field of the problem is a list, every combination is a problem."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(_name)] = Field(
        description="Name of the experiment and of its file of records."
    )
    note: str | None = Field(None, description="Your note on what the experiment is for.")
    study: Study = Field(
        "recovery",
        description=("recovery: recover all W_k. newcomer: fit new users on learned factors. digits: use real images."),
    )
    figure: FigureName | None = Field(None, description=f"The kind of figure to draw: {', '.join(FIGURES)}.")
    problem: Annotated[dict[str, list[Any]], BeforeValidator(_listed)] = Field(
        description="Fields of the problem, each a value or a list of values; see problem.NAME below."
    )
    methods: Annotated[dict[str, MethodSettings], AfterValidator(_methods)] = Field(
        description="Settings of each method, under a name that you choose; see methods.NAME below."
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_seeds)] = Field(
        [0], description="The number of seeds, counted from 0, or a list of seeds."
    )
    history: bool = Field(False, description="Record every iteration of the solvers.")

    @model_validator(mode="after")
    def _problems_can_be_made(self) -> "RecoveryExperiment":
        problems = self.problems()
        for one in problems:
            if (one.samples is None) == (one.times_freedom is None):
                raise ValueError("problem: expected one of 'samples' and 'times_freedom'")
            if (one.newcomer is None) == (self.study == "newcomer"):
                raise ValueError(
                    "problem.newcomer: expected samples of new users in study 'newcomer', and nowhere else"
                )
            if self.study == "digits" and (one.samples is None or one.d_out != 8 or one.d_in != 8):
                raise ValueError("problem: expected samples, and d_out: 8, d_in: 8, the size of an image, in 'digits'")
        return self

    def problems(self) -> list[ProblemSettings]:
        """Every combination of what the problem lists, the last field varying fastest."""
        return [
            ProblemSettings(**dict(zip(self.problem, values, strict=True)))
            for values in product(*self.problem.values())
        ]

    def trials(self) -> list[RecoveryTrial]:
        """Every trial: each problem with each method."""
        return [
            RecoveryTrial(
                study=self.study,
                method=name,
                settings=settings,
                problem=problem,
                seeds=tuple(self.seeds),
                history=self.history,
            )
            for problem in self.problems()
            for name, settings in self.methods.items()
        ]


def load_recovery(path: Path, overrides: Sequence[str] = ()) -> RecoveryExperiment:
    """Read and check an experiment.

    Args:
        path: the YAML file.
        overrides: "key=value" with a dotted key ("seeds=3", "problem.samples=[8,16]"); values are YAML.

    Raises:
        ConfigError: listing every fault with its place in the file.
    """
    value = read_yaml(path, overrides, needs="'name', 'problem' and 'methods'")
    try:
        return RecoveryExperiment.model_validate(value)
    except ValidationError as error:
        names = [*RecoveryExperiment.model_fields, *ProblemSettings.model_fields, *MethodSettings.model_fields]
        faults = [tell_fault(dict(one), names, str(path), value.line) for one in error.errors()]
        raise ConfigError(f"{path}: {len(faults)} fault{'s' if len(faults) > 1 else ''}", faults) from None
