"""Comparisons of a user's own tasks from end to end: resumed, shared, kept to their time, and told what is wrong."""

import json
import multiprocessing
import os
import re
import signal
import time
from html import escape

import pytest
from safetensors.torch import load_file

from benchmarks.compare.own_tasks import write_own_tasks
from colora import load_bank
from colora.errors import ConfigError, InterruptedRunError, TaskFileError
from colora.experiments.display import Bar
from colora.experiments.methods.registry import METHODS
from colora.experiments.own.clock import Clock
from colora.experiments.own.contenders import CONTENDERS
from colora.experiments.own.planned import PlanFile
from colora.experiments.own.verdict.judge import Verdict
from colora.experiments.store import Store
from colora.experiments.trial import read_trial_records
from tests.helpers.own_tasks import Favoured, QuickRunner, compare_quickly
from tests.helpers.run_files import cli, content, refusal, run_file, save_base

METHODS_HERE = [one.method for one in CONTENDERS if one.method in METHODS]
TRAINED = [one.method for one in CONTENDERS if one.trained and one.method in METHODS]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), chat=False)


@pytest.fixture
def file(tmp_path, base):
    return run_file(tmp_path, base)


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """The page takes seconds to draw, so few tests have it and the others do without."""
    if request.node.name != "test_a_folder_of_files_from_the_command_line":
        monkeypatch.setattr("colora.experiments.own.conclude.write_page", lambda *args, **options: None)


def trials_of(runner):
    """What was run but for the timing."""
    return [trial for trial in runner.ran if trial.steps in (1, 4) and trial.test != 1]


# ---- one comparison -----------------------------------------------------------------------------------------------


def test_a_comparison_ends_in_a_verdict(tmp_path, file):
    verdict, _, said = compare_quickly(file, tmp_path / "c")
    assert verdict.recommended == verdict.outcomes[0].method == "base"
    assert {one.method for one in verdict.outcomes} == set(METHODS_HERE)
    assert verdict.adapters is None
    assert not (tmp_path / "c" / "trained").exists()
    assert Verdict.model_validate_json((tmp_path / "c" / "verdict.json").read_bytes()) == verdict
    words = (tmp_path / "c" / "verdict.txt").read_text("utf-8")
    assert words.startswith("Use the base model as it is: exact match 90.0 %")
    for one in verdict.outcomes:
        assert f"\n{one.title}: exact match {one.score:.1f} %, token NLL {one.nats:.3f} nats, a task costs " in words
    assert any(line.startswith("this will take about ") for line in said)
    assert verdict.plan.model_dump() == {"seeds": 3, "settings": 3, "folds": 3, "curve": (), "steps": 4}
    assert (verdict.tasks, verdict.examples) == (["red", "blue"], [8, 8])
    final = read_trial_records(tmp_path / "c" / "comparison.jsonl")
    assert len(final) == len(METHODS_HERE) + 2 * len(TRAINED)
    # the highest rate was made the best of each
    assert {record.trial.lr for record in final if record.trial.method in TRAINED} == {2e-3}
    choosing = read_trial_records(tmp_path / "c" / "choosing.jsonl")
    assert len(choosing) == 9 * len(TRAINED)
    assert {record.trial.split for record in choosing} == {"val"}


def test_a_second_call_runs_nothing(tmp_path, file):
    compare_quickly(file, tmp_path / "c")
    before = content(tmp_path / "c" / "cells")
    verdict, runner, said = compare_quickly(file, tmp_path / "c")
    assert runner.ran == []
    assert content(tmp_path / "c" / "cells") == before
    assert verdict.recommended == "base"
    assert any(line.startswith("going on: 3 settings each on 3 folds") for line in said)


def test_other_examples_are_other_trials_and_the_old_ones_stay(tmp_path, base, file):
    _, first, _ = compare_quickly(file, tmp_path / "c")
    (tmp_path / "red.jsonl").write_text((tmp_path / "red.jsonl").read_text("utf-8").replace("rot", "purpur"), "utf-8")
    _, second, _ = compare_quickly(file, tmp_path / "c")
    assert len(second.ran) == len(first.ran)
    assert not {trial.group for trial in first.ran} & {trial.group for trial in second.ran}


