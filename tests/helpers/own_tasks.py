"""Comparisons of a user's tasks without a training: records with chosen scores, and a runner that gives them."""

from colora.experiments.methods.runner import Runner
from colora.experiments.own.contenders import CONTENDERS
from colora.experiments.own.request import OwnOptions
from colora.experiments.own.run import compare_own
from colora.experiments.trial import TaskScores, Trial, TrialRecord
from colora.tasks.schema import Example, Task
from colora.training.config_file import load_config

__all__ = ["Favoured", "QuickRunner", "compare_quickly", "example_task", "final_record", "final_trial", "texts"]


def texts(*names):
    """An example for each text; the answer is the text's first letter."""
    return tuple(Example(name, (name[0],)) for name in names)


def example_task(name, train=6, val=0, test=3):
    """A task with so many different examples in each split."""
    splits = {
        split: texts(*(f"{name} {split} {number}" for number in range(count)))
        for split, count in (("train", train), ("val", val), ("test", test))
    }
    return Task(name, splits, f"{name}.jsonl", None)


def final_trial(method, **changes):
    given = {
        "method": method, "group": "tasks-1", "tasks": ("a", "b"), "regime": "implicit", "examples": 16, "seed": 0,
        "base": "tiny", "steps": 60, "lr": 1e-3, "test": 40, "generate": 40,
    }  # fmt: skip
    return Trial(**(given | changes))


def final_record(method, scores, nats=1.0, numbers=(0, 0), **changes):
    """A record of tasks with these scores, each of an example: all alike in exact match, ROUGE-L and nats."""
    found = {
        task: TaskScores(nll=[nats] * len(values), tokens=[1] * len(values), rougeL=values, exact_match=values)
        for task, values in scores.items()
    }
    trial = final_trial(method, tasks=tuple(scores), **changes)
    return TrialRecord(
        trial=trial, scores=found, shared_numbers=numbers[0], task_numbers=numbers[1], seconds={"train": 2.0}
    )


class QuickRunner(Runner):
    """Loads a tiny base, and gives scores without training: those of `QUALITY`, less for lower rates of A and B."""

    QUALITY = {one.method: 50.0 for one in CONTENDERS} | {"base": 90.0}
    ran: list[Trial]

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.ran = []

    def run(self, trial, tasks, progress=None):
        self.ran.append(trial)
        self.act(trial)
        if progress is not None:
            progress(1, 1)
        score = self.QUALITY[trial.method] + (1000 * trial.lr if trial.steps > 1 else 0)
        found = {}
        for task in tasks:
            count = len(task.splits[trial.split][: trial.test])
            found[task.name] = TaskScores(
                nll=[1.0] * count, tokens=[1] * count, rougeL=[score] * count, exact_match=[score] * count
            )
        return TrialRecord(trial=trial, scores=found, seconds={"train": 0.1, "evaluate": 0.1})

    def act(self, trial):
        """What tests make it do before a trial."""


class Favoured(QuickRunner):
    """Trains in earnest on all examples with the first seed, and says that one method did best."""

    FAVOURITE = "colora"

    def run(self, trial, tasks, progress=None):
        if trial.split == "val" or trial.seed:
            return super().run(trial, tasks, progress)
        record = super(QuickRunner, self).run(trial, tasks, progress)  # the runner's own
        self.ran.append(trial)
        score = 95.0 if trial.method == self.FAVOURITE else 10.0
        scores = {
            task: one.model_copy(update={"rougeL": [score] * len(one.rougeL), "exact_match": [score] * len(one.rougeL)})
            for task, one in record.scores.items()
        }
        return record.model_copy(update={"scores": scores})


def compare_quickly(run_file, output, make_runner=QuickRunner, said=None, **options):
    """The verdict on a run file, the runner, and what was said."""
    made, lines = [], [] if said is None else said

    def make(*args, **kwargs):
        made.append(make_runner(*args, **kwargs))
        return made[-1]

    config = load_config(run_file)
    verdict = compare_own(config, OwnOptions(output, **options), log=lines.append, make_runner=make)
    return verdict, made[-1], lines
