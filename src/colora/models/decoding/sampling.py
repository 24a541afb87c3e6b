"""The next token of a row: greedy, or drawn by a generator of its own, whatever other rows share the batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from colora.errors import ColoraError, ConfigError

__all__ = ["RowError", "Sampler", "Sampling", "next_tokens"]

GREEDY_BELOW = 1e-5  # a temperature that small leaves nothing to draw, and the division by it overflows


class RowError(ColoraError):
    """One row cannot go on; the others do. `__cause__` has what happened, which may reveal internals."""


@dataclass(frozen=True)
class Sampling:
    """How a row is continued; the fields of the OpenAI interface, and `top_k`.

    Attributes:
        max_tokens: longest output.
        temperature: 0 is greedy, and so is anything below 1e-5.
        top_p: draw among the likeliest tokens that have this probability together.
        top_k: draw among this many; 0: all.
        seed: of the row's generator; None: another each time.
        stop: strings that end the output and are not part of it.
        presence_penalty, frequency_penalty: taken off the logits of tokens of the output, once, or each time they
            stand in it.
        strip: leave out white space at either end of the output, as of an answer in a chat; False: the text is what
            follows the prompt, byte for byte.
        logprobs: each token comes with its log probability, and with those of so many of the likeliest; None: without.

    Raises:
        ConfigError: a number out of its range.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    strip: bool = True
    logprobs: int | None = None

    def __post_init__(self) -> None:
        ranges = {
            "max_tokens": (1, 10**9),
            "temperature": (0, 2),
            "top_k": (0, 10**9),
            "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low} to {high}, found {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: expected more than 0 and at most 1, found {self.top_p}")
        if "" in self.stop:
            raise ConfigError("stop: expected strings of at least one character, found an empty one")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < GREEDY_BELOW


@dataclass
class Sampler:
    """The state of one row's draws."""

    sampling: Sampling
    warpers: list[Any] = field(init=False)
    generator: torch.Generator | None = field(init=False, default=None)
    counts: dict[int, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        sampling = self.sampling
        self.warpers = []
        if sampling.greedy:
            return
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed % 2**63)
        if sampling.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        sampling = self.sampling
        return sampling.greedy and not sampling.presence_penalty and not sampling.frequency_penalty

    def draw(self, logits: Tensor) -> int:
        """The next token by its logits (vocabulary,), on the CPU whatever the model's device, for the same draws."""
        sampling, scores = self.sampling, logits.detach().float().cpu()[None]
        if self.counts and (sampling.presence_penalty or sampling.frequency_penalty):
            tokens = torch.tensor(list(self.counts))
            times = torch.tensor(list(self.counts.values()), dtype=scores.dtype)
            scores = scores.clone()
            scores[0, tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
        if self.generator is None:
            token = int(scores.argmax())
        else:
            for warp in self.warpers:
                scores = warp(None, scores)
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))
        self.counts[token] = self.counts.get(token, 0) + 1
        return token


def next_tokens(samplers: Sequence[Sampler], logits: Tensor) -> list[int | Exception]:
    """The next token of each row, by its logits (rows, vocabulary), or the error that ends the row."""
    best, likeliest = logits.max(-1)  # once for all rows; NaN if any of a row is
    finite: list[bool] = best.isfinite().tolist()
    tokens: list[int] = likeliest.tolist()
    return [_next(*of_row) for of_row in zip(samplers, tokens, finite, logits, strict=True)]


def _next(sampler: Sampler, likeliest: int, finite: bool, logits: Tensor) -> int | Exception:
    if not finite:
        return RowError("the model failed at this request: its logits are NaN or infinite")
    try:
        return likeliest if sampler.plain else sampler.draw(logits)
    except Exception as error:
        return error
