"""One row of a task as a model sees it: the texts of its tokens, those of the prompt apart from those of the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from colora.tasks.tokenizer import Tokenizer

__all__ = ["MarkedRow", "mark_row"]

MOST = 48
"""Tokens of a prompt, and of an answer, that are shown; of longer ones the middle is left out."""


@dataclass(frozen=True)
class MarkedRow:
    """A row in pieces, each the text of a token, or of several where a character is spread over them.

    Attributes:
        prompt: the pieces of the prompt; None stands for the middle where it is left out.
        answer: the same of the answer; the last piece is the token that ends it.
        prompt_tokens, answer_tokens: how many there are, those left out included.
    """

    prompt: tuple[str | None, ...]
    answer: tuple[str | None, ...]
    prompt_tokens: int
    answer_tokens: int


def mark_row(prompt: Sequence[int], answer: Sequence[int], tokenizer: Tokenizer, most: int = MOST) -> MarkedRow:
    """The row of these token ids.

    Args:
        prompt: token ids.
        answer: token ids, its end token included.
        tokenizer: of both.
        most: tokens of each that are shown.
    """
    return MarkedRow(_pieces(prompt, tokenizer, most), _pieces(answer, tokenizer, most), len(prompt), len(answer))


def _pieces(ids: Sequence[int], tokenizer: Tokenizer, most: int) -> tuple[str | None, ...]:
    if len(ids) <= most:
        return tuple(_texts(ids, tokenizer))
    half = most // 2
    return (*_texts(ids[:half], tokenizer), None, *_texts(ids[len(ids) - half :], tokenizer))


def _texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text; an incomplete character waits for the tokens that complete it."""
    # After a token, for some tokenizers drop the space that a text begins with.
    anchor = tokenizer("x", add_special_tokens=False, verbose=False)["input_ids"]
    before, texts = _decoded(anchor, tokenizer), list[str]()
    for end in range(1, len(ids) + 1):
        whole = _decoded([*anchor, *ids[:end]], tokenizer)
        if whole.endswith("\ufffd") and end < len(ids):
            continue
        texts.append(whole[len(before) :])
        before = whole
    return texts


def _decoded(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
