"""The command line: what each command prints and where, and how it refuses."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import colora.common.files
from colora.bank.load import load_bank
from colora.cli.main import app
from colora.evaluation.records import read_records
from tests.helpers.run_files import cli, content, refusal, run_file, save_base
from tests.helpers.tiny import VOCAB

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

COMMANDS = (
    "train",
    "check",
    "evaluate",
    "generate",
    "export",
    "tasks",
    "import",
    "merge",
    "forget",
    "shrink",
    "transfer",
    "similarity",
    "onboard",
    "compare",
    "report",
    "recover",
    "schema",
    "demo",
)
PROMPTS = [{"task": "red", "input": "red 3"}, {"task": "blue", "input": "red 3"}, {"task": "red", "input": "grün"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that the command line trained, hard enough that its tasks say different things."""
    folder = tmp_path_factory.mktemp("run")
    base = save_base(folder / "base")
    training = {
        "steps": 30,
        "rows": 8,
        "lr": 0.02,
        "core_lr": 0.06,
        "warmup_steps": 0,
        "beta2": 0.999,
        "save_every": 30,
        "log_every": 15,
    }
    evaluation = {"metrics": ["rougeL", "exact_match", "nll"]}
    result = cli("train", run_file(folder, base, training=training, evaluation=evaluation))
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def table(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


# ---- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        ([], [*COMMANDS, "many tasks, one model", "colora schema"]),
        (["train"], ["RUN.yaml", "KEY=VALUE", "--from", "training.lr=1e-3", "goes on after a crash", "torchrun"]),
        (["check"], ["RUN.yaml", "KEY=VALUE", "Trains nothing"]),
        (["evaluate"], ["BANK", "--split", "--limit", "--base", "--predictions", "records.jsonl"]),
        (["generate"], ["BANK", "--task", "--file", "--instruction", "--max-new-tokens", "JSONL"]),
        (["export"], ["BANK", "OUT", "--task", "--merged", "vLLM"]),
        (["tasks"], ["BANK", "parameters and bytes"]),
        (["import"], ["LORA...", "--output", "--rank", "--base", "--name", "plain LoRAs"]),
        (["merge"], ["BANK", "NEW", "TASK=WEIGHT...", "--output", "legal=0.5"]),
        (["forget"], ["BANK", "TASK...", "--purge", "A and B"]),
        (["shrink"], ["BANK", "--output", "padded with zeros"]),
        (
            ["similarity"],
            ["BANK|RUN.yaml", "KEY=VALUE", "--json", "--figure", "--rows", "--groups", "nothing is trained"],
        ),
        (
            ["onboard"],
            [
                "BANK",
                "NEW.jsonl",
                "--name",
                "--output",
                "--steps",
                "--lr",
                "--extend",
                "--rank",
                "--seed",
                "to the bit",
            ],
        ),
        (
            ["compare"],
            [
                "FILE.yaml",
                "KEY=VALUE",
                "--minutes",
                "--examples",
                "--output",
                "--shard",
                "--list",
                "--mixed",
                "verdict",
            ],
        ),
        (["report"], ["RECORDS", "OUT.html", "--markdown", "--mixed", "--main", "--reference"]),
        (
            ["recover"],
            [
                "EXPERIMENT.yaml",
                "KEY=VALUE",
                "--output",
                "--figure",
                "--workers",
                "--mixed",
                "--rerun-old",
                "theory.md",
            ],
        ),
        (["schema"], ["--json", "--experiment", "--recovery", "every field"]),
        (["demo"], ["--output", "--seed", "--steps", "--quick", "Six small tasks"]),
    ],
)
def test_help_teaches(arguments, taught, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = cli(*arguments, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    for words in taught:
        assert words in text


@pytest.mark.parametrize(
    ("typed", "offered"), [("colora fed", ["federate"]), ("colora demo --qu", ["--quick"]), ("colora x", [])]
)
def test_the_shell_completes_commands_and_options(typed, offered):
    """What the script of `colora --install-completion` asks in bash."""
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_COLORA_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(app, [], prog_name="colora", env=asked)
    assert result.stdout.split() == offered


def test_without_a_command_there_is_help():
    result = cli()
    assert "colora demo" in result.output
    assert result.exit_code in (0, 2)  # depends on typer's version


@pytest.mark.parametrize(
    "arguments", [["tain"], ["train"], ["generate", "x", "--max-new-tokens", "0"], ["tasks", "-x"]]
)
def test_a_misused_command_line(arguments):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage" in result.stderr


# ---- train and evaluate ------------------------------------------------------------------------------------------


def test_training_prints_the_table_and_nothing_else_on_stdout(run):
    rows = table((run / "stdout").read_text())
    assert [row[0] for row in rows] == ["red", "blue", "mean"]
    records = {(one.task, one.metric): one.value for one in read_records(run / "out" / "records.jsonl")}
    assert rows[0][1:] == [
        f"{records['red', 'rougeL']:.1f}", f"{records['red', 'exact_match']:.1f}", f"{records['red', 'token_nll']:.3f}",
    ]  # fmt: skip
    err = (run / "stderr").read_text()
    assert "step 15/30" in err
    assert f"bank: {run / 'out' / 'bank'}" in err


def test_evaluate_prints_records_and_writes_predictions(run, tmp_path):
    before = read_records(run / "out" / "records.jsonl")
    result = cli("evaluate", run / "out", "--split", "train", "--limit", 2, "--predictions", tmp_path / "p.jsonl")
    assert result.exit_code == 0, result.stderr
    new = read_records(run / "out" / "records.jsonl")[len(before) :]
    assert {(one.split, one.n) for one in new if one.metric != "token_nll"} == {("train", 2)}
    assert [row[0] for row in table(result.stdout)] == ["red", "blue", "mean"]
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["task"] for line in lines] == ["red", "red", "blue", "blue"]
    assert lines[0].keys() == {"task", "input", "outputs", "prediction"}


def test_evaluate_refuses(run, tmp_path):
    assert "evaluation.split: expected 'train', 'val' or 'test', found 'dev'" in refusal(
        "evaluate", run / "out", "--split", "dev"
    )
    assert "expected a bank" in refusal("evaluate", tmp_path)
    assert "no such folder" in refusal("evaluate", tmp_path / "x")


def test_a_disk_that_fails_is_a_message(run, tmp_path, monkeypatch):
    before = content(run / "out")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(colora.common.files.os, "replace", full)
    assert "No space left on device" in refusal("evaluate", run / "out")
    assert "No space left on device" in refusal("export", run / "out", tmp_path / "lora", "--task", "red")
    assert content(run / "out") == before
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_cut_are_a_line_without_a_place_in_the_code(tmp_path):
    base = save_base(tmp_path / "base")
    result = cli("train", run_file(tmp_path, base, training={"steps": 1, "max_length": 16}))
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if '"red"' in line and "train inputs" in line]
    assert line.startswith('warning: task "red": ')
    assert "were cut to fit 16 tokens" in line
    assert ".py:" not in result.stderr
    assert "Warning" not in result.stderr


