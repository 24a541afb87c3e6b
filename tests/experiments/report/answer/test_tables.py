"""The tables of the first screen by their values, and its figures as data."""

import pytest

from colora.experiments.report.answer.figures import forest, strips
from colora.experiments.report.answer.standings import standings
from colora.experiments.report.answer.tables import method_table, nats_table, regret_table
from colora.experiments.report.gather import Experiment
from colora.experiments.report.markdown import table_markdown
from tests.helpers.trial_records import record

QUALITIES = {"base": 5, "local": 50, "pooled": 57, "colora": 60}


@pytest.fixture
def found():
    """Two groups in one regime, one of them in the other too; pooled was not run on b, fedit on one alone."""
    made = []
    for group, regime, shift in (("a", "implicit", 0), ("b", "implicit", 10), ("a", "explicit", -20)):
        for seed in (0, 1, 2):
            for method, quality in QUALITIES.items():
                if (method, group) != ("pooled", "b"):
                    # In the explicit regime colora loses what it has.
                    lost = 8 if (method, regime) == ("colora", "explicit") else 0
                    made.append(record(method, quality + shift - lost + seed, seed, group=group, regime=regime))
    made += [record("fedit", 40 + seed, seed, group="a") for seed in (0, 1, 2)]
    return standings([Experiment.of("x", made)])


def test_methods_by_group(found):
    shown = method_table(found)
    assert shown.headers == ("method", "b\nROUGE-L", "a\nROUGE-L", "a\nROUGE-L", "behind the best\nmean")
    assert [(span.text, span.columns) for span in shown.spans] == [
        ("", 1), ("prompt does not name the task", 2), ("prompt names the task", 1), ("", 1),
    ]  # fmt: skip
    assert [[entry.text for entry in row] for row in shown.rows] == [
        ["colora", "71.0", "61.0", "33.0", "1.7"],
        ["pooled", "–", "58.0", "38.0", "1.5 (of 2)"],
        ["local", "61.0", "51.0", "31.0", "9.0"],
        ["base", "16.0", "6.0", "−14.0".replace("−", "-"), "54.0"],
        ["fedit", "–", "41.0", "–", "20.0 (of 1)"],
    ]
    assert [entry.bold for entry in shown.rows[0]] == [False, True, True, False, False]
    assert [entry.strong for entry in shown.rows[0]] == [True, False, False, False, False]
    assert shown.rows[1][3].bold


def test_methods_by_group_as_markdown(found):
    lines = table_markdown(method_table(found), title=False).splitlines()
    assert lines[0] == (
        "| method | b ROUGE-L (prompt does not name the task) | a ROUGE-L (prompt does not name the task) | "
        "a ROUGE-L (prompt names the task) | behind the best mean |"
    )
    assert lines[2] == "| colora | **71.0** | **61.0** | 33.0 | 1.7 |"


def test_what_is_level_with_the_best_is_marked():
    made = [record("colora", 60, s) for s in (0, 1, 2)]
    made += [record("local", 60 + d, s) for s, d in {0: 3, 1: -3, 2: -1}.items()]
    shown = method_table(standings([Experiment.of("x", made)]))
    assert [(row[0].text, row[1].bold, row[1].level) for row in shown.rows] == [
        ("colora", True, False), ("local", False, True),
    ]  # fmt: skip
    assert "| 59.7 ≈ |" in table_markdown(shown)


def test_by_likelihood(found):
    shown = nats_table(found)
    assert [row[0].text for row in shown.rows] == ["colora", "pooled", "local", "base", "fedit"]
    assert [row[1].text for row in shown.rows] == ["1.290", "–", "1.390", "1.840", "–"]
    assert shown.rows[0][1].bold


def test_against_the_best_rival(found):
    shown = regret_table(found)
    assert shown.headers == ("group", "prompts", "measure", "colora", "best rival", "lead", "lead in nats")
    assert [[entry.text for entry in row] for row in shown.rows] == [
        ["b", "implicit", "ROUGE-L", "71.0", "61.0 (local)", "+10.0 [+10.0, +10.0]", "+0.100 [+0.100, +0.100] (local)"],
        ["a", "implicit", "ROUGE-L", "61.0", "58.0 (pooled)", "+3.0 [+3.0, +3.0]", "+0.030 [+0.030, +0.030] (pooled)"],
        ["a", "explicit", "ROUGE-L", "33.0", "38.0 (pooled)", "−5.0 [−5.0, −5.0]", "−0.050 [−0.050, −0.050] (pooled)"],
        ["mean of all", "", "", "", "", "+2.7 [+2.7, +2.7]", "+0.027 [+0.027, +0.027]"],
    ]


def test_one_group_has_no_mean():
    shown = regret_table(standings([Experiment.of("x", [record(), record("local", 40)])]))
    assert [row[0].text for row in shown.rows] == ["dates"]
    assert "prompts" not in shown.headers


def test_the_figures(found):
    shown = forest(found)
    assert [(row.label, row.note, row.difference.mean) for row in shown.rows] == [
        ("b", "vs local", pytest.approx(10)), ("a", "vs pooled", pytest.approx(3)),
        ("a", "vs pooled", pytest.approx(-5)), ("mean of all", "", pytest.approx(8 / 3)),
    ]  # fmt: skip
    assert "a (prompt names the task) vs pooled: −5.0 [−5.0, −5.0]" in shown.text
    rows = strips(found).rows
    assert [row.label for row in rows] == ["b", "a", "a"]
    assert {mark.label: mark.kind for mark in rows[1].marks} == {
        "base": "base", "local": "other", "pooled": "rival", "colora": "reference", "fedit": "other",
    }  # fmt: skip
    assert "colora 71.0" in strips(found).text
