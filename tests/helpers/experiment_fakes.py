"""Experiments without a model: a runner that remembers what it ran."""

from colora.experiments.load import parse_experiment
from colora.experiments.run import ExperimentOptions, run_experiment
from colora.experiments.trial import TaskScores, TrialRecord

__all__ = ["FakeRunner", "boom", "experiment", "run"]

SMALL = {
    "name": "small",
    "groups": {"mine": ["date-es", "date-pt"]},
    "methods": {"base": None, "colora": {"lr": 0.01}, "fedit": None},
    "seeds": [0, 1],
    "steps": 10,
}


class FakeRunner:
    """Remembers what it ran; does what `acts` says at a method's trials instead of giving scores."""

    def __init__(self, acts=None):
        self.acts, self.ran, self.tasks, self.loaded = acts or {}, [], [], []

    def __call__(self, base, dtype):
        self.loaded.append((base, dtype))
        return self

    def run(self, trial, tasks, progress=None):
        self.ran.append(trial.key)
        self.tasks.append(tasks)
        progress(1, 2)
        if trial.method in self.acts:
            return self.acts[trial.method](trial)
        scores = {name: TaskScores(nll=[1.0], tokens=[2], rougeL=[80.0], exact_match=[0.0]) for name in trial.tasks}
        return TrialRecord(trial=trial, scores=scores, seconds={"train": 3.0})


def fake_tasks(names, **wanted):
    """For each name, what was asked for."""
    return [(name, wanted) for name in names]


def experiment(**changes):
    """A small experiment with these fields changed."""
    return parse_experiment(SMALL | changes, "small.yaml")


def run(output, runner=None, plan=None, log=lambda line: None, make_tasks=fake_tasks, **options):
    """The summary of running it into `output`, and the runner that ran it."""
    runner = runner or FakeRunner()
    options = ExperimentOptions(**options)
    done = run_experiment(plan or experiment(), output, options, log=log, make_runner=runner, make_tasks=make_tasks)
    return done, runner


def boom(trial):
    """Die, with a message that names a folder."""
    raise RuntimeError(f"no rank {trial.rank} in /" + "home/ann/models/x.bin")
