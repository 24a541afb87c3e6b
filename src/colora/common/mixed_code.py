"""Records of several versions of the code: refused, because they are not one experiment."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from colora.common.text import shortened
from colora.errors import ConfigError

__all__ = ["Made", "other_codes", "refuse_mixture"]

MOST_SHOWN = 10


class Made(Protocol):
    """A record of any kind of trial that says which sources made it."""

    @property
    def key(self) -> str: ...

    @property
    def code(self) -> str: ...

    @property
    def environment(self) -> dict[str, Any]: ...


Record = TypeVar("Record", bound=Made)


def other_codes(records: Iterable[Record], code: str) -> list[Record]:
    """Those records that other sources made than those of digest `code`."""
    return [record for record in records if record.code != code]


def refuse_mixture(records: Sequence[Made], code: str, place: Path) -> None:
    """Raise ConfigError if some records were made by other sources than those of digest `code`."""
    old = other_codes(records, code)
    if not old:
        return
    shown = [f"{record.key}: code {record.code[:12] or 'unknown'}, revision {_revision(record)}" for record in old]
    raise ConfigError(
        (
            f"{place}: {len(old)} finished trial{'s' if len(old) > 1 else ''} of this experiment came "
            f"from another version of the code than {code[:12]}. --rerun-old runs them again, --mixed "
            "keeps them"
        ),
        shortened(shown, MOST_SHOWN),
    )


def _revision(record: Made) -> str:
    revision, dirty, _ = str(record.environment.get("git_revision") or "unknown").partition("-dirty")
    return revision[:12] + dirty
