"""Dates in words: the ISO date is the input, CLDR's long form in one locale the answer."""

from datetime import timedelta

from colora.tasks.families.calendar import DAYS, FIRST_DAY, date_example, find_locale
from colora.tasks.families.draw import DrawnTask, TaskRequest, assign_splits, checked_splits, shuffled

__all__ = ["draw_dates"]


def draw_dates(request: TaskRequest) -> DrawnTask:
    """A hundred years of days, each as likely as the others; `request.variant` is a locale that Babel knows.

    Raises:
        ConfigError: if Babel is missing or does not know the locale, or if there are not so many days.
    """
    locale = find_locale(request.variant)
    days = assign_splits(shuffled(range(DAYS), request), str, "date", request)
    splits = {
        split: [date_example(FIRST_DAY + timedelta(days=day), locale) for day in chosen]
        for split, chosen in days.items()
    }
    language = locale.english_name or request.variant
    return DrawnTask(
        checked_splits(splits, request, f"of {DAYS} days"), f"Date in {language}:", f"CLDR dates in {request.variant}"
    )