def test_more_time_later_reuses_what_was_run(tmp_path, file):
    _, first, _ = compare_quickly(file, tmp_path / "c", minutes=30)
    _, second, said = compare_quickly(file, tmp_path / "c", minutes=60)
    assert second.ran == []  # not even the timing
    assert any("timings.json; remove the file to time them again" in line for line in said)
    assert len(first.ran) > 3 * (1 + len(METHODS_HERE))


def test_the_curve_of_examples(tmp_path, file):
    verdict, runner, said = compare_quickly(file, tmp_path / "c", examples=[2, 4, 99])
    assert "not measured apart: 99 examples; no task has more than 8 to train on" in said
    assert verdict.plan.curve == (2, 4)
    assert {trial.examples for trial in runner.ran} == {2, 4, 8}
    assert {(one.method, one.examples) for one in verdict.curve} >= {("local", 2), ("local", 4), ("local", 8)}
    verdict, _, said = compare_quickly(run_file(file.parent, verdict_base(file), examples_a_task=[3]), tmp_path / "d")
    assert verdict.plan.curve == (3,)
    assert not [line for line in said if line.startswith("not measured apart")]


def verdict_base(file):
    import yaml

    return yaml.safe_load(file.read_text("utf-8"))["base"]


def test_tasks_of_different_sizes(tmp_path, base):
    tasks = ["red", {"path": str(tmp_path / "big.jsonl"), "name": "big"}]
    rows = [{"input": f"big {number}", "output": "b"} for number in range(40)]
    (tmp_path / "big.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    verdict, _, _ = compare_quickly(run_file(tmp_path, base, tasks), tmp_path / "c")
    assert verdict.examples == [8, 32]
    assert verdict.test_answers == 2 + 8


def test_texts_that_tasks_share_are_told_and_kept_apart_if_asked(tmp_path, base):
    for judge in ("ann", "bo"):
        rows = [{"input": f"text {number}", "output": f"{judge} {number % 3}"} for number in range(20)]
        (tmp_path / f"{judge}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tasks = [{"path": "ann.jsonl"}, {"path": "bo.jsonl"}]
    verdict, _, _ = compare_quickly(run_file(tmp_path, base, tasks), tmp_path / "each")
    assert set(verdict.seen_elsewhere) == {"ann", "bo"}
    number = sum(verdict.seen_elsewhere.values())
    assert f"Beware: {number} of 8 test inputs are training" in "\n".join(verdict.sentences)
    verdict, _, _ = compare_quickly(run_file(tmp_path, base, tasks, shared_splits=True), tmp_path / "shared")
    assert not verdict.seen_elsewhere
    assert "Beware" not in "\n".join(verdict.sentences)
    assert verdict.examples == [16, 16]
    assert (tmp_path / "shared" / "verdict.json").is_file()


def test_the_run_file_says_how_many_test_examples(tmp_path, base):
    (tmp_path / "many").mkdir()
    for split, count in (("train", 4), ("test", 130)):
        rows = [{"input": f"{split} {number}", "output": "yes"} for number in range(count)]
        (tmp_path / "many" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for limit, number in ((None, 100), (120, 120), (500, 130), (7, 7)):
        changes = {} if limit is None else {"evaluation": {"limit": limit}}
        file = run_file(tmp_path, base, [{"path": "many", "val": 0}], **changes)
        assert compare_quickly(file, tmp_path / f"c{limit}")[0].test_answers == number


def test_conversations_are_compared_without_examples_in_the_prompt(tmp_path):
    (tmp_path / "talk").mkdir()
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    for split in ("train", "test"):
        rows = [{"messages": [{"role": "user", "content": f"{split} {number}"}, *turns[1:]]} for number in range(6)]
        (tmp_path / "talk" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    file = run_file(tmp_path, save_base(tmp_path / "chat"), [{"path": "talk", "val": 0}])
    verdict, _, said = compare_quickly(file, tmp_path / "c")
    assert {one.method for one in verdict.outcomes} == {*METHODS_HERE} - {"in-context"}
    told = "examples in the prompt (in-context): a conversation of several turns has no place in a plain text"
    assert f"left out: {told}" in said
    assert f"Not compared: {told}." in verdict.sentences


def test_what_is_not_heeded_is_named(tmp_path, base):
    given = {"adapter": {"lora_dropout": 0.1}, "training": {"lr": 5e-4, "scheduler": "linear", "save_every": 3}}
    _, _, said = compare_quickly(run_file(tmp_path, base, **given), tmp_path / "c")
    (line,) = (line for line in said if line.startswith("not heeded"))
    assert line.endswith(": adapter.lora_dropout, training.lr, training.scheduler")


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_the_prompt_is_the_run_files_or_the_likeliest_without_a_chat_template(tmp_path, base):
    verdict, _, said = compare_quickly(run_file(tmp_path, base, prompt="qa"), tmp_path / "a")
    assert verdict.prompt == "{instruction}\nQ: {input}\nA: {output}"
    _, _, said = compare_quickly(run_file(tmp_path, base), tmp_path / "b")
    assert any(line.startswith("prompt: auto takes") for line in said)
    chat = save_base(tmp_path / "chat")
    verdict, _, said = compare_quickly(run_file(tmp_path, chat), tmp_path / "c")
    assert verdict.prompt == "chat"
    assert not any(line.startswith("prompt: auto takes") for line in said)


def test_the_bank_that_is_handed_over_has_the_prompt(tmp_path, base):
    quality = dict.fromkeys(METHODS_HERE, 10.0) | {"colora": 95.0}
    make = type("Made", (Favoured,), {"FAVOURITE": "colora", "QUALITY": quality})
    compare_quickly(run_file(tmp_path, base, prompt="Say {input}: {output}"), tmp_path / "c", make)
    _, _, info = load_bank(tmp_path / "c" / "adapters" / "bank")
    assert info.template("red").text == "Say {input}: {output}"


# ---- the budget ---------------------------------------------------------------------------------------------------


def test_a_budget_that_is_too_small_is_refused_before_anything_is_kept(tmp_path, file):
    class Slow(QuickRunner):
        def run(self, trial, tasks, progress=None):
            record = super().run(trial, tasks, progress)
            return record.model_copy(update={"seconds": {"train": 300.0, "evaluate": 10.0}})

    with pytest.raises(ConfigError, match=r"--minutes 5: the smallest comparison of these tasks takes .* minutes"):
        compare_quickly(file, tmp_path / "c", Slow, minutes=5)
    assert not (tmp_path / "c" / "cells").exists()
    assert not (tmp_path / "c" / "plan.json").exists()


def test_what_was_cut_is_told_with_the_minutes_that_all_of_it_needs(tmp_path, file):
    class Slow(QuickRunner):
        def run(self, trial, tasks, progress=None):
            record = super().run(trial, tasks, progress)
            return record.model_copy(update={"seconds": {"train": 9.0, "evaluate": 0.0}})

    verdict, _, said = compare_quickly(file, tmp_path / "c", Slow, minutes=5)
    (told,) = [line for line in said if line.startswith("this will take about")]
    found = re.search(
        r"all of it would take about (\d+\.\d) minutes \(--minutes (\d+)\); the next larger plan was expected to take "
        r"(\d+\.\d) minutes, and (\d\.\d) minutes were left",
        told,
    )
    whole, enough, larger, left = map(float, found.groups())
    assert whole >= larger > left
    assert whole <= enough <= whole + 2
    assert verdict.sentences[-1] == f"A{found[0][1:]}."
    verdict, _, _ = compare_quickly(file, tmp_path / "c", Slow, minutes=enough)
    assert (verdict.given_up, verdict.why_cut) == ([], "")


def test_the_bar_counts_a_trial_by_the_time_that_it_takes(tmp_path, file, monkeypatch):
    """Trials that train nothing are quick: of six, two of them are not a third of the time."""
    at, start = [], Bar.start

    def watched(self, done, name, weight=1.0):
        at.append((name, done, weight))
        start(self, done, name, weight)

    monkeypatch.setattr(Bar, "start", watched)

    class Trained(QuickRunner):
        def run(self, trial, tasks, progress=None):
            record = super().run(trial, tasks, progress)
            trained = trial.method in TRAINED
            return record.model_copy(update={"seconds": {"train": 3.0 if trained else 0.0, "evaluate": 0.0}})

    compare_quickly(file, tmp_path / "c", Trained)
    number = 11 * len(TRAINED) + len(METHODS_HERE)
    quick = [weight for name, _, weight in at if ": base" in name or ": in-context" in name]
    assert len(at) == number
    assert max(quick) < 0.2
    assert sum(weight for *_, weight in at) == pytest.approx(number)
    _, done, weight = at[-1]
    assert done + weight == pytest.approx(number)
    assert [one[1] for one in at] == sorted(one[1] for one in at)


def test_a_line_for_each_trial_has_the_measure_of_the_verdict(tmp_path, file):
    _, _, said = compare_quickly(file, tmp_path / "c")
    lines = [line for line in said if " base, 8 examples, seed 0: " in line]
    assert len(lines) == 1
    assert "seed 0: exact match 90.0 %, token NLL 1.000, " in lines[0]


def test_stages_for_which_no_time_is_left_are_dropped_and_said(tmp_path, file, monkeypatch):
    left = [3000.0]
    monkeypatch.setattr(Clock, "left", lambda self: left[0])

    class Late(QuickRunner):
        def act(self, trial):
            if trial.split == "test" and trial.steps == 4:
                left[0] = 10.0

    verdict, runner, said = compare_quickly(file, tmp_path / "c", Late)
    assert verdict.given_up[-2:] == ["no time was left for seed 1", "no time was left for seed 2"]
    assert {trial.seed for trial in runner.ran} == {0}
    assert "no time is left for: seed 1" in said
    left[0] = 3000.0
    again, runner, _ = compare_quickly(file, tmp_path / "c")
    assert runner.ran == []  # what was dropped stays so
    assert again.given_up == verdict.given_up


def test_the_clock_counts_what_is_left_over_all_starts(tmp_path):
    path, now = tmp_path / "clock.json", [100.0]
    first = Clock.start(path, "this", 10, False, 100.0, lambda: now[0])
    now[0] = 400.0
    first.tick()
    assert first.left() == 300.0
    now[0] = 10_000.0
    resumed = Clock.start(path, "this", 10, False, 10_000.0, lambda: now[0])
    assert resumed.left() == 300.0
    now[0] = 10_100.0
    joined = Clock.start(path, "this", 10, True, 10_050.0, lambda: now[0])
    assert joined.left() == 200.0
    another = Clock.start(path, "that", 20, False, 10_100.0, lambda: now[0])
    assert another.left() == 1200.0
    path.write_text("{")
    assert Clock.start(path, "that", 20, False, 10_100.0, lambda: now[0]).left() == 1200.0


def test_an_edited_task_file_has_a_budget_of_its_own(tmp_path, file):
    """What the comparison before it has used up says nothing of it."""
    compare_quickly(file, tmp_path / "c", minutes=30)
    used_up(tmp_path / "c" / "clock.json")
    (tmp_path / "red.jsonl").write_text((tmp_path / "red.jsonl").read_text("utf-8").replace("rot", "purpur"), "utf-8")
    verdict, _, _ = compare_quickly(file, tmp_path / "c", minutes=30)
    assert verdict.given_up == []
    assert {one.seeds for one in verdict.outcomes if one.method in TRAINED} == {3}


def test_trials_that_are_run_again_have_a_budget_of_their_own(tmp_path, file, monkeypatch):
    compare_quickly(file, tmp_path / "c")
    used_up(tmp_path / "c" / "clock.json")
    monkeypatch.setattr("colora.experiments.own.run.trial_code", lambda: "f" * 64)
    assert compare_quickly(file, tmp_path / "c", rerun_old=True)[0].given_up == []


def used_up(clock):
    value = json.loads(clock.read_text("utf-8"))
    clock.write_text(json.dumps(value | {"deadline": 0.0, "left": 1.0}), "utf-8")


def test_a_stage_that_another_process_has_begun_is_not_dropped(tmp_path, file, monkeypatch):
    """Else the two would choose their settings by other folds."""
    left, busy = [3000.0], []
    monkeypatch.setattr(Clock, "left", lambda self: left[0])

    class Late(QuickRunner):
        def act(self, trial):
            if "fold1of3" in trial.group and not busy:
                left[0] = 10.0
                second = trial.model_copy(update={"group": trial.group.replace("fold1of3", "fold2of3")})
                busy.append(Store(tmp_path / "c").lock(second))
                busy[0].write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0}))  # is believed to live

    def over(seconds):
        for path in busy:
            path.unlink(missing_ok=True)

    monkeypatch.setattr("colora.experiments.own.stages.time.sleep", over)
    _, _, said = compare_quickly(file, tmp_path / "c", Late)
    assert "no time is left for: choosing settings, fold 2 of 3" not in said
    assert "no time is left for: choosing settings, fold 3 of 3" in said


# ---- going on -----------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_finished(tmp_path, file):
    class Stopped(QuickRunner):
        def act(self, trial):
            if trial.split == "val" and len(self.ran) > 20:
                raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="the same command goes on from there"):
        compare_quickly(file, tmp_path / "c", Stopped)
    kept = len(list((tmp_path / "c" / "cells").glob("*.json")))
    assert kept
    whole = compare_quickly(file, tmp_path / "whole")[1]
    _, runner, _ = compare_quickly(file, tmp_path / "c")
    assert len(runner.ran) == len(whole.ran) - (1 + len(METHODS_HERE)) - kept


