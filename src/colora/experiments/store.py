"""The folder of trials: what is finished, what failed, which code made it, and the file that collects them.

OUTPUT/cells/KEY.json   the record of one trial; experiments that need the same trial share it
OUTPUT/cells/KEY.lock   a process is running it
OUTPUT/NAME.jsonl       the records of experiment NAME, in its order; trials that are in it alone are not run again
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from colora.common.locks import is_locked, waiting_lock
from colora.errors import ColoraError, ConfigError
from colora.experiments.trial import Trial, TrialRecord, read_trial_records, write_trial_records

__all__ = ["Store"]


class Store:
    """The trials kept in one output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / "cells"

    def path(self, trial: Trial) -> Path:
        """Where the record of a trial stands."""
        return self.folder / f"{trial.key}.json"

    def lock(self, trial: Trial) -> Path:
        """The lock file of a trial."""
        return self.folder / f"{trial.key}.lock"

    def read(self, trial: Trial) -> TrialRecord | None:
        """The record of a trial, finished or failed; None if there is none.

        Raises:
            ConfigError: a file that holds something else.
        """
        path = self.path(trial)
        try:
            records = read_trial_records(path)
        except FileNotFoundError:
            return None
        except ColoraError as error:
            raise ConfigError(
                f"expected the record of a trial, found {error}; remove the file to run it again"
            ) from None
        if [record.trial for record in records] != [trial]:
            raise ConfigError(
                f"{path}: expected the record of trial {trial.key}, found "
                f"{', '.join(record.trial.key for record in records) or 'none'}; remove the file to run it again"
            )
        return records[0]

    def write(self, record: TrialRecord) -> None:
        """Keep the record of a trial, atomically; an older one is replaced."""
        write_trial_records(self.path(record.trial), [record])

    def state(self, trial: Trial) -> str:
        """One of "finished", "failed", "running", and "-" if nothing is known of it."""
        record = self.read(trial)
        if record is not None and record.error is None:
            return "finished"
        return "running" if is_locked(self.lock(trial)) else "-" if record is None else "failed"

    def finished(self, trials: Iterable[Trial]) -> list[TrialRecord]:
        """The records of those trials that ended well."""
        found = (self.read(trial) for trial in trials)
        return [record for record in found if record is not None and record.error is None]

    def restore(self, name: str) -> int:
        """Take up the trials of OUTPUT/NAME.jsonl that have no file of their own, as in a copy of that file alone.

        Returns:
            how many there were.
        """
        path = self.output / f"{name}.jsonl"
        if not path.exists():
            return 0
        missing = [record for record in read_trial_records(path) if not self.path(record.trial).exists()]
        for record in missing:
            self.write(record)
        return len(missing)

    def collect(
        self, name: str, trials: Sequence[Trial], only_code: str | None = None
    ) -> tuple[Path, list[TrialRecord]]:
        """Write OUTPUT/NAME.jsonl from the trials that ended, well or not, in their order; if asked, of one code."""
        path = self.output / f"{name}.jsonl"
        with waiting_lock(path.with_name(f"{path.name}.lock")):
            found = [record for record in map(self.read, trials) if record is not None]
            records = [record for record in found if only_code is None or record.code == only_code]
            write_trial_records(path, records)
        return path, records
