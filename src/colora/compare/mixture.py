"""Records of several versions of the code: refused, because they are not one experiment."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from colora.cells import CellRecord
from colora.errors import ConfigError

__all__ = ["other_codes", "refuse_mixture"]

MOST_SHOWN = 10


def other_codes(records: Iterable[CellRecord], code: str) -> list[CellRecord]:
    """Those records that other sources made than those of digest `code`."""
    return [record for record in records if record.code != code]


def refuse_mixture(records: Sequence[CellRecord], code: str, place: Path) -> None:
    """Raise ConfigError if some records were made by other sources than those of digest `code`."""
    old = other_codes(records, code)
    if not old:
        return
    shown = [
        f"{record.cell.key}: code {record.code[:12] or 'unknown'}, revision {_revision(record)}"
        for record in old[:MOST_SHOWN]
    ]
    more = [f"and {len(old) - MOST_SHOWN} more"] if len(old) > MOST_SHOWN else []
    raise ConfigError(
        f"{place}: {len(old)} finished cell{'s' if len(old) > 1 else ''} of this experiment came from other sources "
        f"than those of code {code[:12]}. --rerun-old runs them again, --mixed keeps them",
        [*shown, *more],
    )


def _revision(record: CellRecord) -> str:
    revision, dirty, _ = str(record.environment.get("git_revision") or "unknown").partition("-dirty")
    return revision[:12] + dirty
