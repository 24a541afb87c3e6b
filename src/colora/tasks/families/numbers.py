"""Numbers in words: 0 to 9999 in figures is the input, the number written out in one language the answer."""

import random
from collections.abc import Callable, Iterator

from colora.errors import ConfigError
from colora.tasks.families.calendar import find_locale
from colora.tasks.families.draw import DrawnTask, TaskRequest, assign_splits, checked_splits
from colora.tasks.schema import Example

__all__ = ["draw_numbers"]

MOST = 9999
SHARES = {1: 1, 2: 5, 3: 5, 4: 5}
"""How often a number has so many digits, in sixteenths, as long as there are unused ones of that length."""
NAMES = {"kz": "Kazakh", "tet": "Tetum"}
"""English names of num2words' languages that Babel does not know by that code."""


def draw_numbers(request: TaskRequest) -> DrawnTask:
    """Numbers of mixed lengths, none twice; `request.variant` is a language that num2words knows.

    Raises:
        ConfigError: if num2words is missing, does not know the language or cannot write it out, or if there are not
            so many numbers.
    """
    num2words = _num2words(request.variant)
    numbers = assign_splits(_numbers(request), str, "number", request)
    splits = {
        split: [Example(str(number), (_words(num2words, number, request),)) for number in chosen]
        for split, chosen in numbers.items()
    }
    language = NAMES.get(request.variant) or find_locale(request.variant).english_name
    source = f"numbers in {request.variant} by num2words"
    return DrawnTask(checked_splits(splits, request, f"of the numbers up to {MOST}"), f"Number in {language}:", source)


def _num2words(language: str) -> Callable[..., str]:
    try:
        from num2words import CONVERTER_CLASSES, num2words
    except ImportError as error:
        raise ConfigError('the number tasks need num2words: pip install "colora[compare]"') from error
    if language not in CONVERTER_CLASSES:
        known = ", ".join(sorted(CONVERTER_CLASSES))
        raise ConfigError(f'expected a language that num2words knows, found "{language}"; known: {known}')
    return num2words


def _words(num2words: Callable[..., str], number: int, request: TaskRequest) -> str:
    try:
        text = num2words(number, lang=request.variant)
    except Exception as error:  # its converters fail in their own ways where they are unfinished (Amharic)
        raise ConfigError(f'num2words could not write {number} in "{request.variant}": {error}') from error
    return " ".join(text.split())  # some languages leave two spaces


def _numbers(request: TaskRequest) -> Iterator[int]:
    """All numbers in an order with short ones early: uniformly drawn, nearly all would have four digits."""
    rng = random.Random(f"{request.seed}:{request.name}:")
    left: dict[int, list[int]] = {digits: [] for digits in SHARES}
    for number in range(MOST + 1):
        left[len(str(number))].append(number)
    for pool in left.values():
        rng.shuffle(pool)
    while left:
        digits = rng.choices(list(left), [SHARES[digits] for digits in left])[0]
        yield left[digits].pop()
        if not left[digits]:
            del left[digits]
