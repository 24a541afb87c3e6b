"""What the folder of trials may hold: broken files, trials of other sources; and the command that fills it."""

import re

import pytest

import colora.experiments.run as module
from colora.common.provenance import SOURCE, code_digest
from colora.errors import ConfigError
from colora.experiments.code import LEFT_OUT, PARTS
from colora.experiments.plan import planned_trials
from colora.experiments.run import collect_experiment
from colora.experiments.store import Store
from colora.experiments.trial import read_trial_records
from tests.helpers.experiment_fakes import FakeRunner, experiment, run
from tests.helpers.import_graph import imports_of
from tests.helpers.run_files import cli, content, refusal, save_base

# ---- files that are something else, and sources that have changed ------------------------------------------------


def test_a_file_that_is_no_record_is_refused_by_name(tmp_path):
    run(tmp_path)
    first, second, *_ = planned_trials(experiment())
    store = Store(tmp_path)
    whole = store.path(first).read_text()
    for text, told in [("{", "Invalid JSON"), ("", "found none"), (store.path(second).read_text(), second.key)]:
        store.path(first).write_text(text)
        with pytest.raises(ConfigError, match="remove the file to run it again") as caught:
            run(tmp_path)
        assert str(store.path(first)) in str(caught.value)
        assert told in str(caught.value)
    store.path(first).write_text(whole)
    assert run(tmp_path)[0].finished == 6


def test_trials_of_other_sources_are_refused_kept_or_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "trial_code", lambda: "a" * 64)
    run(tmp_path, plan=experiment(seeds=0))
    monkeypatch.setattr(module, "trial_code", lambda: "b" * 64)
    runner = FakeRunner()
    with pytest.raises(ConfigError, match="3 finished trials of this experiment came from another version") as caught:
        run(tmp_path, runner)
    for part in (
        "--rerun-old",
        "--mixed",
        "b" * 12,
        f"code {'a' * 12}, revision ",
        planned_trials(experiment())[1].key,
    ):
        assert part in str(caught.value)
    assert runner.ran == []
    with pytest.raises(ConfigError, match="expected one of --mixed and --rerun-old"):
        run(tmp_path, mixed=True, rerun_old=True)

    summary, runner = run(tmp_path, mixed=True)
    assert (len(runner.ran), summary.finished) == (3, 6)
    assert [record.code[0] for record in read_trial_records(summary.records)] == [*"aaabbb"]
    with pytest.raises(ConfigError, match="3 finished trials of this experiment came from another version"):
        collect_experiment(experiment(), tmp_path)
    assert collect_experiment(experiment(), tmp_path, mixed=True).finished == 6

    summary, runner = run(tmp_path, rerun_old=True, shard=(1, 2))
    assert len(runner.ran) == 2
    assert [record.code[0] for record in read_trial_records(summary.records)] == [*"bbbbb"]
    summary, runner = run(tmp_path, rerun_old=True)
    assert (len(runner.ran), summary.finished) == (1, 6)
    assert collect_experiment(experiment(), tmp_path).finished == 6


def test_many_old_trials_are_counted_and_trials_of_other_experiments_do_not_matter(tmp_path, monkeypatch):
    plan = experiment(seeds=list(range(5)))
    monkeypatch.setattr(module, "trial_code", lambda: "a" * 64)
    run(tmp_path, plan=plan)
    monkeypatch.setattr(module, "trial_code", lambda: "b" * 64)
    with pytest.raises(ConfigError, match="and 5 more"):
        run(tmp_path, plan=plan)
    assert run(tmp_path, plan=experiment(seeds=9))[0].finished == 3


