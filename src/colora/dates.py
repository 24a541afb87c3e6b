"""The demo's tasks: writing an ISO date out in full in related languages, from the CLDR data that Babel ships.

The prompt does not name the language: what a user wants is in the examples alone, as with a house style.
"""

import random
from collections.abc import Sequence
from datetime import date, timedelta

from colora.errors import ConfigError
from colora.tasks.schema import Example, Task

__all__ = ["DEMO_LOCALES", "date_task", "date_tasks"]

DEMO_LOCALES = ("es", "pt", "it", "ca", "fr", "ro")
FIRST_DAY, DAYS = date(1950, 1, 1), 36_500


def date_task(locale: str, train: int, val: int, test: int, seed: int, name: str | None = None) -> Task:
    """A task of `train` + `val` + `test` different days, in CLDR's long form for `locale`: "29 de mayo de 2008".

    Raises:
        ConfigError: if Babel is missing or does not know the locale.
    """
    try:
        from babel import Locale, UnknownLocaleError
        from babel.dates import format_date
    except ImportError as error:
        raise ConfigError('the date tasks need Babel: pip install "colora[demo]"') from error
    try:
        known = Locale.parse(locale)
    except (UnknownLocaleError, ValueError) as error:
        raise ConfigError(f"Babel knows no locale {locale!r}") from error
    days = random.Random(f"{seed}:{locale}").sample(range(DAYS), train + val + test)
    examples = [
        Example(day.isoformat(), (format_date(day, format="long", locale=known),))
        for day in (FIRST_DAY + timedelta(days=number) for number in days)
    ]
    splits = {
        "test": tuple(examples[:test]),
        "val": tuple(examples[test : test + val]),
        "train": tuple(examples[test + val :]),
    }
    return Task(name or f"date-{locale}", splits, f"CLDR dates in {locale}", seed)


def date_tasks(
    locales: Sequence[str] = DEMO_LOCALES, train: int = 16, val: int = 0, test: int = 24, seed: int = 0
) -> list[Task]:
    """One `date_task` for each locale; each draws its own days."""
    return [date_task(locale, train, val, test, seed) for locale in locales]