def killed_run(file, output, at):
    class Slow(QuickRunner):
        def act(self, trial):
            if trial.steps == 4 and len(list((output / "cells").glob("*.json"))) == at:
                (output / "started").touch()
                time.sleep(60)

    compare_quickly(file, output, Slow)


@pytest.mark.parametrize("at", [0, 5, 9 * len(TRAINED) + 2])
def test_killed_at_any_moment_it_goes_on(tmp_path, file, at):
    output = tmp_path / "c"
    process = multiprocessing.get_context("spawn").Process(target=killed_run, args=(file, output, at))
    process.start()
    for _ in range(1200):
        if (output / "started").exists():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(list((output / "cells").glob("*.json"))) == at
    plan = PlanFile.model_validate_json((output / "plan.json").read_bytes())
    verdict, runner, _ = compare_quickly(file, output)
    assert len(runner.ran) == 11 * len(TRAINED) + len(METHODS_HERE) - at
    assert verdict.plan == plan.plan
    assert not list(output.rglob("*.lock"))


def shared_run(file, output, ran):
    class Timed(QuickRunner):
        def act(self, trial):
            if (output / "plan.json").exists():
                time.sleep(0.01)
                (ran / f"{trial.key}.{os.getpid()}").touch()

    compare_quickly(file, output, Timed)


