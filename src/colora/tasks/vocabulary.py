"""Tokens that a tokenizer knows and a base model does not: looking up their embeddings would fail."""

from collections.abc import Collection

from colora.common.text import listed
from colora.tasks.tokenizer import Tokenizer

__all__ = ["beyond_embeddings"]


def beyond_embeddings(ids: Collection[int], tokenizer: Tokenizer) -> str | None:
    """What is wrong with these token ids, if the base model lacks embeddings for some; else None.

    How many embeddings there are stands in `tokenizer.embedding_rows`; where that is missing, nothing is known.
    """
    rows: int | None = getattr(tokenizer, "embedding_rows", None)
    if rows is None or max(ids, default=-1) < rows:
        return None
    tokens = [f"{tokenizer.decode([one])!r} (id {one})" for one in sorted({one for one in ids if one >= rows})]
    return (
        f"the base model has embeddings for {rows} tokens, ids 0 to {rows - 1}, but none for {listed(tokens, 5)}: give "
        "it more (model.resize_token_embeddings(len(tokenizer)), and save it), or take the token out of the tokenizer"
    )
