"""The commands that a comparison ends with can be copied as they are."""

import html
import re
import shlex

import pytest

from colora import load_bank
from colora.experiments.own.contenders import CONTENDERS
from colora.experiments.own.handover.ways import MOST_LETTERS, MOST_RANK, as_lines, to_train_again, to_use
from colora.experiments.own.plan import WARMUP_SHARE
from colora.training.config_file import load_config
from tests.helpers.own_tasks import Favoured, compare_quickly, example_task, final_trial
from tests.helpers.run_files import cli, run_file, save_base


def ended(folder, favourite, **changes):
    """The run file, and the commands at the end of what a comparison with this result says, by what they are for."""
    quality = {one.method: 10.0 for one in CONTENDERS} | {favourite: 95.0}
    file = run_file(folder, save_base(folder / "base", chat=False), prompt="Say {input}: {output}", **changes)
    make = type("Made", (Favoured,), {"FAVOURITE": favourite, "QUALITY": quality})
    compare_quickly(file, folder / "c", make, command=(str(file), "training.steps=4"))
    lines = (folder / "c" / "verdict.txt").read_text("utf-8").splitlines()
    at = [number for number, line in enumerate(lines) if line.startswith("    ")]
    assert at[-1] == len(lines) - 1  # they come last
    page = (folder / "c" / "report.html").read_text("utf-8")
    assert page.index("How to go on") < page.index("The methods compared</h2>")
    assert [html.unescape(code) for code in re.findall(r"<pre><code>(.*?)</code></pre>", page)] == [
        lines[number].strip() for number in at
    ]
    return file, {lines[number - 1].rstrip(":"): shlex.split(lines[number]) for number in at}


@pytest.mark.parametrize("favourite", ["colora", "pooled", "local", "oppu"])
def test_an_answer_is_generated_as_the_last_lines_say(tmp_path, favourite):
    _, found = ended(tmp_path, favourite)
    if favourite in ("local", "oppu"):
        program, *words = found.pop("Make one bank of the LoRAs, exact up to rounding")
        made = cli(*words)
        assert (program, made.exit_code) == ("colora", 0), made.output
        assert "--enable-lora" in found["LoRAs for PEFT, vLLM or TGI; the README of each tells the prompt. With vLLM"]
    program, *words = found["Generate one answer"]
    result = cli(*words)
    assert (program, result.exit_code) == ("colora", 0), result.output
    serve = found["Serve all tasks"]
    assert serve[:2] == ["colora", "serve"]
    _, _, info = load_bank(serve[2])
    assert info.template("red").text == "Say {input}: {output}"  # the prompt that was measured


def test_the_command_to_train_again_has_what_was_measured(tmp_path):
    file, found = ended(tmp_path, "colora", training={"steps": 4, "rows": 12, "max_length": 96})
    _, command, name, *changes = found["Train CoLoRA with the steps, rows and rates that were measured"]
    assert (command, name) == ("train", str(file))
    spec = load_config(name, changes).training
    # The highest rate was the best one; the twelve rows of a step are those of two tasks.
    assert (spec.steps, spec.rows, spec.lr, spec.core_lr) == (4, 12, 2e-3, 2e-2)
    assert (spec.warmup, spec.max_grad_norm) == (4 // WARMUP_SHARE, 0.0)


def test_what_the_run_file_says_already_is_not_said_again(tmp_path):
    config = load_config(run_file(tmp_path, save_base(tmp_path / "base", chat=False)), ["training.rows=4"])
    trial = final_trial("colora", steps=60, lr=config.training.lr, core_lr=config.training.core_lr, rows=2)
    _, command = to_train_again(trial, config, ["my run.yaml", "training.steps=9", "seed=3"])
    assert command.startswith("colora train 'my run.yaml' seed=3 training.steps=60 ")
    assert "rows" not in command
    assert "lr=" not in command


def test_very_many_loras_are_not_made_one_bank(tmp_path):
    config = load_config(run_file(tmp_path, save_base(tmp_path / "base", chat=False)))
    tasks = [example_task(f"t{number}") for number in range(MOST_RANK // 16 + 1)]
    for task in tasks:
        (tmp_path / "adapters" / "lora" / task.name).mkdir(parents=True)
    ways = to_use(tmp_path / "adapters", final_trial("local", rank=16), tasks, config, "newline")
    assert len(ways) == 1
    assert ways[0][1].endswith(" NAME=FOLDER ...")
    assert len(to_use(tmp_path / "adapters", final_trial("local", rank=1), tasks, config, "newline")) == 4


def test_a_long_input_is_shown_in_one_short_line(tmp_path):
    config = load_config(run_file(tmp_path, save_base(tmp_path / "base", chat=False)))
    (tmp_path / "bank").mkdir()
    task = example_task("a")
    first = task.splits["test"][0]
    long = type(first)("it's\nlong " * 99, first.outputs)
    task.splits["test"] = (long,)
    lines = as_lines(to_use(tmp_path, final_trial("colora"), [task], config, "qa"))
    assert len(shlex.split(lines[1])[-1]) <= MOST_LETTERS
    assert len(lines) == 4
