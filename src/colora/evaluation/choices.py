"""How well an answer is chosen from a closed set: accuracy, nats of the right choice, rank correlation of ratings.

What is given for an example are the nats of every choice, −log p; the choices' probabilities are made to sum to one,
p_c / Σ p. Of equally likely choices the first counts as chosen. Where all choices are numbers, the expected number
Σ c · p_c is compared with the right one by Spearman's rank correlation, over the examples of all tasks together: both
to know who is strict and to know what is offensive count there.
"""

import math
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from colora.errors import ConfigError
from colora.evaluation.metrics import Metric

__all__ = ["CHOICE_METRICS", "ChoiceScores", "rank_correlation"]

CHOICE_METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "accuracy, %", None),
    "choice_nats": Metric("choice_nats", "nats an answer", None, 3, higher_is_better=False),
    "rank_correlation": Metric("rank_correlation", "rank correlation", None, 3),
}
"""What is measured where answers are chosen, by its name in records; none of it is made of generated texts."""


class ChoiceScores(BaseModel):
    """The nats of every choice, example by example.

    Attributes:
        names: the choices.
        right: index of the right choice of each example.
        nats: of each example, −log p of every choice in the order of `names`, not normalised over them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: list[str]
    right: list[int]
    nats: list[list[float]]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.right) != len(self.nats) or any(len(row) != len(self.names) for row in self.nats):
            raise ValueError("expected for each right choice a list of nats, with as many as there are choices")
        if any(not 0 <= index < len(self.names) for index in self.right):
            raise ValueError(f"expected indices of the {len(self.names)} choices in `right`, found {self.right}")
        return self

    def examples(self, metric: str) -> list[float]:
        """ "accuracy", 0 or 100, or "choice_nats" of each example; empty for what no single example has."""
        if metric == "accuracy":
            return [100.0 * (row.index(min(row)) == index) for row, index in zip(self.nats, self.right, strict=True)]
        if metric == "choice_nats":
            return [-math.log(self._shares(row)[index]) for row, index in zip(self.nats, self.right, strict=True)]
        return []

    def value(self, metric: str) -> float | None:
        """Mean over examples; of "rank_correlation" the correlation. None if it is not defined."""
        if metric == "rank_correlation":
            return rank_correlation([self])
        values = self.examples(metric)
        return sum(values) / len(values) if values else None

    @property
    def numbers(self) -> list[float] | None:
        """The choices as numbers, if all are."""
        try:
            return [float(name) for name in self.names]
        except ValueError:
            return None

    def expected(self) -> list[float]:
        """The expected number of each example. Choices must be numbers."""
        numbers = self.numbers or []
        return [sum(p * c for p, c in zip(self._shares(row), numbers, strict=True)) for row in self.nats]

    def _shares(self, row: Sequence[float]) -> list[float]:
        """The choices' probabilities, normalised; the likeliest is first set to one, so that none underflows to 0/0."""
        least = min(row)
        weights = [math.exp(least - value) for value in row]
        # A choice that is e^745 times less likely than the likeliest has the weight 0, and would have infinite nats.
        return [max(weight, 1e-300) / sum(weights) for weight in weights]


def rank_correlation(tasks: Sequence[ChoiceScores]) -> float | None:
    """Spearman's correlation of expected and right numbers over all examples of these tasks.

    Returns:
        None if some task has choices that are not numbers, or if one side is constant.

    Raises:
        ConfigError: without scipy.
    """
    try:
        from scipy.stats import spearmanr
    except ImportError as error:
        raise ConfigError(f'rank correlation needs scipy, found: {error}. pip install "colora[compare]"') from error
    expected: list[float] = []
    right: list[float] = []
    for one in tasks:
        numbers = one.numbers
        if numbers is None:
            return None
        expected += one.expected()
        right += [numbers[index] for index in one.right]
    if len(set(expected)) < 2 or len(set(right)) < 2:
        return None
    return float(spearmanr(expected, right).statistic)
