"""Means, spreads and paired intervals, against values worked out by hand or by a plain bootstrap."""

import math

import numpy as np
import pytest

from colora.evaluation.metrics import METRICS
from colora.experiments.report.statistics import Sample, paired_difference, seed_weights
from tests.helpers.trial_records import record, scores

ROUGE, EXACT, NLL = METRICS.values()


def test_means_and_the_spread_between_seeds():
    sample = Sample([record(quality=40, seed=0), record(quality=44, seed=1), record(quality=48, seed=2)])
    assert sample.seed_means("rougeL") == pytest.approx({0: 40, 1: 44, 2: 48})
    assert sample.mean("rougeL") == pytest.approx(44)
    assert sample.spread("rougeL") == pytest.approx(4)
    assert sample.mean("token_nll") == pytest.approx(2 - 0.44)
    assert Sample([record()]).spread("rougeL") is None


def test_token_nll_weighs_tokens_within_a_task_and_tasks_alike():
    long = scores([50.0], nll=1.0, tokens=9).model_copy(update={"nll": [9.0, 4.0], "tokens": [9, 1]})
    short = scores([50.0], nll=0.5, tokens=2)
    sample = Sample([record(tasks=("a", "b"), scores={"a": long, "b": short})])
    assert sample.mean("token_nll") == pytest.approx((13 / 10 + 0.5) / 2)


def test_a_seed_with_a_task_unmeasured_has_no_mean():
    empty = scores([], 1.0).model_copy(update={"nll": [1.0], "tokens": [1]})
    half = record(seed=1, tasks=("a", "b"), scores={"a": scores([50.0]), "b": empty})
    sample = Sample([record(seed=0, tasks=("a", "b")), half])
    assert list(sample.seed_means("rougeL")) == [0]
    assert list(sample.seed_means("token_nll")) == [0, 1]
    assert paired_difference(sample, Sample([half]), "rougeL") is None


def test_several_subsets_of_tasks_at_one_seed_count_alike():
    first, second = record(quality=40, tasks=("a", "b")), record(quality=60, tasks=("b", "c"))
    assert Sample([first, second]).seed_means("rougeL") == pytest.approx({0: 50})


def test_a_constant_difference_has_a_point_for_an_interval():
    left = Sample([record(quality=50 + seed, seed=seed) for seed in range(3)])
    right = Sample([record(quality=47 + seed, seed=seed) for seed in range(3)])
    found = paired_difference(left, right, "rougeL")
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3, 3))
    assert found.p == pytest.approx(2 / 2001)
    assert found.seeds == 3
    assert found.is_significant


def test_no_difference_is_not_significant():
    sample = Sample([record(quality=50, seed=seed) for seed in range(2)])
    found = paired_difference(sample, Sample([record(quality=50, seed=seed) for seed in range(2)]), "token_nll")
    assert (found.mean, found.p, found.is_significant) == (0, 1.0, False)


def test_seeds_alone_resampled_give_the_known_percentiles():
    """Differences −3 and 5 at two seeds: a draw is −3, 1 or 5 with chances 1/4, 1/2, 1/4."""
    left = Sample([record(quality=47, seed=0), record(quality=55, seed=1)])
    right = Sample([record(quality=50, seed=0), record(quality=50, seed=1)])
    found = paired_difference(left, right, "rougeL")
    assert (found.mean, found.low, found.high) == pytest.approx((1, -3, 5))
    assert found.p == pytest.approx(0.5, abs=0.05)


def test_examples_alone_resampled_agree_with_a_plain_bootstrap():
    values = np.random.default_rng(3).normal(10, 30, size=40)
    left = Sample([record(tasks=("a",), scores={"a": scores([float(v) for v in values])})])
    right = Sample([record(tasks=("a",), scores={"a": scores([0.0] * 40)})])
    found = paired_difference(left, right, "rougeL")
    generator = np.random.default_rng(0)
    plain = [generator.choice(values, 40).mean() for _ in range(20000)]
    error = values.std() / math.sqrt(40)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.15 * error)
    share = np.mean(np.asarray(plain) <= 0)
    assert found.p == pytest.approx(2 * min(share, 1 - share), abs=0.02)


def test_pairing_cancels_what_examples_have_in_common():
    """Examples differ by ±10, but the methods differ by the same amount on each: the interval is a point."""
    found = paired_difference(Sample([record(quality=52)]), Sample([record(quality=51)]), "rougeL")
    assert (found.low, found.high) == pytest.approx((1, 1))
    assert Sample([record(quality=52)]).resampled("rougeL")[0].std() > 1


def test_the_same_examples_at_every_seed_are_not_taken_for_more_examples():
    """Three seeds with the same scores on the same examples tell no more of the examples than one seed does."""
    values = [0.0, 20.0, 50.0, 90.0]

    def width(seeds):
        left = [record(seed=seed, tasks=("a",), scores={"a": scores(values)}) for seed in range(seeds)]
        right = [record(seed=seed, tasks=("a",), scores={"a": scores([30.0] * 4)}) for seed in range(seeds)]
        found = paired_difference(Sample(left), Sample(right), "rougeL")
        return found.high - found.low

    assert width(3) == pytest.approx(width(1))


def test_only_seeds_and_tasks_of_both_sides_are_compared():
    left = Sample([record(quality=50, seed=0), record(quality=90, seed=1), record(quality=70, seed=2, tasks=("x",))])
    right = Sample([record(quality=45, seed=0), record(quality=10, seed=2)])
    found = paired_difference(left, right, "rougeL")
    assert (found.mean, found.seeds) == (pytest.approx(5), 1)
    assert paired_difference(left, Sample([record(seed=7)]), "rougeL") is None


def test_weights_of_seeds_sum_to_one():
    weights = seed_weights(3, 500)
    assert weights.shape == (500, 3)
    assert np.allclose(weights.sum(1), 1)
    assert abs(weights.mean(0) - 1 / 3).max() < 0.03


def test_metrics_know_which_way_is_better():
    assert (ROUGE.higher_is_better, EXACT.higher_is_better, NLL.higher_is_better) == (True, True, False)
