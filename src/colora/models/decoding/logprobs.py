"""How likely a row's token was, and what else was likely there."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Logprobs", "token_logprobs"]

LEAST = -9999.0  # in place of minus infinity, which JSON does not know


@dataclass(frozen=True)
class Logprobs:
    """The log probabilities of one place of an output, as the model has them: before temperature, penalties and cuts.

    Attributes:
        token: that was taken.
        logprob: its own.
        top: the likeliest tokens of the place with theirs, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token: int, count: int) -> Logprobs:
    """Of a token that was taken, by the logits (vocabulary,) of its place, and of the `count` likeliest."""
    every = logits.detach().float().log_softmax(-1).clamp_min(LEAST)
    values, tokens = every.topk(min(count, len(every)))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return Logprobs(token, float(every[token]), top)
