"""Running experiments: nothing is run twice, nothing is lost, and what died is told."""

import pytest

from colora.common.failure import describe_error
from colora.common.provenance import SOURCE
from colora.errors import CheckpointError, ConfigError, InterruptedRunError
from colora.experiments.code import trial_code
from colora.experiments.display import result_line, trial_names
from colora.experiments.plan import planned_trials
from colora.experiments.store import Store
from colora.experiments.trial import TaskScores, TrialRecord, read_trial_records
from tests.helpers.experiment_fakes import FakeRunner, boom, experiment, run
from tests.helpers.run_files import content

# ---- run, keep, go on --------------------------------------------------------------------------------------------


def test_every_trial_is_run_once_kept_and_collected(tmp_path):
    said = []
    summary, runner = run(tmp_path, log=said.append)
    trials = planned_trials(experiment())
    assert runner.ran == [trial.key for trial in trials]
    assert runner.loaded == [("smollm2", "fp32")]
    assert (summary.trials, summary.finished, summary.failed, summary.elsewhere) == (6, 6, {}, 0)
    assert summary.records == tmp_path / "small.jsonl"
    records = read_trial_records(summary.records)
    assert [record.trial for record in records] == trials
    assert {record.code for record in records} == {trial_code()}
    assert {"date", "git_revision", "torch", "device"} <= records[0].environment.keys()
    assert said[1] == "2/6 colora mine implicit n16 seed 0: ROUGE-L 80.0, token NLL 0.500, 3 s"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "small.jsonl"]
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == sorted(f"{c.key}.json" for c in trials)


def test_tasks_are_asked_for_as_the_trial_says(tmp_path):
    _, runner = run(
        tmp_path, plan=experiment(seeds=3, regimes="explicit", examples=5, test=7, generate=2), data=tmp_path
    )
    wanted = {"examples": 5, "seed": 3, "regime": "explicit", "val": 0, "test": 7, "data": tmp_path}
    assert runner.tasks == [[("date-es", wanted), ("date-pt", wanted)]] * 3
    _, runner = run(tmp_path, plan=experiment(test=7, generate=2, split="val"))
    assert {(asked["val"], asked["test"]) for tasks in runner.tasks for _, asked in tasks} == {(7, 0)}
    assert runner.tasks[0] is runner.tasks[1]  # made once for neighbouring trials


def test_a_second_call_runs_nothing_and_leaves_the_trials_alone(tmp_path):
    run(tmp_path)
    before = content(tmp_path / "cells")
    summary, runner = run(tmp_path)
    assert (runner.ran, runner.loaded, summary.finished) == ([], [], 6)
    assert content(tmp_path / "cells") == before


def test_a_copy_of_the_collected_records_alone_goes_on(tmp_path):
    runner = FakeRunner()
    summary, _ = run(tmp_path / "first", runner, plan=experiment(seeds=0))
    (tmp_path / "second").mkdir()
    copy = tmp_path / "second" / summary.records.name
    copy.write_bytes(summary.records.read_bytes())
    again, _ = run(tmp_path / "second", plan=experiment(seeds=[0, 1]))
    assert len(again.ran) == again.trials - summary.trials
    assert summary.records.read_text() in copy.read_text()


def test_experiments_share_the_trials_they_have_in_common(tmp_path):
    run(tmp_path)
    wider = experiment(name="wider", methods=["base", "local", "fedit"], core_lr=0.3)
    summary, runner = run(tmp_path, plan=wider)
    assert {key.split("-")[0] for key in runner.ran} == {"local"}
    assert (summary.trials, summary.finished) == (6, 6)
    assert [record.trial for record in read_trial_records(tmp_path / "wider.jsonl")] == planned_trials(wider)


def test_only_some_trials(tmp_path):
    summary, runner = run(tmp_path, only="colora-*")
    assert runner.ran
    assert all(key.startswith("colora-") for key in runner.ran)
    assert (summary.trials, summary.finished) == (6, len(runner.ran))
    with pytest.raises(ConfigError, match=r"found 'colera-\*', which fits none of 6; the first of them is '\w+-mine-"):
        run(tmp_path, only="colera-*")


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    def interrupt(trial):
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match=r"stopped with 2 of 6 trials finished; the same command goes on"):
        run(tmp_path, FakeRunner({"fedit": interrupt}))
    assert [path.suffix for path in (tmp_path / "cells").iterdir()] == [".json"] * 2  # and no lock
    summary, runner = run(tmp_path)
    assert (len(runner.ran), summary.finished) == (4, 6)


