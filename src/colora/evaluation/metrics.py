"""The table of metrics, and the text metrics themselves: ROUGE-L and exact match, both in [0, 100], in every script.

To add a text metric: a function and a line in `METRICS`. Evaluations, trials and reports read the table.

rouge-score's own tokenizer keeps a-z and 0-9 only: an accent splits a word and a text in Greek or Chinese scores 0
whatever it says. `UnicodeTokenizer` takes its place.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from colora.errors import ColoraError

__all__ = ["METRICS", "Metric", "UnicodeTokenizer", "exact_match", "metric_options", "rouge_l"]

# Scripts written without spaces between words: a run of their letters says nothing about where words end.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration mark and zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31F0, 0x31FF),  # small Katakana
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),  # Myanmar, extended B
    (0xAA60, 0xAA7F),  # Myanmar, extended A
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFF66, 0xFF9D),  # half-width Katakana
    (0x1AFF0, 0x1B16F),  # Kana supplements
    (0x20000, 0x3FFFF),  # Han, further extensions
)
_ZERO_WIDTH_SPACE = "\u200b"


class UnicodeTokenizer:
    """Splits text of any script into tokens, for `rouge_score.rouge_scorer.RougeScorer(tokenizer=...)`.

    The text is NFC-normalised and case-folded (so "Σ", "σ" and "ς" agree, and "ß" is "ss"). A token is a run of
    letters, combining marks and digits; everything else (white space, punctuation, underscores, symbols, emoji)
    separates. In scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Myanmar) each letter with its
    marks is a token of its own. Invisible format characters (joiners, soft hyphens) are ignored. Nothing is stemmed.
    """

    def tokenize(self, text: str) -> list[str]:
        # Case folding can take a composed letter apart, so normalise again after it.
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
        tokens: list[str] = []
        in_token = in_run = False  # a mark joins whatever token it follows, a letter or digit only a run
        for char in folded:
            category = unicodedata.category(char)
            if category == "Cf" and char != _ZERO_WIDTH_SPACE:
                continue
            letter, digit, mark = (category[0] == kind for kind in "LNM")
            alone = letter and _is_unspaced(char)
            if (mark and in_token) or ((letter or digit) and in_run and not alone):
                tokens[-1] += char
            elif letter or digit:
                tokens.append(char)
                in_token, in_run = True, not alone
            else:
                in_token = in_run = False
        return tokens


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure of `prediction` in [0, 100]: the best over the references.

    Computed by rouge-score on the tokens of `UnicodeTokenizer`, without a stemmer. As in rouge-score, a text without
    any letter or digit has no tokens and scores 0, even against itself; `exact_match` can judge such tasks.

    Args:
        prediction: what the model wrote.
        references: the acceptable outputs, at least one.

    Raises:
        ColoraError: if `references` is empty, or is one text in place of a sequence of texts.
    """
    _check_references(references)
    return 100.0 * float(_scorer().score_multi(list(references), prediction)["rougeL"].fmeasure)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """100 if `prediction` equals one of the references, else 0.

    Both sides are NFC-normalised and stripped of outer white space; case, punctuation and inner spaces count.

    Args:
        prediction: what the model wrote.
        references: the acceptable outputs, at least one.

    Raises:
        ColoraError: if `references` is empty, or is one text in place of a sequence of texts.
    """
    _check_references(references)
    return 100.0 * (_plain(prediction) in {_plain(reference) for reference in references})


@dataclass(frozen=True)
class Metric:
    """What is measured on the answers of a task.

    Attributes:
        name: as records have it.
        title: as tables for readers have it.
        score: of a prediction and its references, for a text metric; None for the likelihood of the references.
        digits: decimals in tables.
        higher_is_better: which way is better.
        weight: the mean over a task counts examples alike, or their tokens.
        ranks: whether methods are ranked by it, and short summaries show it. A score that is all or nothing for each
            example is too coarse for that.
        option: as run files name it, where that is not `name`.
    """

    name: str
    title: str
    score: Callable[[str, Sequence[str]], float] | None
    digits: int = 1
    higher_is_better: bool = True
    weight: Literal["examples", "tokens"] = "examples"
    ranks: bool = True
    option: str | None = None


METRICS: dict[str, Metric] = {
    "rougeL": Metric("rougeL", "ROUGE-L", rouge_l),
    "exact_match": Metric("exact_match", "exact match, %", exact_match, ranks=False),
    "token_nll": Metric("token_nll", "token NLL", None, 3, higher_is_better=False, weight="tokens", option="nll"),
}
"""Every metric by its name in records, in the order of tables."""


def metric_options() -> dict[str, Metric]:
    """Every metric by its name in run files."""
    return {metric.option or metric.name: metric for metric in METRICS.values()}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _is_unspaced(char: str) -> bool:
    point = ord(char)
    return point >= 0x0E00 and any(first <= point <= last for first, last in _UNSPACED)


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str):
        raise ColoraError(f"expected a sequence of reference texts, found the single text {references!r}")
    if not references:
        raise ColoraError("expected at least one reference text, found none")


@cache
def _scorer() -> Any:
    # Imported on first use: rouge-score pulls in nltk, half a second that no other command should pay.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=UnicodeTokenizer())
