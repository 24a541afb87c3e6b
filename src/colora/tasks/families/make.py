"""Tasks by name, such as "date-es": the same name, seed and sizes give the same examples everywhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from colora.errors import ConfigError
from colora.tasks.families.dates import draw_dates
from colora.tasks.families.draw import DrawnTask, TaskRequest
from colora.tasks.families.flan import draw_flan
from colora.tasks.families.function_vectors import draw_facts, draw_letters, draw_lists, draw_words
from colora.tasks.families.instructions import draw_codah, draw_odd_man_out, draw_scan
from colora.tasks.families.numbers import draw_numbers
from colora.tasks.families.people import draw_annotators, draw_raters
from colora.tasks.families.tweets import draw_tweets
from colora.tasks.schema import Task

__all__ = ["family_descriptions", "make_tasks"]


@dataclass(frozen=True)
class _Family:
    about: str
    draw: Callable[[TaskRequest], DrawnTask]


FAMILIES = {
    "date": _Family("an ISO date in words, in a locale that Babel knows: date-es", draw_dates),
    "number": _Family("0 to 9999 in words, in a language that num2words knows: number-de", draw_numbers),
    "scan": _Family("commands and actions, Natural Instructions 126 to 129: scan-126", draw_scan),
    "odd-man-out": _Family(
        "the word that does not belong, Natural Instructions 141 to 143: odd-man-out-142", draw_odd_man_out
    ),
    "codah": _Family("the most plausible of four completions, Natural Instructions 156: codah-156", draw_codah),
    "tweet": _Family("the label of a tweet, a folder of TweetEval: tweet-irony", draw_tweets),
    "letters": _Family("letters of a word, of function vectors: letters-word_length", draw_letters),
    "lists": _Family("one word of three, of function vectors: lists-choose_last_of_3", draw_lists),
    "facts": _Family("what the world knows of a name, of function vectors: facts-country-capital", draw_facts),
    "words": _Family("translations and forms of a word, of function vectors: words-antonym", draw_words),
    "annotator": _Family("whether a person finds a tweet hateful, 01 to 20: annotator-07", draw_annotators),
    "rater": _Family("how offensive, 1 to 5, a person finds a comment, 000 to 095: rater-012", draw_raters),
    "flan": _Family("a client of FedDPA's first division of Flan: flan-entailment", draw_flan),
}


def make_tasks(
    names: Sequence[str],
    *,
    examples: int,
    val: int,
    test: int,
    seed: int,
    regime: Literal["implicit", "explicit"],
    data: Path | None = None,
) -> list[Task]:
    """The tasks with these names, in this order; `colora.tasks.families.draw` says what its draws promise.

    Args:
        names: a family and a variant each, such as "date-es"; see `family_descriptions`.
        examples, val, test: how many examples each split of each task has, exactly.
        seed: other seeds draw other examples.
        regime: "implicit": the prompt is the input alone, and does not say whose task it is. "explicit": a few words
            that do, the same in each example of a task, stand before it. The examples are the same ones.
        data: the folder with "natural_instructions", "tweeteval" and so on, for the tasks that are read from files; by
            default $COLORA_DATA, or else ../shared/data beside the checkout.

    Raises:
        ConfigError: if a name is unknown or comes twice, a package or the data is missing, or there are too few
            examples.
        TaskFileError: with every fault of a file of examples.
    """
    if regime not in ("implicit", "explicit"):
        raise ConfigError(f'expected the regime "implicit" or "explicit", found "{regime}"')
    sizes = {"train": examples, "val": val, "test": test}
    negative = [f"{split}: {size}" for split, size in sizes.items() if size < 0]
    if negative:
        raise ConfigError(f"expected no negative number of examples, found {', '.join(negative)}")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(f"expected each task once, found twice: {', '.join(twice)}")
    prefixes = [_prefix(name) for name in names]  # before anything is drawn: unknown names fail at once
    tasks = []
    for prefix, name in zip(prefixes, names, strict=True):
        drawn = FAMILIES[prefix].draw(TaskRequest(name, name.removeprefix(f"{prefix}-"), sizes, seed, data))
        splits = drawn.splits
        if regime == "explicit":
            splits = {
                split: tuple(replace(example, instruction=drawn.instruction) for example in examples_of_split)
                for split, examples_of_split in splits.items()
            }
        tasks.append(Task(name, splits, drawn.source, seed, choices=drawn.choices))
    return tasks


def family_descriptions() -> dict[str, str]:
    """What the tasks of each family are, with an example of a name, by the prefix of their names."""
    return {prefix: family.about for prefix, family in FAMILIES.items()}


def _prefix(name: str) -> str:
    for prefix in FAMILIES:
        if name.startswith(f"{prefix}-"):
            return prefix
    known = "; ".join(f"{prefix}-: {about}" for prefix, about in family_descriptions().items())
    raise ConfigError(f'expected the name of a task, found "{name}"; known: {known}')