# ---- trials that die ----------------------------------------------------------------------------------------------


def test_a_trial_that_dies_is_recorded_and_tried_again(tmp_path):
    said = []
    summary, runner = run(tmp_path, FakeRunner({"colora": boom}), log=said.append)
    assert len(runner.ran) == 6
    assert (summary.finished, list(summary.failed)) == (4, [f"colora mine implicit n16 seed {s}" for s in (0, 1)])
    assert said[1] == "2/6 colora mine implicit n16 seed 0: failed: RuntimeError: no rank 8 in .../x.bin"
    records = read_trial_records(summary.records)
    assert [record.error is None for record in records] == [True, False, True] * 2
    error = records[1].error
    assert error.splitlines()[0] == "RuntimeError: no rank 8 in .../x.bin"
    assert "colora/experiments/worker.py:" in error
    assert "experiment_fakes.py:" in error
    assert str(tmp_path) not in error
    assert str(SOURCE) not in error
    assert (records[1].code, records[1].scores) == (trial_code(), {})
    summary, runner = run(tmp_path)
    assert {key.split("-")[0] for key in runner.ran} == {"colora"}
    assert (summary.finished, summary.failed) == (6, {})


def test_a_result_that_is_no_number_is_a_failure(tmp_path):
    def diverged(trial):
        scores = {name: TaskScores(nll=[float("nan")], tokens=[1]) for name in trial.tasks}
        return TrialRecord(trial=trial, scores=scores)

    summary, _ = run(tmp_path, FakeRunner({"colora": diverged}))
    assert (summary.finished, len(summary.failed)) == (4, 2)
    assert "valid number" in Store(tmp_path).read(planned_trials(experiment())[1]).error
    assert run(tmp_path)[0].finished == 6


def test_tasks_that_cannot_be_made_are_found_before_anything_runs(tmp_path):
    def no_tasks(names, **wanted):
        raise ConfigError(f"no task {names[0]!r}")

    runner = FakeRunner()
    with pytest.raises(ConfigError, match="no task 'date-es'"):
        run(tmp_path, runner, make_tasks=no_tasks)
    assert (runner.ran, runner.loaded) == ([], [])


def test_a_base_that_cannot_be_loaded_is_no_failure_of_trials(tmp_path):
    def no_base(base, dtype):
        raise ConfigError("no such base")

    with pytest.raises(ConfigError, match="no such base"):
        run(tmp_path, no_base)
    assert not list((tmp_path / "cells").glob("*"))


def test_a_full_disk_stops_the_run(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("colora.common.files.os.replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        run(tmp_path)
    assert not list((tmp_path / "cells").glob("*"))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("in '/" + "home/ann/a b.txt'", "in '.../a b.txt'"),
        ("C:\\Users\\ann\\x.bin is bad", ".../x.bin is bad"),
        ("see https://example.org/a/b.html", "see https://example.org/a/b.html"),
        ("a/b/c and 3/4 and ~/x/y", "a/b/c and 3/4 and ~/x/y"),
        ("", ""),
    ],
)
def test_errors_name_no_folders_of_this_machine(message, told):
    assert describe_error(OSError(message)) == f"OSError: {told}".removesuffix(": ")


# ---- what is shown -----------------------------------------------------------------------------------------------


def test_names_say_what_tells_trials_apart():
    methods = {"base": None, "colora": [{"core_lr": 0.1}, {"core_lr": 0.2}], "colora-mean": {"options": {"pull": 2}}}
    names = list(
        trial_names(planned_trials(experiment(methods=methods, seeds=4, rank=[2, 4], tasks_used=[1, 2]))).values()
    )
    assert names[:4] == [
        "base mine k1 implicit n16 seed 4",
        "colora mine k1 implicit n16 r2 core 0.1 seed 4",
        "colora mine k1 implicit n16 r2 core 0.2 seed 4",
        "colora-mean mine k1 implicit n16 r2 pull 2 seed 4",
    ]
    assert len(set(names)) == len(names)


def test_a_trial_without_generation_has_no_rouge():
    trial = planned_trials(experiment())[0]
    scores = {name: TaskScores(nll=[1.0], tokens=[4]) for name in trial.tasks}
    assert result_line(TrialRecord(trial=trial, scores=scores, seconds={"a": 1, "b": 0.6})) == "token NLL 0.250, 2 s"
