"""A comparison of a user's tasks: what is known before it runs, where its files are, and what its trials gave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colora.experiments.methods.runner import Runner
from colora.experiments.own.contenders import Setting
from colora.experiments.own.data import OwnTasks
from colora.experiments.own.plan import Trials
from colora.experiments.own.request import OwnOptions
from colora.experiments.own.verdict.measure import Measure
from colora.experiments.store import Store
from colora.experiments.trial import Trial, TrialRecord
from colora.experiments.worker import Log
from colora.training.config import RunConfig

__all__ = ["Comparison", "Outcome", "Outputs"]


@dataclass(frozen=True)
class Outputs:
    """The files of a comparison in its folder."""

    folder: Path

    @property
    def store(self) -> Store:
        """The records of trials."""
        return Store(self.folder)

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def timings(self) -> Path:
        return self.folder / "timings.json"

    @property
    def clock(self) -> Path:
        return self.folder / "clock.json"

    @property
    def verdict(self) -> Path:
        return self.folder / "verdict.json"

    @property
    def words(self) -> Path:
        return self.folder / "verdict.txt"

    @property
    def verdict_lock(self) -> Path:
        return self.folder / "verdict.lock"

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"

    @property
    def trained(self) -> Path:
        """The folder of what contenders trained, until one is chosen."""
        return self.folder / "trained"

    def weights(self, trial: Trial) -> Path:
        """What a trial trained."""
        return self.trained / f"{trial.key}.safetensors"


@dataclass(frozen=True)
class Comparison:
    """What is known before anything is run.

    Attributes:
        config: the run file.
        options: of the command.
        outputs: the files.
        runner: the base, loaded.
        trials: what is run.
        measure: what tasks are judged by.
        prompt: of all contenders, in words.
        missing: a line for each contender that is not there.
        code: digest of the sources.
        log: takes lines for the user.
    """

    config: RunConfig
    options: OwnOptions
    outputs: Outputs
    runner: Runner
    trials: Trials
    measure: Measure
    prompt: str
    missing: Sequence[str]
    code: str
    log: Log

    @property
    def data(self) -> OwnTasks:
        """The tasks."""
        return self.trials.data


@dataclass(frozen=True)
class Outcome:
    """What the trials gave.

    Attributes:
        chosen: the setting of each contender.
        choosing: the records that settings were chosen by.
        records: those on the test split.
        tried: all trials, also of stages for which there was no time.
    """

    chosen: Mapping[str, Setting | None]
    choosing: Sequence[TrialRecord]
    records: Sequence[TrialRecord]
    tried: Sequence[Trial]
