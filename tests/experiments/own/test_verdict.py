"""What is recommended, and how it is said."""

import pytest

from colora.experiments.own.choose import choose_settings
from colora.experiments.own.contenders import CONTENDERS
from colora.experiments.own.plan import Plan
from colora.experiments.own.verdict.judge import Judged, judge
from colora.experiments.own.verdict.measure import EXACT_MATCH, ROUGE, measure_of
from colora.experiments.own.verdict.sentences import verdict_sentences
from colora.tasks.schema import Example, Task
from tests.helpers.own_tasks import example_task, final_record, final_trial

FACTS = {"tasks": ["a", "b"], "prompt": "qa", "plan": Plan(seeds=1, settings=1, folds=0, steps=60), "given_up": []}
CHOSEN = {one.method: one.settings[0] if one.settings else None for one in CONTENDERS}


def spread(mean, by=1.0, count=40):
    """Scores with this mean, half of them above and half below."""
    return [mean + by * (1 if number % 2 else -1) for number in range(count)]


def verdict_of(*records, **facts):
    judged = Judged(CONTENDERS, records, CHOSEN, ROUGE, [16, 16])
    verdict = judge(judged, FACTS | facts)
    return verdict, verdict_sentences(verdict, ROUGE)


def record(method, a, b=None, nats=1.0, **options):
    return final_record(method, {"a": spread(a), "b": spread(a if b is None else b)}, nats, **options)


def test_the_best_is_recommended_if_it_is_better_beyond_noise():
    verdict, said = verdict_of(record("base", 10.0), record("local", 60.0), record("colora", 70.0, numbers=(1000, 250)))
    assert (verdict.recommended, verdict.best, verdict.runner_up, verdict.as_good) == (
        "colora", "colora", "local", ["colora"],
    )  # fmt: skip
    assert verdict.gain.mean == pytest.approx(10.0)
    assert verdict.gain.low == pytest.approx(10.0)  # the same examples on both sides
    assert said[0] == "Use CoLoRA: ROUGE-L 70.0, token NLL 1.000 nats, on 80 test answers of 2 tasks."
    assert said[1] == "It gains 10.0 (95 % interval 10.0 to 10.0) in ROUGE-L over the next best, a LoRA for each task."
    assert said[2] == "Over the base model as it is it gains 60.0 (95 % interval 60.0 to 60.0)."
    assert said[4] == "A task costs 1\xa0kB, and all tasks together 4\xa0kB."
    (one, *_) = verdict.outcomes
    assert (one.method, one.task_bytes, one.shared_bytes, one.setting) == (
        "colora", 1000, 4000, "lr 0.001, core lr 0.02",
    )  # fmt: skip


def noisy(method, mean, nats=1.0, **options):
    """As good as any of its kind within noise: scores of other examples are high."""
    sign = 1 if method in ("local", "base") else -1
    values = [mean + 30 * sign * (1 if number % 2 else -1) for number in range(40)]
    return final_record(method, {"a": values, "b": values}, nats, **options)


def test_of_what_does_as_well_the_simplest_is_recommended():
    verdict, said = verdict_of(record("base", 10.0), noisy("pooled", 60.0), noisy("local", 62.0), noisy("oppu", 61.0))
    assert (verdict.recommended, verdict.best) == ("pooled", "local")
    assert verdict.as_good == ["pooled", "local", "oppu"]
    assert said[1].startswith("It is the simplest of those that do as well as the best within noise: ")
    assert "The highest score is that of a LoRA for each task, 62.0." in said[1]
    assert said[2].startswith("Against a LoRA for each task the difference in ROUGE-L is −2.0 (95 % interval −")
    assert said[2].endswith("within noise.")


def test_what_finds_the_right_answers_less_likely_is_not_as_good():
    verdict, said = verdict_of(noisy("base", 60.0, nats=3.0), noisy("colora", 62.0, nats=1.0))
    assert (verdict.recommended, verdict.as_good) == ("colora", ["colora"])
    decides = (
        "It finds the right answers likelier, which decides: its token NLL is lower by 2.000 (95 % interval 2.000 to"
    )
    assert f": within noise. {decides} 2.000)." in said[1]
    assert (verdict.gain_nats.low, verdict.outcomes[1].behind_nats) == (pytest.approx(2.0), verdict.gain_nats)


