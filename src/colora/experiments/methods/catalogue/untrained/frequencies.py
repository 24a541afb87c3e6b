"""Each task's own frequencies: the share of every answer among its training answers, whatever the input.

    p(c) = (n_c + 1) / (n + C)        n_c of n training answers are c, one of the C choices (Laplace's rule)

Nothing is trained and no model is asked. It needs tasks with a closed set of answers. For people who judge texts it is
the baseline that knows the person and not the text.
"""

from colora.experiments.methods.method import Method

__all__ = ["FREQUENCIES"]

FREQUENCIES = Method(
    "frequencies",
    "each one's own frequencies",
    "The shares of the answers among a task's own training answers, whatever the input; nothing is trained.",
    "",
    terms=(),
    counts_answers=True,
)