# ---- generate ----------------------------------------------------------------------------------------------------


def expected_text(run, task, text):
    model, tokenizer, _ = load_bank(run / "out")
    turns = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False, return_tensors="pt")
    out = model.generate(input_ids=ids, task_ids=[task], max_new_tokens=8, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_one_prompt_prints_its_output_alone(run):
    answers = {}
    for task in ("red", "blue"):
        result = cli("generate", run / "out", "red 3", "--task", task, "--max-new-tokens", 8)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == expected_text(run, task, "red 3") + "\n"
        answers[task] = result.stdout
    assert answers["red"] != answers["blue"]


def test_an_instruction_stands_before_the_input(run):
    result = cli("generate", run / "out", "red 3", "--task", "red", "--instruction", "Say it.", "--max-new-tokens", 8)
    assert result.stdout == expected_text(run, "red", "Say it.\n\nred 3") + "\n"


def test_a_file_of_many_tasks_in_order(run, tmp_path):
    prompts = [*PROMPTS, {"task": "blue", "input": "line\u2028separator", "instruction": "Copy."}]
    lines = [json.dumps(one, ensure_ascii=False) for one in prompts]
    (tmp_path / "p.jsonl").write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    result = cli("generate", run / "out", "--file", tmp_path / "p.jsonl", "--max-new-tokens", 8)
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.split("\n") if line]
    assert [(one["task"], one["input"]) for one in found] == [(one["task"], one["input"]) for one in prompts]
    assert [one["output"] for one in found[:3]] == [expected_text(run, one["task"], one["input"]) for one in PROMPTS]
    assert "grün" in result.stdout


def test_generate_refuses_unknown_tasks_and_lists_the_known(run, tmp_path):
    for arguments in (["x"], ["x", "--task", "pink"], ["x", "--task", ""]):
        told = refusal("generate", run / "out", *arguments)
        assert "red, blue" in told
    (tmp_path / "p.jsonl").write_text('{"task": "red", "input": "a"}\n{"task": "", "input": "a"}\n')
    assert "red, blue" in refusal("generate", run / "out", "--file", tmp_path / "p.jsonl")


