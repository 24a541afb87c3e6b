"""The plan on disk: made once, so that a comparison that goes on does what it began.

OUTPUT/plan.json: what was asked for, the timings, the plan that fits, what was given up for it, and what was dropped
since because time ran out. OUTPUT/timings.json: the timings alone, which a comparison with another budget uses again.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from colora.common.files import write_text
from colora.common.locks import waiting_lock
from colora.common.text import readable_time
from colora.errors import ConfigError
from colora.experiments.own.estimate import Timings
from colora.experiments.own.plan import Plan

__all__ = ["PlanFile", "kept_plan", "kept_timings"]

PATIENCE = 1800.0  # seconds for another process to time its steps


class PlanFile(BaseModel):
    """What `plan.json` holds.

    Attributes:
        asked: digest of the tasks, settings and the budget; another one makes another plan.
        plan: what is run.
        timings: what was measured for it.
        given_up: what was cut before it began.
        dropped: names of the stages that time did not allow.
        seconds: how long this was expected to take.
        whole: how long everything would have taken, in seconds.
        larger: how long the next larger plan would have taken.
        left: seconds of the budget that were left when the plan was made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: str
    plan: Plan
    timings: Timings
    given_up: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    seconds: float = 0.0
    whole: float = 0.0
    larger: float = 0.0
    left: float = 0.0

    def why_cut(self, minutes: float) -> str:
        """How long everything would have taken, and why no more was planned; empty if nothing was cut."""
        if not self.given_up or not self.whole:
            return ""
        enough = math.ceil((self.whole + 60 * minutes - self.left) / 60)
        whole, larger, left = (f"{seconds / 60:.1f} minutes" for seconds in (self.whole, self.larger, self.left))
        return (
            f"all of it would take about {whole} (--minutes {enough}); the next larger plan was expected to take "
            f"{larger}, and {left} were left"
        )

    def drop(self, stage: str, path: Path) -> "PlanFile":
        """The plan without a stage, kept; one that another process dropped meanwhile is dropped too."""
        with waiting_lock(path.with_name(f"{path.name}.lock")):
            now = _read(path, self.asked) or self
            dropped = (*now.dropped, *([stage] if stage not in now.dropped else []))
            return _written(now.model_copy(update={"dropped": dropped}), path)

    def refreshed(self, path: Path) -> "PlanFile":
        """As it stands on disk now."""
        return _read(path, self.asked) or self


def kept_plan(path: Path, asked: str, make: Callable[[], PlanFile]) -> tuple[PlanFile, bool]:
    """The plan on disk if it is for what is asked, else a new one; and whether it was there.

    Raises:
        ConfigError: the file holds no plan.
    """
    with waiting_lock(path.with_name(f"{path.name}.lock"), seconds=PATIENCE):
        known = _read(path, asked)
        return (known, True) if known is not None else (_written(make(), path), False)


class TimingsFile(BaseModel):
    """What `timings.json` holds.

    Attributes:
        asked: digest of what was timed; of anything else the timings are measured anew.
        timings: what was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: str
    timings: Timings


def kept_timings(path: Path, asked: str, make: Callable[[], Timings], log: Callable[[str], None]) -> Timings:
    """The timings on disk if they are of what is asked, else new ones, which are kept even if no plan fits them."""
    try:
        known = TimingsFile.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # without a usable file nothing is lost but the time
        known = None
    if known is not None and known.asked == asked:
        age = readable_time(time.time() - path.stat().st_mtime)
        log(f"the steps were timed {age} ago: {path}; remove the file to time them again")
        return known.timings
    timings = make()
    write_text(path, TimingsFile(asked=asked, timings=timings).model_dump_json(indent=2) + "\n")
    return timings


def _read(path: Path, asked: str) -> PlanFile | None:
    try:
        known = PlanFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError(
            f"{path}: expected the plan of a comparison, found {error.error_count()} faults in it; remove "
            "it to time the steps again (finished trials are kept)"
        ) from None
    return known if known.asked == asked else None


def _written(plan: PlanFile, path: Path) -> PlanFile:
    write_text(path, plan.model_dump_json(indent=2) + "\n")
    return plan
