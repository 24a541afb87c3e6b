"""How an evaluation is done: which examples, which metrics, which limits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from colora.errors import ConfigError
from colora.evaluation.metrics import Metric, metric_options
from colora.tasks.schema import SPLITS

__all__ = ["EvaluationSettings"]


@dataclass(frozen=True)
class EvaluationSettings:
    """What `evaluate` measures, and how.

    Attributes:
        split: which split.
        metrics: by their names in run files: "rougeL", "exact_match" (both of greedy outputs), "nll" (recorded as
            "token_nll"), or another of the table of metrics; all of them by default.
        max_length: longest row in tokens as in training (causal: prompt and answer; encoder-decoder: each of the two).
            Longer inputs lose their beginning. For generation it limits the prompt alone, which is cut further only
            where the model has too few positions for `max_new_tokens` after it.
        max_new_tokens: longest generated output in tokens.
        batch_rows: rows per batch.
        limit: use only the first so many examples of each task.
        run, method, seed: copied into the records.

    Raises:
        ConfigError: listing every unknown metric, an unknown split and a limit that is not positive.
    """

    split: str = "test"
    metrics: Sequence[str] = field(default_factory=lambda: tuple(metric_options()))
    max_length: int = 512
    max_new_tokens: int = 64
    batch_rows: int = 16
    limit: int | None = None
    run: str = ""
    method: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        options = metric_options()
        faults = [
            f"metrics: expected some of {', '.join(options)}, found {name!r}"
            for name in self.metrics
            if name not in options
        ]
        if self.split not in SPLITS:
            faults.append(f"split: expected one of {', '.join(SPLITS)}, found {self.split!r}")
        if self.limit is not None and self.limit < 1:
            faults.append(f"limit: expected at least 1 or None, found {self.limit}")
        if faults:
            raise ConfigError("cannot evaluate:", faults)

    @property
    def chosen(self) -> list[Metric]:
        """The metrics, in the order asked for."""
        options = metric_options()
        return [options[name] for name in self.metrics]
