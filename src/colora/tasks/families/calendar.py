"""The demo's tasks: writing an ISO date out in full in related languages, from the CLDR data that Babel ships.

The prompt does not name the language: only the examples show which one is wanted, as with a house style.
"""

import random
from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

from colora.errors import ConfigError
from colora.tasks.schema import Example, Task

if TYPE_CHECKING:
    from babel import Locale

__all__ = ["DAYS", "DEMO_LOCALES", "FIRST_DAY", "date_example", "date_task", "date_tasks", "find_locale"]

DEMO_LOCALES = ("es", "pt", "it", "ca", "fr", "ro")
FIRST_DAY, DAYS = date(1950, 1, 1), 36_500


def date_task(locale: str, train: int, val: int, test: int, seed: int, name: str | None = None) -> Task:
    """A task of `train` + `val` + `test` different days, in CLDR's long form for `locale`: "29 de mayo de 2008".

    Raises:
        ConfigError: if Babel is missing or does not know the locale.
    """
    babel_locale = find_locale(locale)
    days = random.Random(f"{seed}:{locale}").sample(range(DAYS), train + val + test)
    examples = [date_example(FIRST_DAY + timedelta(days=number), babel_locale) for number in days]
    splits = {
        "test": tuple(examples[:test]),
        "val": tuple(examples[test : test + val]),
        "train": tuple(examples[test + val :]),
    }
    return Task(name or f"date-{locale}", splits, f"CLDR dates in {locale}", seed)


def find_locale(locale: str) -> "Locale":
    """Babel's locale of this name.

    Raises:
        ConfigError: if Babel is missing or does not know the locale.
    """
    try:
        from babel import Locale, UnknownLocaleError
    except ImportError as error:
        raise ConfigError('the date tasks need Babel: pip install "colora[demo]"') from error
    try:
        return Locale.parse(locale)
    except (UnknownLocaleError, ValueError) as error:
        raise ConfigError(f"Babel knows no locale {locale!r}") from error


def date_example(day: date, locale: "Locale") -> Example:
    """The ISO date, and the same in CLDR's long form for a locale of `find_locale`."""
    from babel.dates import format_date

    return Example(day.isoformat(), (format_date(day, format="long", locale=locale),))


def date_tasks(
    locales: Sequence[str] = DEMO_LOCALES, train: int = 16, val: int = 0, test: int = 24, seed: int = 0
) -> list[Task]:
    """One `date_task` for each locale; each draws its own days."""
    return [date_task(locale, train, val, test, seed) for locale in locales]