def test_the_digest_follows_what_can_change_a_result(tmp_path):
    def digest():
        return code_digest(PARTS, tmp_path, LEFT_OUT)

    files = {part: f"{part}/x.py" if (SOURCE / part).is_dir() else f"{part}.py" for part in PARTS}
    for name in (*files.values(), "experiments/report/x.py", *LEFT_OUT, "tasks/x.pyc", "cli.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = digest()
    for name, matters in [("experiments/report/x.py", 0), ("cli.py", 0), ("tasks/x.pyc", 0), (LEFT_OUT[0], 0)] + [
        (name, 1) for name in files.values()
    ]:
        (tmp_path / name).write_text("2")
        assert (digest() != before) == bool(matters), name
        (tmp_path / name).write_text("1")
    assert digest() == before
    (tmp_path / "tasks" / "data.json").write_text("1")
    assert digest() != before


def test_the_digest_covers_everything_that_a_trial_or_a_task_imports():
    graph, seen = imports_of(), set()
    todo = [
        "colora.experiments.methods.runner", "colora.tasks.families.make", "colora.experiments.methods.registry"
    ]  # fmt: skip
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph[name]
    files = {name.removeprefix("colora.").replace(".", "/") for name in seen}
    covered = {name for name in files if any(name == part or name.startswith(f"{part}/") for part in PARTS)}
    assert {"experiments/methods/train", "tasks/families/make", "tasks/encode", "models/likelihood"} <= covered
    helpers = {name for name in files - covered if name.startswith("common/")}
    assert files - covered - helpers == {"errors", "experiments/trial"}
    assert all((SOURCE / name).is_file() for name in LEFT_OUT)
    assert all((SOURCE / part).is_dir() or (SOURCE / f"{part}.py").is_file() for part in PARTS)


# ---- the command, on a real if tiny model ------------------------------------------------------------------------

TINY = """
name: tiny
base: {base}
first_layer: 1
groups: {{dates: [date-es, date-pt]}}
methods:
  colora: {{lr: 1e-2, core_lr: 5e-2}}
  fedit: {{lr: 1e-2}}
examples: 4
steps: 4
local_steps: 2
test: 2
generate: 1
max_length: 96
max_new_tokens: 4
"""


@pytest.fixture
def tiny(tmp_path):
    base = save_base(tmp_path / "base")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(base=base), encoding="utf-8")
    return path


def test_the_command_compares_and_goes_on(tiny, tmp_path):
    out = tmp_path / "out"
    first = cli("compare", tiny, "--output", out, "--shard", "1/2", "--threads", 1)
    assert first.exit_code == 0, first.stderr
    assert re.search(r"^\| colora \| 1 \| [\d.]+ \|", first.stdout, flags=re.MULTILINE), first.stdout
    assert "1/1 colora dates implicit n4 seed 0: ROUGE-L " in first.stderr
    assert "1 of 2 trials finished" in first.stderr
    before = content(out / "cells")
    listed = cli("compare", tiny, "--output", out, "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["finished", "-"]
    assert listed[0].split()[1] == next(iter(before)).removesuffix(".json")

    second = cli("compare", tiny, "--output", out, "--threads", 1)
    assert second.exit_code == 0, second.stderr
    after = content(out / "cells")
    assert {name: after[name] for name in before} == before  # the same bytes at the same time: not trained again
    assert len(after) == 2
    colora, fedit = read_trial_records(out / "tiny.jsonl")
    assert set(colora.scores) == {"date-es", "date-pt"}
    assert (colora.rounds, fedit.rounds) == (None, 2)
    assert len(colora.scores["date-es"].nll) == 2
    assert len(colora.scores["date-es"].rougeL) == 1

    (out / "tiny.jsonl").unlink()
    again = cli("compare", tiny, "--output", out, "--collect")
    assert again.exit_code == 0
    assert read_trial_records(out / "tiny.jsonl") == [colora, fedit]
    whole = cli("compare", tiny, "--output", tmp_path / "other", "--threads", 1, "methods.fedit.lr=2e-2")
    assert whole.exit_code == 0, whole.stderr
    repeated, other = read_trial_records(tmp_path / "other" / "tiny.jsonl")
    assert repeated.scores == colora.scores  # the same trial gives the same, whatever ran before it
    assert other.trial.lr == 0.02


def test_the_command_fails_with_the_trials_that_died(tiny, tmp_path):
    result = cli("compare", tiny, "--output", tmp_path / "out", "first_layer=7", "seeds=[0]", "--threads", 1)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "0 of 2 trials finished" in result.stderr
    assert "2 failed; `colora compare` tries them again:" in result.stderr
    assert "  - colora dates implicit n4 seed 0: " in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_refuses(tiny, tmp_path):
    told = refusal("compare", tiny, "steps=0", "methods.colorra.lr=1")
    assert "steps: expected greater than or equal to 1" in told
    assert "no method 'colorra'; did you mean 'colora'?" in told
    assert "--shard: expected I/N" in refusal("compare", tiny, "--shard", "3/2")
    assert "no such file" in refusal("compare", tmp_path / "none.yaml")
    assert "no locale 'qq'" in refusal("compare", tiny, "groups.dates=[date-qq]", "--output", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.json"))
