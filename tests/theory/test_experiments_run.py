"""Running a recovery experiment: resumed, retried, shared by nobody, drawn."""

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import pytest

from colora.common.locks import file_lock
from colora.errors import ColoraError, ConfigError
from colora.theory.experiments.figures import draw_recovery
from colora.theory.experiments.measure import measure
from colora.theory.experiments.records import read_recovery_records, write_recovery_records
from colora.theory.experiments.run import CODE, run_recovery
from tests.helpers.recovery_files import small, write_small
from tests.helpers.run_files import cli


def test_a_finished_trial_is_never_run_again(tmp_path):
    first = run_recovery(small(), tmp_path, workers=2)
    assert (first.ran, len(first.records), first.failed) == (8, 8, [])
    assert [record.trial for record in first.records] == small().trials()  # in the order of the experiment
    before = first.path.read_bytes()
    assert run_recovery(small(), tmp_path).ran == 0
    assert first.path.read_bytes() == before
    made = first.records[0].environment
    assert {"date", "torch", "machine", "git_revision", "threads"} <= made.keys()
    assert len(first.records[0].code) == 64


def test_the_digest_is_of_everything_that_measuring_imports():
    script = (
        "import sys, colora.theory.experiments.measure; "
        "print(*(name for name in sys.modules if name.startswith('colora.')))"
    )
    names = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    imported = {name.removeprefix("colora.").replace(".", "/") for name in names if name.startswith("colora.theory.")}
    data = {"theory/experiments", "theory/experiments/records"}  # a package without code; what a record looks like
    assert {name for name in CODE if name.startswith("theory/")} == imported - data


