"""What is made of the nats of choices, against numbers worked out by hand."""

import math

import pytest
from pydantic import ValidationError
from scipy.stats import spearmanr

from colora.evaluation.choices import CHOICE_METRICS, ChoiceScores, rank_correlation


def scores(probabilities, right, names=("1", "2", "3")):
    nats = [[-math.log(p) for p in row] for row in probabilities]
    return ChoiceScores(names=list(names), right=right, nats=nats)


def test_accuracy_and_nats_of_the_right_choice_among_all_choices():
    """Half of the mass of the first example is on no choice at all: what is on the choices counts."""
    one = scores([[0.1, 0.3, 0.1], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]], [1, 0, 1])
    assert one.examples("accuracy") == [100.0, 0.0, 0.0], "of equally likely ones the first is chosen"
    assert one.value("accuracy") == pytest.approx(100 / 3)
    assert one.examples("choice_nats") == pytest.approx([-math.log(0.6), -math.log(0.2), -math.log(0.4)])
    assert one.value("choice_nats") == pytest.approx(-math.log(0.6 * 0.2 * 0.4) / 3)
    assert one.examples("rank_correlation") == []


def test_nats_far_apart_are_finite():
    one = ChoiceScores(names=["a", "b"], right=[1, 0], nats=[[0.0, 2000.0], [3000.0, 2000.0]])
    assert all(math.isfinite(value) for value in one.examples("choice_nats"))
    assert one.examples("accuracy") == [0.0, 0.0]


def test_rank_correlation_is_spearmans_of_expected_and_right_numbers_over_all_tasks():
    red = scores([[0.2, 0.6, 0.2], [0.7, 0.2, 0.1]], [2, 0])
    blue = scores([[0.1, 0.1, 0.8], [0.3, 0.3, 0.4]], [1, 1])
    expected = [2.0, 1.4, 2.7, 2.1]
    assert red.expected() == pytest.approx(expected[:2])
    assert rank_correlation([red, blue]) == pytest.approx(spearmanr(expected, [3, 1, 2, 2]).statistic)
    assert red.value("rank_correlation") == pytest.approx(1.0)


def test_no_rank_correlation_of_words_or_of_what_does_not_vary():
    assert scores([[0.2, 0.6, 0.2], [0.7, 0.2, 0.1]], [2, 0], ("x", "2", "3")).value("rank_correlation") is None
    assert scores([[0.2, 0.6, 0.2]] * 2, [2, 0]).value("rank_correlation") is None
    assert scores([[0.2, 0.6, 0.2], [0.7, 0.2, 0.1]], [1, 1]).value("rank_correlation") is None


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="for each right choice a list of nats"):
        ChoiceScores(names=["a", "b"], right=[0], nats=[[1.0]])
    with pytest.raises(ValidationError, match="expected indices of the 2 choices"):
        ChoiceScores(names=["a", "b"], right=[2], nats=[[1.0, 2.0]])


def test_each_measure_has_a_title_and_a_direction():
    assert {name: (metric.name, metric.higher_is_better) for name, metric in CHOICE_METRICS.items()} == {
        "accuracy": ("accuracy", True),
        "choice_nats": ("choice_nats", False),
        "rank_correlation": ("rank_correlation", True),
    }
