"""The answer in words, from made-up records: ahead, behind, level, one group, one seed, failures, several settings."""

import pytest

from colora.experiments.report.answer.standings import standings
from colora.experiments.report.answer.words import caveat, sentence, sentences, winners
from colora.experiments.report.gather import Experiment
from tests.helpers.trial_records import record, scores


def standing(*records):
    return standings([Experiment.of("x", list(records))])


def group(name, colora, local, **changes):
    made = []
    for method, quality in (("colora", colora), ("local", local)):
        made += [record(method, quality + seed, seed, group=name, **changes) for seed in (0, 1, 2)]
    return made


def test_ahead_of_the_best_rivals():
    found = standing(*group("a", 60, 50), *group("b", 60, 56))
    assert sentence(found) == (
        "On 2 groups of tasks, CoLoRA with one recipe is 7.0 points ahead of the best rival of each "
        "(95 % interval +7.0 to +7.0)."
    )
    assert winners(found) == "The highest mean is that of colora on 2."
    assert sentences(found) == [
        "Group by group, as far as the intervals tell, it is ahead on 2: a, b. At worst it is +4.0 against local on b.",
        "By likelihood it is 0.070 better in token NLL than the best rival of each (95 % interval +0.070 to +0.070).",
    ]


def test_behind_in_one_regime():
    found = standing(*group("a", 60, 50), *group("a", 40, 56, regime="explicit"))
    assert sentence(found) == (
        "On 1 group of tasks, with the task named in the prompt or not (2 comparisons), CoLoRA with one recipe is "
        "3.0 points behind the best rival of each (95 % interval −3.0 to −3.0)."
    )
    assert "it is ahead on 1: a (implicit); behind on 1: a (explicit). At worst it is −16.0" in sentences(found)[0]
    assert winners(found) == "The highest mean is that of local on a (explicit) and colora on a (implicit)."


def test_level_is_what_chance_may_explain():
    apart = {0: 3, 1: -3, 2: 1}
    records = [record("colora", 60, s, group=g) for g in "ab" for s in apart]
    records += [record("local", 60 + d, s, group=g) for g in "ab" for s, d in apart.items()]
    assert "CoLoRA with one recipe is level with the best rival of each: −0.3 points (95 % interval −" in sentence(
        standing(*records)
    )


def test_one_group():
    found = standing(*group("a", 60, 50))
    assert sentence(found) == (
        "On a (prompt does not name the task), CoLoRA is 10.0 points ahead of local in ROUGE-L "
        "(95 % interval +10.0 to +10.0)."
    )
    found = standing(*group("a", 60, 50), *[record("pooled", 58 + s, s, group="a") for s in (0, 1, 2)])
    assert "is 2.0 points ahead of the best of 2 rivals, pooled, in ROUGE-L" in sentence(found)
    assert len(sentences(found)) == 1  # by likelihood
    assert "hold for this group." in caveat(found)


def test_the_choice_of_the_best_rival_is_owned_up_to():
    found = standing(*group("a", 60, 50))
    assert "favours the rivals" not in caveat(found)  # there is one rival
    found = standing(*group("a", 60, 50), *[record("pooled", 50.0, s, group="a") for s in (0, 1, 2)])
    assert "favours the rivals, by about" in caveat(found)
    assert "over 3 seeds" in caveat(found)


def test_one_seed_and_fewer_seeds_are_told():
    found = standing(record(), record("local", 40))
    assert "over 1 seed," in caveat(found)
    assert "one seed only" in caveat(found)
    found = standing(*group("a", 60, 50), record(group="b"), record("local", 40, group="b"))
    assert "over 1 to 3 seeds" in caveat(found)


def test_several_settings_are_no_one_recipe():
    records = [*group("a", 60, 50), *group("b", 60, 50, lr=8e-3)]
    assert "one recipe" not in sentence(standing(*records))
    records = [*group("a", 60, 50), *group("b", 60, 50), record("local", 45, 0, group="b", lr=8e-3)]
    assert "one recipe" in sentence(standing(*records))
    assert "Several settings of local were run here" in caveat(standing(*records))


def test_the_highest_rank_of_one_lora_for_all_is_told():
    ranks = [record("pooled", 40, 0, group="a", rank=rank) for rank in (8, 32)]
    assert "(pooled) was run at rank 32, and at none higher" in caveat(standing(*group("a", 60, 50), *ranks))
    assert "at none higher" not in caveat(standing(*group("a", 60, 50)))


def test_validation_examples_are_told():
    assert "Measured on validation examples" in caveat(standing(*group("a", 60, 50, split="val")))


def test_in_nats_where_nothing_was_written():
    def silent(nll):
        return {"red": scores([], nll).model_copy(update={"nll": [nll], "tokens": [1]})}

    found = standing(record(scores=silent(1.0), tasks=("red",)), record("local", scores=silent(1.25), tasks=("red",)))
    assert "CoLoRA is 0.250 nats ahead of local in token NLL" in sentence(found)
    assert sentences(found) == []


def test_a_mean_over_points_leaves_nats_out():
    silent = {"red": scores([], 1.0).model_copy(update={"nll": [1.0], "tokens": [1]})}
    alone = [record(method, scores=silent, tasks=("red",), group="b") for method in ("colora", "local")]
    found = standing(*group("a", 60, 50), *alone)
    assert [lead.difference.mean for lead in found.leads] == [pytest.approx(10)]
    assert found.unit == "points"
    assert len(found.pairs) == 2


def test_many_winners_are_counted():
    records = [record("colora", 50, group=f"g{n}") for n in range(7)]
    records += [record(f"m{n}", 60, group=f"g{n}") for n in range(7)]
    assert winners(standing(*records)).endswith("m2 on g2 and one of 4 other methods on 4.")


def test_nothing_to_compare():
    assert standing(record()) is None
    assert standing(record(error="died"), record("local")) is None
