"""The names that an experiment may use, and what to say of others."""

from collections.abc import Iterable

from colora.common.yaml import near
from colora.tasks.families.make import family_descriptions

__all__ = ["misnamed_tasks", "unknown"]


def misnamed_tasks(names: Iterable[str]) -> list[str]:
    """A fault for each name that no family of tasks goes by."""
    prefixes = [f"{family}-" for family in family_descriptions()]
    found = [name for name in names if not name.startswith(tuple(prefixes))]
    return [f"no task {name!r}; names of tasks begin with {', '.join(prefixes)}" for name in found]


def unknown(kind: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """A fault for each of `names` that is not known, with all that are."""
    listed = list(known)
    found = [name for name in names if name not in listed]
    return [f"no {kind} {name!r}{near(name, listed)}; there are {', '.join(listed)}" for name in found]
