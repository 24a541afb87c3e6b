"""What the first screen is about: the comparisons that count, and in each the lead over the best rival."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from colora.evaluation.metrics import Metric
from colora.experiments.methods.registry import METHODS
from colora.experiments.report.gather import Experiment
from colora.experiments.report.regret import Comparison, Level, Regret, headline, regret

__all__ = ["REGIME_WORDS", "Standings", "standings"]

REGIME_WORDS = {"implicit": "prompt does not name the task", "explicit": "prompt names the task"}


@dataclass(frozen=True)
class Standings:
    """Comparisons, each with its regret in the main measure.

    They come by regime, and within one from where the reference leads most to where it is furthest behind.
    """

    pairs: tuple[tuple[Comparison, Regret], ...]

    @property
    def comparisons(self) -> list[Comparison]:
        return [comparison for comparison, _ in self.pairs]

    @property
    def reference(self) -> str:
        """Name of the method that is compared."""
        return self.comparisons[0].reference.method

    @property
    def title(self) -> str:
        """The same for readers."""
        return METHODS[self.reference].title if self.reference in METHODS else self.reference

    @cached_property
    def scored(self) -> tuple[tuple[Comparison, Regret], ...]:
        """The pairs in points; where nothing has a score, those in nats. A mean over both would mean nothing."""
        points = tuple(pair for pair in self.pairs if pair[0].in_points)
        return points or self.pairs

    @property
    def leads(self) -> list[Regret]:
        """The regrets of `scored`."""
        return [lead for _, lead in self.scored]

    @property
    def unit(self) -> str:
        return "points" if self.scored[0][0].in_points else "nats"

    @property
    def digits(self) -> int:
        """Decimals of a mean over groups."""
        return max(comparison.measure.digits for comparison, _ in self.scored)

    @property
    def regimes(self) -> list[str]:
        """Those that occur, in their order."""
        return list(dict.fromkeys(comparison.place.regime for comparison in self.comparisons))

    @cached_property
    def in_nats(self) -> dict[Metric, list[Regret]]:
        """The regrets by likelihood, for each measure of it, beside the main ones."""
        found: dict[Metric, list[Regret]] = {}
        for one in self.comparisons:
            lead = None if one.nats is None else regret(one, one.nats)
            if one.nats is not None and lead is not None:
                found.setdefault(one.nats, []).append(lead)
        return found

    @cached_property
    def levels(self) -> list[list[Level]]:
        """Every method at each comparison, the best marked."""
        return [comparison.levels(comparison.measure) for comparison in self.comparisons]


def standings(
    experiments: Sequence[Experiment], main: Sequence[str] = (), reference: str | None = None
) -> Standings | None:
    """The standings of these experiments; None if at no place the reference and a rival were measured.

    Args:
        experiments, main, reference: as `headline` takes them.
    """
    pairs = [
        (one, lead) for one in headline(experiments, main, reference) if (lead := regret(one, one.measure)) is not None
    ]
    pairs.sort(key=lambda pair: (pair[0].place.regime != "implicit", -pair[1].difference.mean))
    return Standings(tuple(pairs)) if pairs else None
