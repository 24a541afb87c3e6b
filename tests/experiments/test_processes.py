"""Several processes at one experiment: shards, locks, and what a killed process leaves."""

import json
import multiprocessing
import os
import signal
import socket
import time

import pytest

from colora.common.locks import file_lock, is_locked, waiting_lock
from colora.errors import ConfigError
from colora.experiments.plan import planned_trials
from colora.experiments.run import parse_shard
from colora.experiments.store import Store
from colora.experiments.trial import read_trial_records
from tests.helpers.experiment_fakes import FakeRunner, boom, experiment, run


def test_shards_cover_every_trial_once(tmp_path):
    first, one = run(tmp_path / "a", shard=(1, 2))
    second, two = run(tmp_path / "a", shard=(2, 2))
    assert sorted(one.ran + two.ran) == sorted(trial.key for trial in planned_trials(experiment()))
    assert (len(one.ran), len(two.ran)) == (3, 3)
    assert (first.finished, second.finished) == (3, 6)
    three = [run(tmp_path / "b", shard=(number, 4))[1].ran for number in (1, 2, 3, 4)]
    assert [len(ran) for ran in three] == [2, 2, 1, 1]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none(text):
    with pytest.raises(ConfigError, match="--shard: expected I/N with I from 1 to N, such as 1/2, found"):
        parse_shard(text)


def test_parse_shard():
    assert parse_shard("2/3") == (2, 3)


def lock_of(trial, output, **owner):
    path = Store(output).lock(trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": 0.0} | owner))
    return path


def test_a_trial_that_another_machine_runs_is_left_to_it(tmp_path):
    trial = planned_trials(experiment())[2]
    lock = lock_of(trial, tmp_path, host="elsewhere", pid=1)
    summary, runner = run(tmp_path)
    assert trial.key not in runner.ran
    assert (len(runner.ran), summary.finished, summary.elsewhere) == (5, 5, 1)
    assert lock.exists()
    assert Store(tmp_path).state(trial) == "running"


@pytest.mark.parametrize("owner", [{"pid": 2**22 + 1}, {"started": 1.0}])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, owner):
    lock = lock_of(planned_trials(experiment())[2], tmp_path, **owner)  # no such process, or another with its number
    summary, _ = run(tmp_path)
    assert (summary.finished, summary.elsewhere, lock.exists()) == (6, 0, False)


def test_a_lock_without_an_owner_is_believed_for_some_seconds(tmp_path):
    path = tmp_path / "x.lock"
    path.write_text("")
    with file_lock(path) as mine:
        assert not mine
    os.utime(path, (time.time() - 60,) * 2)
    with file_lock(path) as mine:
        assert mine
        assert is_locked(path)
        with file_lock(path) as again:
            assert not again
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_a_turn_ends(tmp_path):
    with file_lock(tmp_path / "x") as mine, waiting_lock(tmp_path / "x", seconds=0.1):
        assert mine
        assert (tmp_path / "x").exists()


def test_what_another_process_finishes_meanwhile_is_not_run_again(tmp_path):
    def other(trial):
        if trial.seed == 0:
            run(tmp_path, shard=(3, 6))  # fedit with seed 0
            boomed = FakeRunner({"fedit": boom})
            run(tmp_path, boomed, shard=(6, 6))  # and with seed 1, where it dies
        return FakeRunner().run(trial, [], lambda *counts: None)

    summary, runner = run(tmp_path, FakeRunner({"colora": other}))
    assert [key.split("-")[0] for key in runner.ran] == ["base", "colora", "base", "colora"]
    assert (summary.finished, list(summary.failed)) == (5, ["fedit mine implicit n16 seed 1"])


def slow_run(output, started):
    class Slow(FakeRunner):
        def run(self, trial, tasks, progress=None):
            if len(self.ran) == 2:
                started.touch()
                time.sleep(60)
            return super().run(trial, tasks, progress)

    run(output, Slow())


def test_kill_in_the_middle_and_go_on(tmp_path):
    started = tmp_path / "started"
    process = multiprocessing.get_context("fork").Process(target=slow_run, args=(tmp_path / "out", started))
    process.start()
    for _ in range(600):
        if started.exists():
            break
        time.sleep(0.05)
    third = planned_trials(experiment())[2]
    assert Store(tmp_path / "out").state(third) == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert Store(tmp_path / "out").lock(third).exists()
    assert Store(tmp_path / "out").state(third) == "-"
    summary, runner = run(tmp_path / "out")
    assert runner.ran == [trial.key for trial in planned_trials(experiment())[2:]]
    assert summary.finished == 6
    assert not list((tmp_path / "out").rglob("*.lock"))


def worker(output, ran):
    class Timed(FakeRunner):
        def run(self, trial, tasks, progress=None):
            time.sleep(0.01)
            (ran / f"{trial.key}.{os.getpid()}").touch()
            return super().run(trial, tasks, progress)

    run(output, Timed(), plan=experiment(seeds=list(range(10))))


def test_processes_on_one_folder_share_the_work(tmp_path):
    (tmp_path / "ran").mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=worker, args=(tmp_path / "out", tmp_path / "ran")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    keys = [path.name.rsplit(".", 1)[0] for path in (tmp_path / "ran").iterdir()]
    trials = planned_trials(experiment(seeds=list(range(10))))
    assert sorted(keys) == sorted(trial.key for trial in trials)
    assert [record.trial for record in read_trial_records(tmp_path / "out" / "small.jsonl")] == trials
    assert not list((tmp_path / "out").rglob("*.lock*"))
