"""What is planned, how long it takes, and what is given up first."""

import pytest

from colora.common.text import readable_time
from colora.errors import ConfigError
from colora.experiments.own.contenders import CONTENDERS, MOST_SETTINGS
from colora.experiments.own.data import OwnTasks
from colora.experiments.own.estimate import OVERHEAD, Timings, fit_plan, measure_timings
from colora.experiments.own.plan import Plan, Trials, full_plan, smaller_plans
from colora.experiments.own.planned import kept_timings
from tests.helpers.own_tasks import example_task, final_record, final_trial

TASKS = [example_task("a", 16), example_task("b", 12)]
METHODS = [one.method for one in CONTENDERS]
TRAINED = [one for one in CONTENDERS if one.trained]


def trials(tasks=TASKS):
    data = OwnTasks(tasks)
    template = final_trial("base", group=data.group, test=3, generate=3, steps=1)
    return Trials(template, CONTENDERS, data)


def timings(step=1.0, answer=0.0, fixed=0.0):
    steps = {one.method: step if one.trained else 0.0 for one in CONTENDERS}
    return Timings(step=steps, answer=dict.fromkeys(METHODS, answer), fixed=fixed)


def test_every_contender_that_is_trained_has_as_many_settings():
    assert {len(one.settings) for one in TRAINED} == {MOST_SETTINGS}
    assert {one.method for one in CONTENDERS if not one.trained} == {"base", "in-context"}
    assert all(setting.core_lr is None for one in TRAINED if one.method != "colora" for setting in one.settings)


def test_the_whole_plan():
    plan = full_plan(OwnTasks(TASKS), 60, [4, 8, 16, 99, 4])
    assert plan == Plan(seeds=3, settings=3, folds=3, curve=(4, 8), steps=60)
    assert str(plan) == ("3 settings each on 3 folds, 60 steps, 3 seeds, also with 4, 8 examples a task")
    with_val = OwnTasks([example_task("a", 5, val=8)])
    assert full_plan(with_val, 60, ()).folds == 1
    alone = OwnTasks([example_task("a", 1)])
    assert full_plan(alone, 60, ()) == Plan(seeds=3, settings=1, folds=0, steps=60)


def test_stages_and_their_trials():
    plan = Plan(seeds=2, settings=2, folds=3, curve=(4,), steps=60)
    stages = trials().expected(plan)
    assert [(stage.name, stage.needed, len(stage.trials)) for stage in stages] == [
        ("choosing settings, fold 1 of 3", True, 8),
        ("choosing settings, fold 2 of 3", False, 8),
        ("choosing settings, fold 3 of 3", False, 8),
        ("all examples", True, 6),
        ("fewer examples", False, 5),
        ("seed 1", False, 4),
    ]
    every = [trial.key for stage in stages for trial in stage.trials]
    assert len(every) == len(set(every))
    assert {(trial.split, trial.seed) for trial in stages[0].trials} == {("val", 0)}
    assert {trial.split for stage in stages[3:] for trial in stage.trials} == {"test"}
    assert {(trial.steps, trial.warmup_steps) for trial in stages[5].trials} == {(60, 6)}


def test_what_is_not_trained_is_the_same_trial_whatever_the_plan():
    one, other = (trials().expected(Plan(seeds=1, settings=1, folds=0, steps=steps))[0].trials for steps in (60, 30))
    same = {trial.method for trial in one} & {
        first.method for first, second in zip(one, other, strict=True) if first == second
    }
    assert same == {"base", "in-context"}


def test_what_is_given_up_and_in_which_order():
    plan = Plan(seeds=3, settings=3, folds=3, curve=(4, 8), steps=60)
    assert [what for _, what in smaller_plans(plan)] == [
        "seeds: 2",
        "seeds: 1",
        "settings of each contender: 2",
        "folds: 2",
        "folds: 1",
        "settings of each contender: 1, so that none is chosen",
        "points of the curve besides all examples: 1",
        "points of the curve besides all examples: 0",
        "steps: 45 of 60",
        "steps: 30 of 60",
        "steps: 21 of 60",
        "steps: 15 of 60",
    ]