def test_processes_on_one_folder_share_the_work(tmp_path, file):
    (tmp_path / "ran").mkdir()
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=shared_run, args=(file, tmp_path / "c", tmp_path / "ran")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    keys = [path.name.rsplit(".", 1)[0] for path in (tmp_path / "ran").iterdir()]
    assert len(keys) == len(set(keys)) == 11 * len(TRAINED) + len(METHODS_HERE)
    assert (tmp_path / "c" / "verdict.json").is_file()


def test_a_contender_that_fails_is_said_and_tried_again(tmp_path, file):
    class Broken(QuickRunner):
        def act(self, trial):
            if trial.method == "local" and trial.steps == 4:
                raise RuntimeError("out of memory")

    verdict, _, _ = compare_quickly(file, tmp_path / "c", Broken)
    assert "local" not in {one.method for one in verdict.outcomes}
    assert "RuntimeError: out of memory" in verdict.failed.values()
    verdict, runner, _ = compare_quickly(file, tmp_path / "c")
    assert {trial.method for trial in runner.ran} == {"local"}
    assert not verdict.failed


# ---- the real thing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("favourite", [one for one in METHODS_HERE if one != "base"])
def test_the_adapters_of_whatever_won_are_there(tmp_path, base, favourite, monkeypatch):
    file = run_file(tmp_path, base)
    quality = dict.fromkeys(METHODS_HERE, 10.0) | {favourite: 95.0}
    make = type("Made", (Favoured,), {"FAVOURITE": favourite, "QUALITY": quality})
    verdict, _, _ = compare_quickly(file, tmp_path / "c", make)
    assert (verdict.recommended, verdict.adapters) == (favourite, "adapters")
    folder = tmp_path / "c" / "adapters"
    there = {path.name for path in folder.iterdir()} - {"made_of.json"}
    assert there == {"colora": {"bank"}, "pooled": {"bank", "lora"}, "in-context": {"prompts.json"}}.get(
        favourite, {"lora"}
    )
    assert not (tmp_path / "c" / "trained").exists()
    if "bank" in there:
        _, _, info = load_bank(folder / "bank")
        assert info.examples == {"red": 8, "blue": 8}
        assert set(load_file(folder / "bank" / "adapter_model.safetensors"))
    before = content(folder)
    assert compare_quickly(file, tmp_path / "c", make)[1].ran == []
    assert content(folder) == before
    with monkeypatch.context() as changed:  # what was measured is kept with the trials that --mixed keeps
        changed.setattr("colora.experiments.own.run.trial_code", lambda: "f" * 64)
        assert compare_quickly(file, tmp_path / "c", make, mixed=True)[1].ran == []
    assert content(folder) == before
    if favourite in TRAINED:  # what was trained is gone with the adapters: it is trained once more
        (folder / "made_of.json").unlink()
        assert [trial.method for trial in compare_quickly(file, tmp_path / "c", make)[1].ran] == [favourite]
        assert content(folder).keys() == before.keys()


