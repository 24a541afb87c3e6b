"""The multiplier, on curves whose crossing is known."""

import pytest

from colora.evaluation.metrics import METRICS
from colora.experiments.report.multiplier import Needed, examples_needed, multiplier
from colora.experiments.report.statistics import Sample
from tests.helpers.trial_records import record, scores

ROUGE, _, NLL = METRICS.values()


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        ({8: 10, 16: 20, 32: 30}, 20, Needed(16)),  # at a point
        ({8: 10, 16: 20, 32: 30}, 25, Needed(16 * 2**0.5)),  # half-way in log2 n
        ({8: 10, 128: 50}, 20, Needed(16)),  # a quarter of four doublings
        ({128: 50, 8: 10}, 20, Needed(16)),  # in any order
        ({8: 10, 16: 20}, 10, Needed(8)),  # the first exactly
        ({8: 10, 16: 20}, 9, Needed(8, "≤")),
        ({8: 10, 16: 20}, 20.5, Needed(16, "≥")),
        ({8: 10}, 10, Needed(8)),
        ({8: 10}, 11, Needed(8, "≥")),
        ({8: 30, 16: 10, 32: 50}, 20, Needed(8, "≤")),
        ({8: 30, 16: 10, 32: 50}, 40, Needed(16 * 2**0.5)),  # from the running best of 30 at 16, not from 10
        ({8: 10, 16: 30, 32: 30, 64: 50}, 30, Needed(16)),  # the fewest on a flat part
        ({8: 10, 16: 30, 32: 25}, 30.5, Needed(32, "≥")),  # a fall at the end
    ],
)
def test_examples_needed(curve, target, expected):
    found = examples_needed(curve, target)
    assert (found.examples, found.bound) == (pytest.approx(expected.examples), expected.bound)
    mirrored = examples_needed({n: -value for n, value in curve.items()}, -target, higher_is_better=False)
    assert mirrored == found


def curve(method, qualities, seeds=(0, 1, 2)):
    """At each n, seeds whose qualities lie one apart."""
    return {n: Sample([record(method, q + s, s, examples=n) for s in seeds]) for n, q in qualities.items()}


@pytest.mark.parametrize("metric", [ROUGE, NLL])
def test_curves_that_move_together_have_a_point_for_an_interval(metric):
    """What a seed or an example adds, it adds to both curves alike: the crossing stays."""
    found = multiplier(curve("local", {8: 30, 16: 40, 32: 50, 64: 60}), curve("colora", {16: 50}), 16, metric)
    assert (found.examples, found.seeds, found.ratio.bound) == (16, 3, "")
    for end in (found.ratio, found.low, found.high):
        assert (end.examples, end.bound) == (pytest.approx(2), "")


def test_out_of_range_the_multiplier_is_a_bound():
    local, colora = curve("local", {8: 30, 16: 40}), curve("colora", {8: 55, 16: 20})
    above, below = multiplier(local, colora, 8, ROUGE), multiplier(local, colora, 16, ROUGE)
    assert (above.ratio, above.low, above.high) == (Needed(2, "≥"),) * 3
    assert (below.ratio, below.low, below.high) == (Needed(0.5, "≤"),) * 3


def test_noise_in_seeds_widens_the_interval_up_to_a_bound():
    """colora's quality at 8 is 38, 40 or 54 by seed; local's is the same at all seeds: 30, 40, 50 at 8, 16, 32."""
    local = {
        n: Sample([record("local", q, s, examples=n) for s in range(3)]) for n, q in {8: 30, 16: 40, 32: 50}.items()
    }
    colora = {8: Sample([record("colora", q, s, examples=8) for s, q in enumerate((38, 40, 54))])}
    found = multiplier(local, colora, 8, ROUGE)
    assert found.ratio.examples == pytest.approx(2 ** (1 + 4 / 10))  # the mean 44 is 4/10 of the way from 16 to 32
    assert (found.low.examples, found.low.bound) == (pytest.approx(2 ** (8 / 10)), "")  # the draw of three times 38
    assert found.high == Needed(4, "≥")  # and of three times 54


def test_noise_in_examples_widens_the_interval():
    values = [0.0, 10.0, 30.0, 60.0, 90.0, 100.0]
    flat = {
        n: Sample([record("local", tasks=("a",), scores={"a": scores([q] * 6)})])
        for n, q in {8: 0.0, 1024: 100.0}.items()
    }
    found = multiplier(flat, {8: Sample([record(tasks=("a",), scores={"a": scores(values)})])}, 8, ROUGE)
    assert found.ratio.examples == pytest.approx(2 ** (7 * 290 / 600))
    assert found.low.examples < found.ratio.examples / 2
    assert found.high.examples > found.ratio.examples * 2


def test_without_common_seeds_tasks_or_a_second_point_there_is_none():
    colora = curve("colora", {8: 50})
    assert multiplier(curve("local", {8: 30}), colora, 8, ROUGE) is None
    assert multiplier(curve("local", {8: 30, 16: 40}, seeds=(7,)), colora, 8, ROUGE) is None
    other = {n: Sample([record("local", 30, 0, tasks=("x",))]) for n in (8, 16)}
    assert multiplier(other, colora, 8, ROUGE) is None
