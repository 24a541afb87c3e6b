"""What a recovery experiment may say, and what each of its trials gives."""

from statistics import median

import pytest

from colora.errors import ColoraError, ConfigError
from colora.theory.experiments.config import load_recovery
from colora.theory.experiments.measure import make_problem, measure
from colora.theory.experiments.records import ProblemSettings, read_recovery_records, write_recovery_records
from colora.theory.experiments.summary import paired, rows, table_markdown, varied
from colora.theory.freedom import degrees_of_freedom
from tests.helpers.recovery_files import small, write_small


def only(experiment, method):
    return [trial for trial in experiment.trials() if trial.method == method]


def test_every_combination_is_a_problem_and_each_method_a_trial_of_it():
    trials = small().trials()
    assert [(trial.problem.users, trial.problem.samples) for trial in trials[::2]] == [(2, 9), (2, 40), (6, 9), (6, 40)]
    assert [trial.method for trial in trials[:2]] == ["alternating", "local-least-squares"]
    assert {trial.seeds for trial in trials} == {(0, 1)}
    assert len({trial.key for trial in trials}) == len(trials) == 8


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"problem": {"users": 2}}, "problem: expected one of 'samples' and 'times_freedom'"),
        ({"problem": {"samples": 9, "times_freedom": 2.0}}, "problem: expected one of 'samples' and 'times_freedom'"),
        ({"problem": {"samples": 9, "newcomer": 4}}, "expected samples of new users in study 'newcomer', and nowhere"),
        ({"study": "newcomer"}, "expected samples of new users in study 'newcomer'"),
        ({"study": "digits"}, "expected samples, and d_out: 8, d_in: 8, the size of an image"),
        ({"problem": {"samples": 0}}, "greater than or equal to 1"),
        ({"problem": {"sample": 3}}, "sample: no such field; did you mean 'samples'?"),
        ({"methods": {}}, "methods: expected at least one method, found none"),
        ({"methods": {"x": {}}}, "x: expected one of 'solver' and 'baseline', found none"),
        ({"methods": {"x": {"solver": "alternating", "baseline": "pooled"}}}, "found both"),
        ({"methods": {"x": {"solver": "newton"}}}, "methods.x.solver: expected 'alternating'"),
        ({"methods": {"x": {"solver": "second-order", "splits": 2}}}, "splits with solver 'alternating' only"),
        ({"seeds": []}, "seeds: expected at least one seed, found none"),
        ({"name": "a/b"}, "name: expected 1 to 100 letters"),
        ({"figure": "pie"}, "figure: expected 'phase'"),
        ({"colour": "red"}, "colour: no such field"),
    ],
)
def test_a_faulty_experiment_is_refused_with_its_place(tmp_path, changes, fault):
    with pytest.raises(ConfigError) as refused:
        load_recovery(write_small(tmp_path / "e.yaml", **changes))
    assert "e.yaml" in str(refused.value)
    assert fault in str(refused.value)


def test_fields_change_on_the_command_line(tmp_path):
    plan = load_recovery(
        write_small(tmp_path / "e.yaml"), ["seeds=[7]", "problem.users=3", "methods.alternating.tol=0"]
    )
    assert plan.seeds == [7]
    assert {trial.problem.users for trial in plan.trials()} == {3}
    assert plan.methods["alternating"].tol == 0


@pytest.mark.parametrize("times", [1.1, 1.25, 1.5, 3.0])
@pytest.mark.parametrize("users", [1, 5, 20])
def test_multiples_of_the_degrees_of_freedom_are_met_exactly(users, times):
    problem = make_problem(ProblemSettings(users=users, times_freedom=times), seed=0)
    observations = int(problem.observed().observations.sum())
    wanted = times * degrees_of_freedom(users, 20, 20, 2)
    assert wanted <= observations + 1e-6 < wanted + 1
    assert problem.observed().observations.max() - problem.observed().observations.min() <= 1


def test_too_few_observations_for_everybody_to_have_one():
    with pytest.raises(ColoraError, match="expected a sample for each of 500 users, found 208"):
        make_problem(ProblemSettings(users=500, times_freedom=0.1, rank=2, d_out=20, d_in=20), seed=0)


def test_recovery_tells_exact_from_hopeless():
    found = {
        (row.values["users"], row.values["samples"], row.method): row
        for row in rows(list(map(measure, small().trials())))
    }
    assert found[6, 40, "alternating"].recovered == 1.0
    assert found[6, 40, "local-least-squares"].recovered == 1.0  # 40 samples for 30 numbers
    assert found[6, 9, "local-least-squares"].recovered == 0.0
    assert found[6, 9, "alternating"].record.exact == [True, True]
    assert found[6, 9, "local-least-squares"].record.exact == []