def test_smaller_plans_take_less_time():
    some, plan, times = trials(), Plan(seeds=3, settings=3, folds=3, curve=(4, 8), steps=60), timings(answer=0.1)
    seconds = [
        sum(times.seconds(trial) for stage in some.expected(one) for trial in stage.trials)
        for one in (plan, *(smaller for smaller, _ in smaller_plans(plan)))
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert len(set(seconds)) == len(seconds)


def test_the_largest_plan_that_fits_is_taken():
    some, plan = trials(), Plan(seeds=3, settings=3, folds=3, curve=(), steps=60)
    whole, given_up, seconds, all_of_it, larger = fit_plan(plan, some, timings(), minutes=1000)
    assert (whole, given_up) == (plan, [])
    # 4 contenders × (9 + 3) trainings of 60 seconds
    assert seconds == all_of_it == larger == pytest.approx(1.1 * 48 * 60 + OVERHEAD)
    smaller, given_up, seconds, whole, larger = fit_plan(plan, some, timings(), minutes=46)
    assert (smaller.seeds, smaller.settings, smaller.folds) == (1, 3, 3)
    assert given_up == ["seeds: 1"]
    assert seconds <= 46 * 60 < larger
    assert (whole, larger) == (all_of_it, pytest.approx(1.1 * 44 * 60 + OVERHEAD))  # two seeds
    smaller, given_up, _, _, larger = fit_plan(plan, some, timings(), minutes=20)
    # Without the folds there is time for a second seed again.
    assert (smaller.seeds, smaller.settings, smaller.folds) == (2, 2, 1)
    assert given_up == ["seeds: 2", "settings of each contender: 2", "folds: 1"]
    assert larger == pytest.approx(1.1 * 20 * 60 + OVERHEAD)  # with the third seed
    smaller, given_up, seconds, *_ = fit_plan(plan, some, timings(), minutes=13)
    assert (smaller.seeds, smaller.settings, smaller.folds) == (2, 1, 0)
    assert given_up == ["seeds: 2", "settings of each contender: 1, so that none is chosen", "folds: 1"]
    assert seconds <= 13 * 60


def test_time_that_is_over_is_not_planned():
    some, plan = trials(), Plan(seeds=3, settings=3, folds=3, curve=(), steps=60)
    assert fit_plan(plan, some, timings(), minutes=46)[1] == ["seeds: 1"]
    assert fit_plan(plan, some, timings(), 46, spent=26 * 60) == fit_plan(plan, some, timings(), minutes=20)
    with pytest.raises(ConfigError, match=r"takes about 86 seconds .* --minutes 4 or more"):
        fit_plan(plan, some, timings(), minutes=3, spent=150.0)


def test_settings_are_chosen_by_a_hundred_examples_of_a_task_at_most():
    data = OwnTasks([example_task("a", 5, val=300)])
    some = Trials(final_trial("base", group=data.group), CONTENDERS, data)
    (stage,) = some.choosing(full_plan(data, 60, ()))
    assert {trial.test for trial in stage.trials} == {100}
    assert len(data.of(stage.trials[0])[0].splits["val"]) == 100


def test_a_contender_that_fails_while_it_is_timed_stops_nothing():
    def run(trial, tasks):
        if trial.method in broken:
            raise ConfigError("no room")
        return final_record(trial.method, {"a": [1.0]})

    broken = {"in-context", "oppu"}
    times = measure_timings(run, trials())
    assert {one for one in METHODS if times.answer[one] == 0} == broken
    assert times.seconds(trials().of(CONTENDERS[1], None, 60, 0)) == times.fixed
    broken = {"base"}
    with pytest.raises(ConfigError, match="no room"):
        measure_timings(run, trials())


def test_timings_are_kept_for_another_budget(tmp_path):
    path, told, made = tmp_path / "timings.json", [], []

    def make():
        made.append(timings())
        return made[-1]

    first = kept_timings(path, "these tasks", make, told.append)
    assert kept_timings(path, "these tasks", make, told.append) == first
    assert len(made) == 1
    assert "timings.json; remove the file to time them again" in told[0]
    kept_timings(path, "other tasks", make, told.append)
    path.write_text("{")
    kept_timings(path, "other tasks", make, told.append)
    assert len(made) == 3


def test_a_budget_that_is_too_small_is_refused_with_the_least_that_will_do():
    some, plan = trials(), Plan(seeds=3, settings=3, folds=3, curve=(), steps=60)
    with pytest.raises(
        ConfigError, match=r"--minutes 1: the smallest .* takes about 86 seconds .* --minutes 2 or more"
    ):
        fit_plan(plan, some, timings(), minutes=1)
    assert fit_plan(plan, some, timings(), minutes=2)[0].steps == 21


def test_estimates_are_corrected_by_what_trials_took():
    times = timings(step=0.01, fixed=0.0)
    record = final_record("local", {"a": [1.0]}, steps=100)  # took 2 seconds, expected 1
    assert times.corrected([record]).factor == pytest.approx(2.0)
    assert times.corrected([]).factor == 1.0


def test_steps_are_timed_where_something_is_trained_and_answers_where_nothing_is():
    probes = []

    def run(trial, tasks):
        probes.append(trial)
        seconds = {"train": 0.3 * trial.steps, "evaluate": 0.5 * trial.test}
        return final_record(trial.method, {"a": [1.0]}).model_copy(update={"seconds": seconds})

    times = measure_timings(run, trials())
    assert [trial.method for trial in probes] == ["base", *METHODS]
    assert {trial.generate for trial in probes if trial.steps > 1} == {0}
    assert times.step == {one.method: pytest.approx(0.3 if one.trained else 0.0) for one in CONTENDERS}
    assert times.answer["base"] == pytest.approx((0.3 + 3 * 0.5) / 3)
    assert times.answer["colora"] == pytest.approx(1.3 * times.answer["base"])


def test_readable_time():
    assert (readable_time(119), readable_time(120), readable_time(800)) == ("119 seconds", "2 minutes", "13 minutes")