def test_nothing_may_be_the_answer():
    verdict, said = verdict_of(record("base", 80.0), record("local", 60.0))
    assert (verdict.recommended, verdict.gain_over_base) == ("base", None)
    assert "A task costs nothing" in said[3]


def test_tasks_that_are_better_off_alone_are_named():
    verdict, said = verdict_of(
        record("base", 1.0), record("colora", 70.0, 70.0), record("pooled", 60.0), record("local", 50.0, 75.0)
    )
    assert [one.task for one in verdict.alone] == ["b"]
    assert verdict.alone[0].gain.mean == pytest.approx(5.0)
    assert said[3] == "Better off with a LoRA of their own: b (by 5.0 (95 % interval 5.0 to 5.0))."
    verdict, said = verdict_of(record("base", 1.0), record("colora", 70.0), record("local", 60.0))
    assert said[3] == "No task is better off with a LoRA of its own alone, as far as this test can tell."


def test_several_seeds_count_alike_and_what_is_not_trained_stands_for_all():
    seeds = [record("colora", 70.0 + seed, seed=seed) for seed in range(3)]
    verdict, _ = verdict_of(record("base", 10.0), *seeds)
    assert verdict.gain.mean == pytest.approx(61.0)
    assert [(one.method, one.seeds, one.score) for one in verdict.outcomes] == [
        ("colora", 3, pytest.approx(71.0)), ("base", 1, pytest.approx(10.0)),
    ]  # fmt: skip


@pytest.mark.parametrize(("fewer", "end"), [(50.0, "would probably do more"), (71.0, "may not do more")])
def test_the_curve_says_whether_more_examples_would_help(fewer, end):
    few = final_record("colora", {"a": spread(fewer), "b": spread(fewer)}, examples=8)
    least = final_record("colora", {"a": spread(20.0), "b": spread(20.0)}, examples=4)
    verdict, said = verdict_of(record("base", 10.0), record("colora", 70.0), few, least)
    assert [(one.examples, one.score) for one in verdict.curve if one.method == "colora"] == [
        (4, 20.0), (8, fewer), (16, 70.0),
    ]  # fmt: skip
    assert said[-1].startswith("From 8 to 16 examples a task it gains")
    assert said[-1].rstrip(".").endswith(end)


def test_few_test_answers_have_no_interval():
    few = {"a": [10.0], "b": [20.0]}
    verdict, said = verdict_of(final_record("base", few), final_record("colora", {"a": [70.0], "b": [90.0]}))
    assert (verdict.gain.answers, verdict.gain.is_certain, verdict.gain.is_better) == (2, False, False)
    told = (
        "the difference in ROUGE-L is 65.0 (of 2 test answers: too few for an interval). With 6 test answers or more,"
    )
    assert told in said[1]


@pytest.mark.parametrize(("count", "told"), [(2, False), (3, True), (24, True), (25, False)])
def test_few_test_answers_are_said_to_tell_little(count, told):
    of_both = {"a": spread(10.0, 1.0, count), "b": spread(20.0, 1.0, count)}
    _, said = verdict_of(final_record("base", of_both), final_record("colora", of_both))
    few = f"{2 * count} test answers tell only large differences from noise"
    assert any(one.startswith(few) for one in said) == told


def test_a_task_needs_enough_answers_of_its_own_to_be_called_better_off_alone():
    """Three coins fall on the same side every fourth time."""

    def scored(method, mean, count):
        return final_record(method, {"a": spread(60.0), "b": spread(mean, 1.0, count)})

    for count, found in ((3, []), (6, ["b"])):
        verdict, _ = verdict_of(scored("colora", 50.0, count), scored("local", 80.0, count))
        assert [one.task for one in verdict.alone] == found


def test_tasks_with_a_single_answer_have_the_spread_over_tasks():
    """A bootstrap within tasks would draw the same answer every time, and call any difference certain."""
    scores = {f"t{number}": [50.0 + (40.0 if number % 2 else -40.0)] for number in range(8)}
    names = {"tasks": list(scores)}
    verdict, said = verdict_of(
        final_record("base", {key: [49.0] for key in scores}), final_record("colora", scores), **names
    )
    assert verdict.gain.low < 0 < verdict.gain.high
    assert (verdict.recommended, verdict.best) == ("base", "colora")
    assert any("within noise" in line for line in said)


