"""Regret by values: who is a rival, which place counts, the lead, its interval, what choosing the best rival adds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from colora.evaluation.metrics import METRICS
from colora.experiments.report.gather import Experiment
from colora.experiments.report.regret import chooses_settings, headline, is_variant, main_measure, mean_regret, regret
from colora.experiments.trial import TaskScores
from tests.helpers.trial_records import record, scores

ROUGE, EXACT, NLL = (METRICS[name] for name in ("rougeL", "exact_match", "token_nll"))


def one(*records, **asked):
    (found,) = headline([Experiment.of("x", list(records))], **asked)
    return found


def three(method, quality, **changes):
    return [record(method, quality + seed, seed, **changes) for seed in (0, 1, 2)]


def test_the_lead_over_the_best_rival():
    found = one(*three("colora", 60), *three("local", 50), *three("pooled", 57), *three("base", 5))
    lead = regret(found, ROUGE)
    assert (lead.rival.method, lead.rivals, lead.difference.seeds) == ("pooled", 3, 3)
    assert lead.difference.mean == pytest.approx(3)
    assert (lead.difference.low, lead.difference.high) == (pytest.approx(3), pytest.approx(3))  # the same everywhere
    assert lead.favour == pytest.approx(0)  # no rival is ever ahead of pooled
    behind = regret(one(*three("colora", 60), *three("local", 64)), ROUGE)
    assert behind.difference.mean == pytest.approx(-4)


def test_above_zero_is_ahead_in_nats_too():
    found = one(*three("colora", 60), *three("local", 50))
    assert found.nats is NLL
    assert regret(found, NLL).difference.mean == pytest.approx(0.1)  # 2 − 0.5 less 2 − 0.6


def test_variants_of_the_reference_are_no_rivals():
    found = one(*three("colora", 60), *three("colora-mean", 90), *three("fed-colora", 80), *three("mtl-lora", 50))
    assert regret(found, ROUGE).rival.method == "mtl-lora"
    assert [level.row.method for level in found.levels(ROUGE) if level.is_best] == ["colora-mean"]
    assert is_variant("colora", "colora")
    assert not is_variant("colorado", "colora")


def test_choosing_the_best_of_equal_rivals_favours_them():
    generator = np.random.default_rng(0)

    def noisy(method, seed):
        return record(method, scores={task: scores(list(50 + 20 * generator.standard_normal(24))) for task in "abcd"},
                      tasks=tuple("abcd"), seed=seed)  # fmt: skip

    alike = [noisy(method, seed) for method in ("colora", "m1", "m2", "m3", "m4", "m5") for seed in (0, 1, 2)]
    many = regret(one(*alike), ROUGE)
    alone = regret(one(*[found for found in alike if found.trial.method in ("colora", "m1")]), ROUGE)
    assert many.favour > 0.3
    assert alone.favour == 0
    assert many.difference.low < many.difference.mean < many.difference.high


def test_tasks_are_drawn_as_well():
    """A method that is far ahead on one task and behind on two has a wide interval, though examples and seeds agree."""
    uneven = {task: scores([value] * 6) for task, value in (("red", 90.0), ("blue", 40.0), ("green", 40.0))}
    flat = {task: scores([50.0] * 6) for task in uneven}
    lead = regret(one(record(scores=uneven), record("local", scores=flat)), ROUGE).difference
    assert lead.mean == pytest.approx(20 / 3)
    assert (lead.low, lead.high) == (pytest.approx(-10), pytest.approx(40))
    assert not lead.is_significant


def test_seeds_that_both_have_count():
    found = one(*three("colora", 60), record("local", 50, seed=1))
    lead = regret(found, ROUGE).difference
    assert (lead.mean, lead.seeds) == (pytest.approx(11), 1)
    assert headline([Experiment.of("x", [record(seed=0), record("local", seed=1)])]) == []


def test_failed_trials_and_missing_rivals_leave_their_place_out():
    records = [record(), record("local", error="died"), record(group="b"), record("local", 40, group="b")]
    assert [found.place.group for found in headline([Experiment.of("x", records)])] == ["b"]
    assert headline([Experiment.of("x", [record(error="died")])]) == []


def test_the_best_setting_of_a_rival_stands_for_it():
    found = one(record(), record("local", 40, lr=1e-3), record("local", 45, lr=4e-3))
    assert [row.label for row in found.rivals(ROUGE)] == ["local, lr=0.004"]


def test_of_one_group_the_most_examples_and_tasks_count():
    records = [record(method, examples=n) for method in ("colora", "local") for n in (8, 32)]
    records += [record(method, examples=32, tasks=("red",)) for method in ("colora", "local")]
    (found,) = headline([Experiment.of("x", records)])
    assert (found.place.examples, found.place.tasks) == (32, 3)


def test_the_widest_experiment_on_test_examples_answers():
    wide = [record(method, group=group) for method in ("colora", "local") for group in ("a", "b")]
    chosen = [record(method, group=group, split="val") for method in ("colora", "local") for group in ("a", "b", "c")]
    narrow = [record(), record("local")]
    experiments = [
        Experiment.of(name, made) for name, made in {"tuning": chosen, "narrow": narrow, "wide": wide}.items()
    ]
    assert [one.experiment for one in headline(experiments)] == ["wide", "wide"]
    assert [chooses_settings(one) for one in experiments] == [True, False, False]
    assert len(headline(experiments, ["narrow", "wide"])) == 3
    assert [one.experiment for one in headline(experiments[:1])] == ["tuning"] * 3  # there is nothing else


def test_another_reference_may_be_named():
    found = one(record(), record("local", 40), record("pooled", 45), reference="pooled")
    assert (found.reference.method, regret(found, ROUGE).rival.method) == ("pooled", "colora")


def test_the_main_measure():
    words = {"red": scores([100.0, 0.0], tokens=2)}
    found = one(record(scores=words, tasks=("red",)), record("local", scores=words, tasks=("red",)))
    assert found.measure is EXACT  # answers of a word
    assert one(record(), record("local")).measure is ROUGE
    silent = {"red": scores([], 1.5).model_copy(update={"nll": [3.0], "tokens": [2]})}
    found = one(record(scores=silent, tasks=("red",)), record("local", scores=silent, tasks=("red",)))
    assert (found.measure, found.nats, found.in_points) == (NLL, None, False)
    assert main_measure([NLL, ROUGE], found.reference) is ROUGE
    assert main_measure([ROUGE, EXACT], replace(found.reference, judged_by="exact_match")) is EXACT  # as it was told
    assert main_measure([ROUGE, NLL], replace(found.reference, judged_by="exact_match")) is ROUGE


def test_the_mean_over_groups_counts_them_alike():
    records = [
        *three("colora", 60),
        *three("local", 50),
        *three("colora", 60, group="b"),
        *three("local", 64, group="b"),
    ]
    leads = [regret(found, ROUGE) for found in headline([Experiment.of("x", records)])]
    assert mean_regret(leads).mean == pytest.approx((10 - 4) / 2)


def test_the_level_of_each_method_is_marked():
    found = one(*three("colora", 60), record("local", 61, 0), record("local", 59, 1), record("local", 62, 2),
                *three("pooled", 30))  # fmt: skip
    levels = {level.row.method: (level.mean, level.is_best, level.is_level) for level in found.levels(ROUGE)}
    assert levels["colora"] == (pytest.approx(61), True, False)
    assert levels["local"] == (pytest.approx(182 / 3), False, True)
    assert levels["pooled"] == (pytest.approx(31), False, False)
    by_nats = {level.row.method: level.mean for level in found.levels(NLL)}
    assert by_nats["pooled"] == pytest.approx(1.69)


def test_where_answers_are_chosen_accuracy_counts_and_the_nats_of_an_answer():
    """Of two choices the right one has probability 0.8 in three of four examples of colora, in two of local's."""

    def chosen(right):
        likely, unlikely = -math.log(0.8), -math.log(0.2)
        nats = [[likely, unlikely] if hit else [unlikely, likely] for hit in right]
        choices = {"names": ["0", "1"], "right": [0] * len(right), "nats": nats}
        return {"red": TaskScores(nll=[1.0] * len(right), tokens=[2] * len(right), choices=choices)}

    hits = {"colora": [1, 1, 1, 0], "local": [1, 1, 0, 0]}
    found = one(*[record(method, scores=chosen(right), tasks=("red",)) for method, right in hits.items()])
    assert (found.measure.name, found.nats.name) == ("accuracy", "choice_nats")
    assert regret(found, found.measure).difference.mean == pytest.approx(25)
    assert regret(found, found.nats).difference.mean == pytest.approx(math.log(4) / 4)