def test_faulty_lines_of_a_file_are_all_named(run, tmp_path):
    lines = ['{"task": "red", "input": "a"}', "not json", '{"task": "red"}', "[1]", '{"task": 3, "input": "a"}', "{}"]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    told = refusal("generate", run / "out", "--file", tmp_path / "p.jsonl")
    for line in (
        "p.jsonl:2: expected a JSON object, found Expecting value at column 1",
        "p.jsonl:3: input missing",
        "p.jsonl:4: expected an object of strings, found [1]",
        'p.jsonl:5: expected an object of strings, found {"task": 3',
        "p.jsonl:6: task and input missing",
    ):
        assert line in told
    assert "p.jsonl:1:" not in told
    (tmp_path / "p.jsonl").write_text("x\n" * 30)
    assert "... and 10 more" in refusal("generate", run / "out", "--file", tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text("\n")
    assert "expected at least one line, found none" in refusal("generate", run / "out", "--file", tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal("generate", run / "out", "--file", tmp_path / "p.jsonl")
    assert "cannot be read" in refusal("generate", run / "out", "--file", tmp_path / "nothing.jsonl")


def test_a_prompt_or_a_file(run, tmp_path):
    assert "give a prompt, or --file FILE" in refusal("generate", run / "out")
    assert "give a prompt, or --file FILE" in refusal("generate", run / "out", "x", "--file", tmp_path / "p")
    told = refusal("generate", run / "out", "--file", tmp_path / "p", "--task", "red")
    assert "each line names its own task" in " ".join(told.replace("│", " ").split())


def test_a_bank_of_one_task_needs_no_name(tmp_path):
    base = save_base(tmp_path / "base")
    assert cli("train", run_file(tmp_path, base, ["red"], training={"steps": 1})).exit_code == 0
    named = cli("generate", tmp_path / "out", "red 3", "--task", "red", "--max-new-tokens", 4)
    assert named.exit_code == 0
    assert cli("generate", tmp_path / "out", "red 3", "--max-new-tokens", 4).stdout == named.stdout


# ---- export and tasks --------------------------------------------------------------------------------------------


def logits(model, **task):
    ids = torch.randint(6, VOCAB, (1, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, **task).logits


def test_export_of_one_all_and_merged(run, tmp_path):
    bank, _, _ = load_bank(run / "out")
    one = cli("export", run / "out", tmp_path / "one", "--task", "blue")
    every = cli("export", run / "out" / "bank", tmp_path / "all")
    merged = cli("export", run / "out", tmp_path / "merged", "--task", "blue", "--merged")
    for result, name in ((one, "one"), (every, "all"), (merged, "merged")):
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
        assert f"written: {tmp_path / name}" in result.stderr
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["blue", "red"]
    for task, folder in (("blue", "one"), ("blue", "all/blue"), ("red", "all/red")):
        base = AutoModelForCausalLM.from_pretrained(run / "base")
        lora = PeftModel.from_pretrained(base, str(tmp_path / folder))
        assert torch.allclose(logits(lora), logits(bank, task_ids=[task]), atol=1e-4, rtol=0)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(alone), logits(bank, task_ids=["blue"]), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(alone), logits(bank, task_ids=["red"]), atol=1e-2, rtol=0)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_export_refuses(run, tmp_path, monkeypatch):
    before = content(run)
    assert "name it with --task" in refusal("export", run / "out", tmp_path / "x", "--merged")
    assert "pink" in refusal("export", run / "out", tmp_path / "x", "--task", "pink")
    assert "is there already" in refusal("export", run / "out", run / "out" / "bank", "--task", "red")
    assert "is there already" in refusal("export", run / "out", run / "base", "--task", "red", "--merged")
    monkeypatch.chdir(run)
    assert "is there already" in refusal("export", "out", ".", "--task", "red")
    assert content(run) == before
    assert list(tmp_path.iterdir()) == []


def test_tasks_lists_every_task_with_its_sizes(run):
    for path in (run / "out", run / "out" / "bank"):
        result = cli("tasks", path)
        assert (result.exit_code, result.stderr) == (0, "")
        red, blue, shared = table(result.stdout)
        # 7 layers of 2 blocks with 4 × 4 numbers for each task, in float32.
        assert red == ["red", "7", "120", "224", "896"]
        assert blue == ["blue", "7", "120", "224", "896"]
        assert shared[0] == "shared A and B"
        assert int(shared[4].replace(",", "")) == 4 * int(shared[3].replace(",", ""))
        assert "2 tasks on" in result.stdout


def test_the_help_of_a_command_tells_what_its_arguments_are():
    told = " ".join(cli("train", "--help").stdout.split())
    assert "The run file" in told
    assert "Start from this bank" in told


def test_the_list_of_commands_tells_each_in_full():
    told = cli("--help").stdout
    assert "..." not in told.replace("[ARGS]...", "")
    assert "Check a run file and its task files, and print what would be" in told
