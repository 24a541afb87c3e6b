"""What docs/theory.md says is what the records say, and the records are those of the experiments."""

import re

import numpy as np
import pytest

from benchmarks.recover.many_users import RECORD as MANY
from benchmarks.recover.many_users import exponent
from benchmarks.recover.theory import RECORDS, TABLES, read
from colora.theory.experiments.config import FIGURES, load_recovery
from colora.theory.experiments.summary import paired, rows
from tests.helpers.docs import README, ROOT, between, doc

pytestmark = pytest.mark.records

PAGE = doc("theory.md")
EXPERIMENTS = sorted(path.stem for path in (ROOT / "benchmarks" / "recover").glob("*.yaml"))


def found(name, **wanted):
    """The rows of an experiment with these values, or of this method."""
    method = wanted.pop("method", None)
    return [
        row
        for row in rows(read(name))
        if method in (None, row.method) and all(row.values.get(key) == value for key, value in wanted.items())
    ]


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_records(name):
    assert between(PAGE, name) == TABLES[name]()


def test_the_readmes_numbers_are_those_of_the_records():
    sentence = r"recovers (\d+)\s+of ten problems exactly with twenty users of 24\s+samples each, and (\d+) with one"
    told = re.search(rf"{sentence} user of 110", README)
    (together,) = found("phase", users=20, samples=24, method="alternating")
    (alone,) = found("phase", users=1, samples=110, method="alternating")
    assert [10 * row.recovered for row in (together, alone)] == [int(one) for one in told.groups()]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_trial_of_an_experiment_has_its_record(name):
    plan = load_recovery(ROOT / "benchmarks" / "recover" / f"{name}.yaml")
    records = read(name)
    assert plan.name == name
    assert [record.trial.key for record in records] == [trial.key for trial in plan.trials()]
    assert not [record for record in records if record.failure is not None]
    assert len({record.code for record in records}) == 1
    assert all(
        record.environment["git_revision"] and "dirty" not in record.environment["git_revision"] for record in records
    )


def test_there_are_records_of_nothing_else():
    assert sorted(path.stem for path in RECORDS.glob("*.jsonl")) == EXPERIMENTS


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", PAGE))))
def test_links_lead_somewhere(link):
    assert (ROOT / "docs" / link).exists()


def test_every_figure_is_shown():
    for name in FIGURES:
        assert f"(figures/recovery-{name}.svg)" in PAGE


def test_the_estimators_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    random = np.random.default_rng(0)
    customers = np.repeat(["acme", "bolt", "cork"], 30)
    X = random.normal(size=(90, 6, 5))
    y = np.einsum("nij,ij->n", X, random.normal(size=(6, 1)) @ random.normal(size=(1, 5)))
    X_new, X_few = random.normal(size=(1, 6, 5)), random.normal(size=(4, 6, 5))
    names = {"X": X, "y": y, "customers": customers, "X_new": X_new, "X_few": X_few, "y_few": np.ones(4)}
    exec(compile(code, "theory.md", "exec"), names)
    assert names["model"].users_.tolist() == ["acme", "bolt", "cork", "newco"]


def test_the_experiment_of_the_page_can_be_read(tmp_path):
    page = (ROOT / "docs" / "comparisons.md").read_text(encoding="utf-8").split("## Recover what is known")[1]
    (text,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert len(load_recovery(tmp_path / "mine.yaml").trials()) == 9


# ---- what is claimed ----------------------------------------------------------------------------------------------


def test_together_twenty_four_samples_are_enough_and_alone_a_hundred_and_ten_are_not():
    (together,) = found("phase", users=20, samples=24, method="alternating")
    (alone,) = found("phase", users=1, samples=110, method="alternating")
    assert together.recovered == 1.0
    assert max(together.record.errors) < 1e-10
    assert alone.recovered < 1.0


@pytest.mark.parametrize("users", [5, 20])
def test_second_order_recovers_near_the_degrees_of_freedom(users):
    (near,) = found("freedom", users=users, times_freedom=1.5, method="second-order")
    (nearer,) = found("freedom", users=users, times_freedom=1.25, method="second-order")
    assert near.recovered >= 0.9
    assert nearer.recovered >= 0.5


@pytest.mark.parametrize("noise", [0.001, 0.003, 0.01, 0.03, 0.1, 0.3])
def test_the_bound_is_met_within_ten_per_cent(noise):
    (row,) = found("noise", noise=noise, method="second-order")
    ratio = np.square(row.record.errors).sum() / np.square(row.record.bounds).sum()
    assert 0.9 < ratio < 1.1


def test_time_is_linear_in_users_and_memory_is_not_in_them():
    import json

    many = {row["users"]: row for row in json.loads(MANY.read_text(encoding="utf-8"))["rows"]}
    assert max(many) == 100_000
    assert max(row["megabytes"] for row in many.values()) < 2000
    assert max(row["error"] for row in many.values()) < 1e-10
    assert 0.9 < exponent() < 1.1


def test_the_digits_gain_is_told_as_it_is():
    """The page names the sizes at which CoLoRA is better than local least squares beyond its interval."""
    better = [
        row.values["samples"]
        for row in found("digits", method="colora")
        if paired(row, found("digits", method="local", samples=row.values["samples"])[0])[2] < 0
    ]
    told = re.search(r"better than least squares alone at ([\d, and]+) images", PAGE)
    assert told, "expected a sentence with the sizes"
    assert [int(one) for one in re.findall(r"\d+", told[1])] == better
