"""What was tried to choose settings, as one line a method."""

from colora.experiments.report.choices import choices_table
from colora.experiments.report.gather import Experiment
from colora.experiments.report.sections import report_sections
from tests.helpers.trial_records import record


def tuning():
    tried = [record("colora", 50 + lr * 1e3, lr=lr, split="val") for lr in (1e-3, 2e-3, 4e-3)]
    return Experiment.of(
        "tuning", [*tried, record("local", 40, split="val"), record("local", 45, lr=4e-3, split="val")]
    )


def test_every_try_is_there_and_the_best_is_marked():
    found = choices_table(tuning())
    assert found.column("method") == ["local", "colora"]
    assert found.column("tries") == ["2", "3"]
    assert found.column("measure") == ["token NLL"] * 2
    assert found.column("settings and what they gave") == [
        "lr 0.002: 1.600 · lr 0.004: 1.550 ←",
        "lr 0.001: 1.490 · lr 0.002: 1.480 · lr 0.004: 1.460 ←",
    ]


def test_they_stand_in_the_appendix_alone():
    measured = Experiment.of("x", [record(), record("local", 40)])
    sections = report_sections([tuning(), measured])
    assert [section.title for section in sections if "tuning" in str(section)] == ["Appendix"]
    titles = [block.title for block in sections[-1].blocks]
    assert titles == [
        "How the numbers are made", "Experiment x: dates; 2 trials", "Choice of settings tuning: dates; 5 trials",
        "Records, code and machines",
    ]  # fmt: skip