def test_a_single_task_is_not_told_whether_it_is_better_off_alone():
    records = [final_record(method, {"a": spread(mean)}) for method, mean in (("pooled", 50.0), ("local", 60.0))]
    _, said = verdict_of(*records, tasks=["a"])
    assert not [line for line in said if "of its own alone" in line or "of their own" in line]


def test_a_lora_each_is_not_recommended_and_denied_at_once():
    values = [(70.0 if number < 4 else 58.0) for number in range(5)]
    shared, own = (dict.fromkeys("ab", scores) for scores in ([60.0] * 5, values))
    verdict, said = verdict_of(final_record("colora", shared), final_record("local", own))
    assert (verdict.recommended, verdict.gain.is_certain, verdict.alone) == ("local", True, [])
    told = "This rests on all tasks together: for none of them alone is the gain in ROUGE-L more than noise."
    assert told in said


def test_seeds_at_which_a_training_failed_are_not_made_up():
    seeds = [record("colora", 70.0 + 10 * seed, seed=seed) for seed in range(3)]
    verdict, _ = verdict_of(record("base", 10.0), *seeds, record("local", 60.0))
    assert verdict.runner_up == "local"
    assert verdict.gain.mean == pytest.approx(10.0)  # at the one seed that both have


def test_what_was_given_up_left_out_or_failed_is_said():
    _, said = verdict_of(
        record("base", 10.0), given_up=["seeds: 1", "folds: 2"], missing=["oppu: none"], failed={"local": "boom"}
    )
    assert said[-3:] == [
        "To keep the time, less was run: seeds: 1; folds: 2.",
        "Not compared: oppu: none.",
        "Failed, and so not compared: local: boom",
    ]


def task_with(*outputs):
    examples = tuple(Example(f"{number}", (output,)) for number, output in enumerate(outputs))
    return Task("a", {"train": examples, "val": (), "test": ()}, "", None)


def test_labels_are_judged_by_exact_match_and_texts_by_rouge():
    labels, words = task_with(*["yes", "no"] * 6), example_task("b", 9)
    free = task_with(*(f"answer {number}" for number in range(12)))
    assert measure_of([labels]) is EXACT_MATCH
    assert measure_of([free]) is ROUGE
    assert measure_of([labels, free]) is ROUGE
    assert measure_of([words]) is EXACT_MATCH  # one letter for all


# ---- settings ---------------------------------------------------------------------------------------------------


def fold(**scores):
    """A record of each setting of pooled, by its number."""
    pooled = next(one for one in CONTENDERS if one.method == "pooled")
    records = []
    for number, (score, nats) in scores.items():
        setting = pooled.settings[int(number[1:])]
        trial = final_trial("pooled", lr=setting.lr, core_lr=setting.core_lr)
        records.append(final_record("pooled", {"a": [score]}, nats).model_copy(update={"trial": trial}))
    return records


def chosen(*folds):
    pooled = next(one for one in CONTENDERS if one.method == "pooled")
    found = choose_settings([pooled], folds, ROUGE)
    return pooled.settings.index(found["pooled"]) if found else None


def test_the_setting_with_the_best_mean_over_folds_is_chosen():
    assert chosen(fold(s0=(50, 1), s1=(60, 1)), fold(s0=(80, 1), s1=(60, 1))) == 0
    assert chosen(fold(s0=(50, 1), s1=(60, 1)), fold(s0=(60, 1), s1=(60, 1))) == 1


def test_nats_decide_between_equals():
    assert chosen(fold(s0=(50, 1.0), s1=(50, 0.5))) == 1


def test_a_setting_that_failed_on_a_fold_is_out_and_a_contender_without_any():
    assert chosen(fold(s0=(50, 1), s1=(90, 1)), fold(s0=(50, 1))) == 0
    assert chosen(fold(s1=(90, 1)), fold(s0=(50, 1))) is None


def test_without_folds_the_first_setting_is_taken():
    assert chosen() == 0
