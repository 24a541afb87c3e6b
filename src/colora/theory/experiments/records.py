"""A trial of a recovery experiment: one method on one problem, for all its seeds. What it is, and what it gave.

RECORDS.jsonl   one `RecoveryRecord` a line, in the order of the experiment
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from colora.common.jsonl import model_parser, read_jsonl, write_jsonl

__all__ = [
    "MethodSettings",
    "ProblemSettings",
    "RecoveryRecord",
    "RecoveryTrial",
    "Study",
    "read_recovery_records",
    "write_recovery_records",
]

Study = Literal["recovery", "newcomer", "digits"]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ProblemSettings(_Frozen):
    """What is to be recovered: the fields of `colora.theory.problems.Problem`, its seed apart, and two more."""

    users: Count = Field(20, description="Number of users K. Study digits: always 45.")
    samples: Count | None = Field(None, description="Samples of each user. Set either samples or times_freedom.")
    times_freedom: float | None = Field(
        None,
        gt=0,
        description=(
            "Observations of all users together, as a multiple of the degrees of freedom. Use it instead of samples."
        ),
    )
    d_out: Count = Field(20, description="Rows of W_k. Study digits: 8.")
    d_in: Count = Field(20, description="Columns of W_k. Study digits: 8.")
    rank: Count = Field(2, description="Rank r of the true W_k and of every method. Study digits: of the methods only.")
    design: Literal["dense", "rank-one", "multivariate"] = Field(
        "dense",
        description=(
            "How X_i is drawn. dense: standard normal entries. rank-one: u vᵀ of two standard "
            "normal vectors. multivariate: y = W_k x with a standard normal vector x."
        ),
    )
    noise: float = Field(0.0, ge=0, description="Standard deviation of the noise on each observation.")
    spread: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "How unequal the users are: their numbers of samples are drawn between samples × (1 -"
            " spread) and samples × (1 + spread)."
        ),
    )
    condition: float | None = Field(None, ge=1, description="Condition number of each core. Default: as drawn.")
    diversity: float = Field(
        1.0, ge=0, le=1, description="How different the cores are. 0: one core for all users. 1: unrelated cores."
    )
    angle: float = Field(
        0.0, ge=0, le=90, description="Angle in degrees between each user's own subspaces and the shared ones."
    )
    newcomer: Count | None = Field(None, description="Samples of each new user. Only for study newcomer.")


class MethodSettings(_Frozen):
    """One method: a solver of `colora.theory.recover` with its options, or a baseline."""

    solver: Literal["alternating", "second-order", "gradient", "scaled-gradient"] | None = Field(
        None, description="Solver of CoLoRA's model. Set either solver or baseline."
    )
    baseline: Literal["local-least-squares", "local-low-rank", "local-second-order", "pooled", "oracle"] | None = Field(
        None, description="Baseline to compare with. Set either baseline or solver."
    )
    init: Literal["spectral", "random"] = Field("spectral", description="Where a solver starts.")
    ridge: float = Field(0.0, ge=0, description="Weight of ‖W_k‖² in the objective, next to the squared residuals.")
    annealing: tuple[float, ...] | None = Field(
        None,
        description=(
            "Ridges to start with, one after the other, as multiples of what the samples weigh. "
            "Default: those of the solver."
        ),
    )
    restarts: int | None = Field(
        None, ge=0, description="Most random starts after the first start. Default: that of the solver."
    )
    max_iter: Count = Field(1000, description="Most iterations of a start.")
    tol: float = Field(
        1e-7,
        ge=0,
        description="A start ends if the objective falls by less than this share in three steps in a row.",
    )
    splits: Count = Field(1, description="Parts for sample splitting. Only for solver alternating.")


class RecoveryTrial(_Frozen):
    """Everything that decides a result, the code and the machine apart."""

    study: Study = "recovery"
    method: str
    settings: MethodSettings
    problem: ProblemSettings
    seeds: tuple[int, ...] = Field(min_length=1)
    history: bool = False

    @property
    def key(self) -> str:
        """A digest of all settings."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


class RecoveryRecord(_Frozen):
    """A trial and what it gave, seed by seed, or why it died.

    Attributes:
        trial: what was run; `cell` in JSON, as in files of old.
        failure: why it died; None if it ended well.
        errors: relative error of all W_k together (newcomer: of all new users'; digits: mean test error over users).
        users: for each seed the error of each user, where asked for (newcomer and digits), else empty.
        bounds: Cramér–Rao bound in the units of errors, where there is noise and the truth is shared; else empty.
        bounds_alone: the same for each user alone; empty too where a user alone is not identifiable.
        exact, starts, iterations: of a solver; empty for a baseline.
        seconds: of the method alone.
        history: of a solver, if asked for: for each seed (start, ridge, objective, seconds, distances of A and B,
            error).
        code: digest of the sources.
        environment: where and when it was run.
    """

    trial: RecoveryTrial = Field(alias="cell")
    failure: str | None = None
    errors: list[float] = []
    users: list[list[float]] = []
    bounds: list[float] = []
    bounds_alone: list[float] = []
    exact: list[bool] = []
    starts: list[int] = []
    iterations: list[int] = []
    seconds: list[float] = []
    history: list[list[tuple[float, ...]]] = []
    code: str = ""
    environment: dict[str, Any] = {}

    @property
    def key(self) -> str:
        """That of the trial."""
        return self.trial.key


def write_recovery_records(path: Path, records: Iterable[RecoveryRecord]) -> None:
    """Write records, one JSON object a line, atomically. Raises CheckpointError if the file cannot be written."""
    write_jsonl(path, (record.model_dump_json(exclude_defaults=True, by_alias=True) for record in records))


def read_recovery_records(path: Path) -> list[RecoveryRecord]:
    """All records of a JSONL file.

    Raises:
        ColoraError: with one "file:line: ..." for each faulty line.
        OSError: if the file cannot be read.
    """
    return read_jsonl(path, model_parser(RecoveryRecord))