def test_results_do_not_depend_on_the_number_of_processes(tmp_path):
    one, two = (run_recovery(small(), tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert [record.errors for record in one.records] == [record.errors for record in two.records]


def test_other_seeds_are_other_trials_and_throw_nothing_away(tmp_path):
    run_recovery(small(), tmp_path)
    assert run_recovery(small(seeds=3), tmp_path).ran == 8
    assert run_recovery(small(), tmp_path).ran == 0
    assert len(read_recovery_records(tmp_path / "small.jsonl")) == 16


def test_a_trial_that_dies_is_told_and_tried_again(tmp_path):
    methods = {"alternating": {"solver": "alternating"}, "oracle": {"baseline": "oracle"}}
    impossible = small(problem={"users": 50, "times_freedom": 0.01}, methods=methods)
    told = []
    summary = run_recovery(impossible, tmp_path, log=told.append)
    assert len(summary.failed) == 2
    assert told[0].startswith("alternating failed: ColoraError: times_freedom: expected a sample for each of 50 users")
    assert "2 failed; the same command tries them again" in str(summary)
    assert run_recovery(impossible, tmp_path).ran == 2


def test_trials_of_other_sources_are_refused_kept_or_run_again(tmp_path):
    summary = run_recovery(small(), tmp_path)
    old = [record.model_copy(update={"code": "0" * 64}) for record in summary.records[:3]]
    write_recovery_records(summary.path, [*old, *summary.records[3:]])
    with pytest.raises(ConfigError, match="3 finished trials of this experiment came from another version"):
        run_recovery(small(), tmp_path)
    assert run_recovery(small(), tmp_path, mixed=True).ran == 0
    assert run_recovery(small(), tmp_path, rerun_old=True).ran == 3
    assert run_recovery(small(), tmp_path).ran == 0
    with pytest.raises(ConfigError, match="expected one of --mixed and --rerun-old, found both"):
        run_recovery(small(), tmp_path, mixed=True, rerun_old=True)


def test_two_processes_at_one_experiment_are_one_too_many(tmp_path):
    with file_lock(tmp_path / "small.jsonl.lock") as mine:
        assert mine
        with pytest.raises(ConfigError, match="another process is running this experiment"):
            run_recovery(small(), tmp_path)


def test_a_damaged_file_of_records_is_named_and_left_as_it_is(tmp_path):
    (tmp_path / "small.jsonl").write_text('{"cell": 3}\n')
    with pytest.raises(ColoraError, match=r"small\.jsonl:1: cell: "):
        run_recovery(small(), tmp_path)
    assert (tmp_path / "small.jsonl").read_text() == '{"cell": 3}\n'


def test_killed_on_the_way_and_started_again(tmp_path):
    """kill -9 while trials are running: the file holds whole records, and the next call runs the others."""
    plan = write_small(tmp_path / "e.yaml", seeds=60, problem=small().problem | {"users": list(range(2, 40))})
    command = [sys.executable, "-m", "colora", "recover", str(plan), "--output", str(tmp_path), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    records = tmp_path / "small.jsonl"
    end = time.monotonic() + 120
    while not records.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # its own group: the processes it started go with it
    process.wait()
    kept = len(read_recovery_records(records))
    assert kept > 0
    (tmp_path / "e.yaml").unlink()
    shorter = small(seeds=60, problem=small().problem | {"users": [2]})
    assert [one.trial for one in read_recovery_records(records)][:4] == shorter.trials()[:kept]
    assert run_recovery(shorter, tmp_path).ran == max(0, len(shorter.trials()) - kept)
    assert len(read_recovery_records(records)) == max(kept, len(shorter.trials()))


def test_the_command_prints_a_table_and_draws(tmp_path):
    plan = write_small(tmp_path / "e.yaml", figure="phase")
    result = cli("recover", str(plan), "seeds=1", "--output", str(tmp_path / "out"), "--workers", "1")
    assert result.exit_code == 0, result.stderr
    assert "| users | samples | alternating | local-least-squares |" in result.stdout
    assert "8 of 8 trials finished, 8 run now" in result.stderr
    assert "alternating" in (tmp_path / "out" / "small.svg").read_text(encoding="utf-8")
    again = cli("recover", str(plan), "seeds=1", "--output", str(tmp_path / "out"), "--figure", str(tmp_path / "f.svg"))
    assert "8 of 8 trials finished, 0 run now" in again.stderr
    assert (tmp_path / "f.svg").read_bytes() == (tmp_path / "out" / "small.svg").read_bytes()


def test_a_change_that_leaves_nothing_to_draw_is_no_fault_unless_a_figure_was_asked_for(tmp_path):
    plan = write_small(tmp_path / "e.yaml", figure="phase")
    command = ["recover", str(plan), "seeds=1", "problem.samples=9", "--output", str(tmp_path), "--workers", "1"]
    result = cli(*command)
    assert result.exit_code == 0
    assert "no figure: figure phase: expected several values of samples, found one" in result.stderr
    assert cli(*command, "--figure", str(tmp_path / "f.svg")).exit_code == 2
    one = cli("recover", str(plan), "seeds=1", "problem.users=2", "--output", str(tmp_path), "--workers", "1")
    assert "written" in one.stderr


def test_a_failed_trial_is_exit_code_1_and_a_faulty_file_2(tmp_path):
    impossible = write_small(tmp_path / "a.yaml", problem={"users": 50, "times_freedom": 0.01})
    failed = cli("recover", str(impossible), "--output", str(tmp_path), "--workers", "1")
    assert failed.exit_code == 1
    assert "2 failed" in failed.stderr
    refused = cli("recover", str(tmp_path / "none.yaml"))
    assert refused.exit_code == 2
    assert "no such file" in refused.stderr


def test_the_schema_lists_every_field(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli("schema", "--recovery").stdout
    for field in ("problem.times_freedom", "methods.NAME.annealing", "problem.newcomer", "figure", "history"):
        assert field in shown


FIGURES = {
    "phase": {},
    "convergence": {"history": True, "problem": {"users": 4, "samples": 20, "d_out": 6, "d_in": 5, "rank": 1}},
    "noise": {"problem": {"users": 4, "samples": 20, "d_out": 6, "d_in": 5, "rank": 1, "noise": [0.1, 1.0]}},
    "similarity": {"problem": {"users": 4, "samples": 20, "d_out": 6, "d_in": 5, "rank": 1, "angle": [0, 45, 90]}},
    "newcomer": {"study": "newcomer", "problem": {"users": 4, "samples": 20, "rank": 1, "newcomer": [1, 4]}},
    "digits": {"study": "digits", "problem": {"samples": [2, 4], "d_out": 8, "d_in": 8, "rank": 3}},
}


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_is_drawn_from_its_records(tmp_path, figure):
    if figure == "digits":
        pytest.importorskip("sklearn")
    methods = {
        "colora" if figure == "digits" else "alternating": {"solver": "alternating", "max_iter": 20, "ridge": 0.1},
    } | ({} if figure == "convergence" else {"local-least-squares": {"baseline": "local-least-squares"}})
    records = [measure(trial) for trial in small(methods=methods, figure=figure, **FIGURES[figure]).trials()]
    draw_recovery(records, figure, tmp_path / "a.svg")
    draw_recovery(records, figure, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")  # no date, no chance
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for method in methods:
        assert f">{method}</text>" in text


def test_a_figure_of_what_does_not_vary_is_refused(tmp_path):
    records = [measure(small().trials()[0])]
    with pytest.raises(ColoraError, match="figure noise: expected several values of noise, found one"):
        draw_recovery(records, "noise", tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()
    with pytest.raises(ColoraError, match="figure: expected one of phase, convergence"):
        draw_recovery(records, "pie", tmp_path / "a.svg")
