"""What the records of a recovery experiment say: numbers for each problem and method, for tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from colora.errors import ColoraError
from colora.theory.experiments.records import ProblemSettings, RecoveryRecord
from colora.theory.freedom import freedom_per_user

__all__ = ["EXACT", "Row", "paired", "rows", "table_markdown", "varied"]

EXACT = 1e-6  # relative error below which a problem counts as recovered; where it is, the error is near 1e-13
RESAMPLES = 10_000


@dataclass(frozen=True)
class Row:
    """A method on a problem.

    Attributes:
        values: what the experiment varies of the problem, by name.
        method: its name.
        record: what it gave.
    """

    values: dict[str, Any]
    method: str
    record: RecoveryRecord

    @property
    def freedom(self) -> float:
        """Degrees of freedom of all users together, for each user."""
        problem = self.record.trial.problem
        return freedom_per_user(problem.users, problem.d_out, problem.d_in, problem.rank)

    @property
    def error(self) -> float:
        """Median over seeds."""
        return median(self.record.errors)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.record.errors))

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles over seeds."""
        low, high = np.quantile(self.record.errors, [0.25, 0.75])
        return float(low), float(high)

    @property
    def recovered(self) -> float:
        """Share of seeds recovered exactly."""
        return float(np.mean([error < EXACT for error in self.record.errors]))


def varied(records: Sequence[RecoveryRecord]) -> list[str]:
    """The fields of the problem that take several values, in the order of `ProblemSettings`."""
    problems = [record.trial.problem for record in records]
    return [name for name in ProblemSettings.model_fields if len({getattr(one, name) for one in problems}) > 1]


def rows(records: Sequence[RecoveryRecord]) -> list[Row]:
    """A row for each record that ended well, in their order.

    Raises:
        ColoraError: if none did.
    """
    well = [record for record in records if record.failure is None]
    if not well:
        raise ColoraError("expected finished trials of a recovery experiment, found none")
    names = varied(well)
    return [Row({name: getattr(one.trial.problem, name) for name in names}, one.trial.method, one) for one in well]


def paired(first: Row, second: Row) -> tuple[float, float, float]:
    """Mean difference of errors, first − second, on the same seeds, with a 95 % bootstrap interval over seeds.

    Raises:
        ColoraError: if the seeds are not the same.
    """
    if first.record.trial.seeds != second.record.trial.seeds:
        raise ColoraError(f"{first.method} and {second.method}: expected the same seeds")
    apart = np.array(first.record.errors) - np.array(second.record.errors)
    drawn = np.random.default_rng(0).integers(len(apart), size=(RESAMPLES, len(apart)))
    low, high = np.quantile(apart[drawn].mean(1), [0.025, 0.975])
    return float(apart.mean()), float(low), float(high)


def table_markdown(records: Sequence[RecoveryRecord]) -> str:
    """A line for each problem and a column for each method: the median error over seeds, or the share recovered.

    The share is shown where there is no noise, all users share their subspaces, and everybody's truth is known.
    """
    found = rows(records)
    names, methods = list(found[0].values), list(dict.fromkeys(row.method for row in found))
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in found:
        lines.setdefault(tuple(row.values.values()), {})[row.method] = _shown(row)
    head = [[*names, *methods], ["---"] * (len(names) + len(methods))]
    body = [[*map(_value, values), *(line.get(method, "–") for method in methods)] for values, line in lines.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in [*head, *body])


def _shown(row: Row) -> str:
    trial = row.record.trial
    if trial.study == "recovery" and not (trial.problem.noise or trial.problem.angle) and not trial.history:
        return f"{round(row.recovered * len(row.record.errors))}/{len(row.record.errors)}"
    return f"{100 * row.mean:.2f} %" if trial.study == "digits" else f"{row.error:.2g}"


def _value(value: object) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