def test_noise_brings_the_bounds_and_the_estimate_is_near_them():
    problem = {"users": 6, "samples": 30, "d_out": 6, "d_in": 5, "rank": 1, "noise": 0.1}
    (trial,) = only(small(problem=problem, seeds=20), "alternating")
    record = measure(trial)
    squares = [sum(one**2 for one in values) for values in (record.errors, record.bounds)]
    assert 0.7 < squares[0] / squares[1] < 1.4
    assert all(alone > bound for alone, bound in zip(record.bounds_alone, record.bounds, strict=True))


def test_the_history_ends_at_the_error():
    (trial, *_) = only(small(history=True), "alternating")
    record = measure(trial)
    for history, error in zip(record.history, record.errors, strict=True):
        assert len(history) > 1
        assert history[-1][6] == pytest.approx(error, rel=1e-4)
        assert history[0][2] > history[-1][2]


def test_new_users_need_a_core_and_no_more():
    methods = {
        "colora": {"solver": "alternating"}, "oracle": {"baseline": "oracle"},
        "alone": {"baseline": "local-least-squares"},
    }  # fmt: skip
    problem = {"users": 6, "samples": 40, "d_out": 6, "d_in": 5, "rank": 1, "newcomer": 2}
    found = {
        row.method: row
        for row in rows(
            [measure(trial) for trial in small(study="newcomer", problem=problem, methods=methods).trials()]
        )
    }
    assert found["colora"].error < 1e-9
    assert found["oracle"].error < 1e-9
    assert 0.5 < found["alone"].error < 1.0
    assert [len(one) for one in found["colora"].record.users] == [20, 20]


def test_the_digits_are_told_apart_and_one_model_for_all_cannot():
    pytest.importorskip("sklearn")
    problem = {"d_out": 8, "d_in": 8, "rank": 5, "samples": 16}
    methods = {
        "colora": {"solver": "alternating", "ridge": 20, "max_iter": 30}, "pooled": {"baseline": "pooled", "ridge": 20},
        "oracle": {"baseline": "oracle"},
    }  # fmt: skip
    trials = small(study="digits", problem=problem, methods=methods, seeds=1).trials()
    colora, pooled = (measure(trial) for trial in trials[:2])
    assert colora.errors[0] < 0.05 < 0.2 < pooled.errors[0]
    assert len(colora.users[0]) == 45
    with pytest.raises(ColoraError, match="oracle: expected a problem whose truth is known, found real data"):
        measure(trials[2])
    odd = trials[0].model_copy(update={"problem": ProblemSettings(**problem | {"samples": 3})})
    with pytest.raises(ColoraError, match="expected an even number from 2 to"):
        measure(odd)


def test_records_come_back_as_they_were(tmp_path):
    records = [measure(trial) for trial in small().trials()[:2]]
    write_recovery_records(tmp_path / "r.jsonl", records)
    assert read_recovery_records(tmp_path / "r.jsonl") == records
    (tmp_path / "r.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(ColoraError, match=r"r\.jsonl:1: cell: Field required\n.*r\.jsonl:2: "):
        read_recovery_records(tmp_path / "r.jsonl")


def test_the_table_has_a_line_a_problem_and_a_column_a_method():
    records = [measure(trial) for trial in small().trials()]
    assert varied(records) == ["users", "samples"]
    lines = table_markdown(records).splitlines()
    assert lines[0] == "| users | samples | alternating | local-least-squares |"
    assert lines[5].startswith("| 6 | 40 | 2/2 | 2/2 |")
    noisy = [measure(trial) for trial in only(small(problem=small().problem | {"noise": [0.1]}), "alternating")]
    assert table_markdown(noisy).splitlines()[2].endswith(f"| {median(noisy[0].errors):.2g} |")
    with pytest.raises(ColoraError, match="expected finished trials"):
        rows([])


def test_paired_differences_want_the_same_seeds():
    first, second = rows([measure(trial) for trial in small().trials()[:2]])
    mean, low, high = paired(first, second)
    assert low <= mean <= high
    assert mean == pytest.approx(first.mean - second.mean)
    other = rows([measure(small(seeds=[5]).trials()[1])])[0]
    with pytest.raises(ColoraError, match="expected the same seeds"):
        paired(first, other)
