"""Experiments without a model: a bench that remembers what it ran."""

from colora.experiments.load import parse_experiment
from colora.experiments.run import run_experiment
from colora.experiments.trial import CellRecord, TaskScores

__all__ = ["FakeBench", "boom", "experiment", "run"]

SMALL = {
    "name": "small",
    "groups": {"mine": ["date-es", "date-pt"]},
    "methods": {"base": None, "colora": {"lr": 0.01}, "fedit": None},
    "seeds": [0, 1],
    "steps": 10,
}


class FakeBench:
    """Remembers what it ran; does what `acts` says at a method's cells instead of giving scores."""

    def __init__(self, acts=None):
        self.acts, self.ran, self.tasks, self.loaded = acts or {}, [], [], []

    def __call__(self, base, dtype):
        self.loaded.append((base, dtype))
        return self

    def run(self, cell, tasks, progress=None):
        self.ran.append(cell.key)
        self.tasks.append(tasks)
        progress(1, 2)
        if cell.method in self.acts:
            return self.acts[cell.method](cell)
        scores = {name: TaskScores(nll=[1.0], tokens=[2], rougeL=[80.0], exact_match=[0.0]) for name in cell.tasks}
        return CellRecord(cell=cell, scores=scores, seconds={"train": 3.0})


def fake_tasks(names, **wanted):
    """For each name, what was asked for."""
    return [(name, wanted) for name in names]


def experiment(**changes):
    """A small experiment with these fields changed."""
    return parse_experiment(SMALL | changes, "small.yaml")


def run(output, bench=None, plan=None, **arguments):
    """The summary of running it into `output`, and the bench that ran it."""
    bench = bench or FakeBench()
    arguments = {"make_tasks": fake_tasks} | arguments
    return run_experiment(plan or experiment(), output, make_bench=bench, **arguments), bench


def boom(cell):
    """Die, with a message that names a folder."""
    raise RuntimeError(f"no rank {cell.rank} in /" + "home/ann/models/x.bin")
