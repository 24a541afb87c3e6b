"""The committed experiments and their records belong together: each record is of its experiment, each rate tuned."""

from pathlib import Path

import pytest

from benchmarks.compare.chosen import CENTRAL, FEDERATED, Setting, chosen, tuning_records
from benchmarks.compare.summary import tries, tuned_rate
from colora.experiments.load import load_experiment
from colora.experiments.methods.registry import METHODS
from colora.experiments.plan import planned_trials
from colora.experiments.report.gather import read_experiments

pytestmark = pytest.mark.records

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "compare" / "records"
EXPERIMENTS = sorted((ROOT / "benchmarks" / "compare").glob("*.yaml"))
# These try rates on purpose.
SWEEPS = {"tuning", "tuning_explicit", "rates", "harm", "samples_rate", "pooled_rate", "explicit"}
SWEEPS |= {"real_tuning", "real_tuning_lists", "real_tuning_decay", "real_tuning_options", "rotation", "prompts"}
SWEEPS |= {"recipe", "real_tuning_rivals", "real_federated_tuning", "real_federated_tuning_short"}
REAL = {"real": CENTRAL, "real_federated": FEDERATED}  # tuned on other groups by these, see benchmarks.compare.chosen
TUNED_AS = {"colora-residual": "colora", "colora-mean": "colora"}


@pytest.fixture(scope="module")
def best():
    """The tuned rate of each method and regime: that with the least nats per token on validation data."""
    return {
        (method, regime): min((nats, rate) for rate, nats in found)[1]
        for regime, name in (("implicit", "tuning"), ("explicit", "tuning_explicit"))
        for method, found in tries(name).items()
    }


@pytest.mark.parametrize("name", ["tuning", "tuning_explicit"])
def test_every_method_had_four_tries_and_one_more_where_the_highest_was_best(name):
    for method, found in tries(name).items():
        nats = [value for _, value in found]
        best = nats.index(min(nats[:4]))
        assert len(nats) == (5 if best == 3 else 4), method
        assert 0 < nats.index(min(nats)) < len(nats) - 1, f"{method}: the best rate is not bracketed"


@pytest.mark.parametrize(
    "path", [one for one in EXPERIMENTS if one.stem not in SWEEPS | set(REAL)], ids=lambda path: path.stem
)
def test_every_method_runs_at_the_rate_that_tuning_found_best(path, best):
    for trial in planned_trials(load_experiment(path)):
        if trial.method == "base":
            continue
        tuned = best[TUNED_AS.get(trial.method, trial.method), trial.regime]
        assert tuned_rate(trial) == tuned, trial.key


@pytest.mark.parametrize("name", REAL)
def test_the_methods_of_real_tasks_run_as_they_were_tuned_on_other_groups(name):
    tuned = tuning_records(REAL[name])
    settings = {method: chosen(tried) for method, tried in tuned.items()}
    trials = planned_trials(load_experiment(ROOT / "benchmarks" / "compare" / f"{name}.yaml"))
    tuned_on = {record.trial.group for tried in tuned.values() for one in tried.values() for record in one}
    assert not tuned_on & {trial.group for trial in trials}
    for trial in trials:
        if METHODS[trial.method].terms:
            assert Setting.of(trial) == settings[trial.method], trial.key


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_records_are_those_of_the_experiment(path):
    file = RECORDS / f"{path.stem}.jsonl"
    (experiment,) = read_experiments(file)
    known = {trial.key for trial in planned_trials(load_experiment(path))}
    assert experiment.records, "expected at least one record"
    found = {record.trial.key for record in experiment.records}
    assert found == known
    assert len(experiment.codes) == 1
    assert not experiment.failed
