"""A row of a batch, and what a step gives it."""

from dataclasses import dataclass, field
from typing import Literal

from colora.models.decoding.logprobs import Logprobs
from colora.models.decoding.sampling import RowError, Sampler, Sampling
from colora.models.decoding.text import TextStream

__all__ = ["Piece", "Row"]


@dataclass
class Row:
    """One output in the making.

    Attributes:
        prompt: token ids.
        task: the number of its core in the model.
        sampling: how it is continued.
        tokens: of the output, the end token included.
        finish: why it ended: "stop" at an end token or a stop string, "length" at `max_tokens` or the last position,
            "error" if it could not go on.
    """

    prompt: list[int]
    task: int
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    finish: Literal["stop", "length", "error"] | None = None
    text: TextStream | None = None
    sampler: Sampler | None = None


@dataclass(frozen=True)
class Piece:
    """What a step gave one row: text to pass on, and, with the last one, why the row has ended.

    That is not looked up in the row, which has gone on by the time that another thread reads this.

    Attributes:
        logprobs: of the token that the step gave, if the row asks for them; None at the end token.
        error: why the row cannot go on, if `finish` is "error".
    """

    row: Row
    text: str
    finish: Literal["stop", "length", "error"] | None
    error: RowError | None = None
    logprobs: Logprobs | None = None
