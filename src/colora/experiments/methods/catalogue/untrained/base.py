"""The base model as it is, zero-shot: W_k = W0. Nothing is trained."""

from colora.experiments.methods.method import Method

__all__ = ["BASE"]

BASE = Method(
    "base",
    "base, zero-shot",
    "The base model as it is, without training.",
    "",
    terms=(),
)