def test_a_folder_of_files_from_the_command_line(tmp_path, base):
    """Dates as JSONL, everything in earnest, on a tiny base."""
    few = {"training": {"steps": 2, "max_length": 128}, "evaluation": {"max_new_tokens": 3}, "base": base}
    file = write_own_tasks(tmp_path, train=4, test=3, **few)
    result = cli("compare", file, "--minutes", "60", "--examples", "2", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Use ")
    folder = tmp_path / "run-compare"
    page = (folder / "report.html").read_text("utf-8")
    verdict = Verdict.model_validate_json((folder / "verdict.json").read_bytes())
    assert "<svg" in page
    assert page.index(escape(verdict.sentences[0])) < page.rindex("The methods compared")
    assert verdict.plan.curve == (2,)
    assert verdict.tasks == ["date-es", "date-pt", "date-it", "date-ca"]
    assert {one.method for one in verdict.outcomes} == set(METHODS_HERE)
    assert verdict.test_answers == 12
    assert (verdict.adapters is None) == (verdict.recommended == "base")


# ---- what is wrong is told ----------------------------------------------------------------------------------------


def test_wrong_task_files_are_told_as_check_tells_them(tmp_path, file):
    with (tmp_path / "red.jsonl").open("a", encoding="utf-8") as red:
        red.write('{"input": 3}\n')
    (tmp_path / "blue.jsonl").write_text('{"input": "x"\n', "utf-8")
    assert refusal("compare", file) == refusal("check", file)
    with pytest.raises(TaskFileError):
        compare_quickly(file, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_examples_that_are_too_long_are_told_as_check_tells_them(tmp_path, base):
    for split in ("train", "test"):
        (tmp_path / "long").mkdir(exist_ok=True)
        (tmp_path / "long" / f"{split}.jsonl").write_text(
            json.dumps({"input": split, "output": "y" * 300}) + "\n", "utf-8"
        )
    file = run_file(tmp_path, base, [{"path": "long"}])
    told = refusal("check", file)
    assert "expected at most 96 tokens, found 302 without its input" in told
    assert refusal("compare", file).splitlines()[-1] == told.splitlines()[-1]


def test_options_of_the_other_kind_of_file_are_refused(tmp_path, file):
    assert "is a run file with tasks, and takes no --shard" in refusal("compare", file, "--shard", "1/2")
    experiment = tmp_path / "e.yaml"
    experiment.write_text("name: e\ngroups: similar-8\nmethods: [base]\n", "utf-8")
    told = refusal("compare", experiment, "--minutes", "3", "--examples", "8")
    assert "is an experiment, and takes no --minutes and no --examples" in told
    assert "--examples: expected numbers with commas between" in refusal("compare", file, "--examples", "8;16")
    assert "--minutes: expected a number above 0, found 0" in refusal("compare", file, "--minutes", "0")


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_folder_stands_beside_that_of_the_run(tmp_path, base, slash, monkeypatch):
    def compared(config, options, **given):
        raise ConfigError(f"folder {options.output.name}")

    monkeypatch.setattr("colora.experiments.own.run.compare_own", compared)
    file = run_file(tmp_path, base, output=f"{tmp_path}/mine{slash}")
    assert "folder mine-compare" in refusal("compare", file)


def test_trials_of_other_sources_are_refused_kept_or_run_again(tmp_path, file, monkeypatch):
    compare_quickly(file, tmp_path / "c")
    monkeypatch.setattr("colora.experiments.own.run.trial_code", lambda: "f" * 64)
    with pytest.raises(
        ConfigError, match=r"came from another version of the code .* --rerun-old runs them again, --mixed"
    ):
        compare_quickly(file, tmp_path / "c")
    assert compare_quickly(file, tmp_path / "c", mixed=True)[1].ran == []
    _, runner, _ = compare_quickly(file, tmp_path / "c", rerun_old=True)
    assert len(runner.ran) == 11 * len(TRAINED) + len(METHODS_HERE)
