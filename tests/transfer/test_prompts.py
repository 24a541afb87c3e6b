"""Prompts of new tasks, of tasks in groups and of tasks that are compared before training or trained alone."""

import json

import pytest

import colora.transfer.before_training
from colora.bank.layout import read_bank_info
from colora.errors import ConfigError
from colora.models.base import load_base
from colora.tasks.encode import prompt_and_answer
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.training.config_file import load_config
from colora.training.measure import evaluate_bank
from colora.training.run import train
from colora.transfer.before_training import run_similarity
from colora.transfer.grouping import train_groups
from colora.transfer.negative_transfer import measure_transfer
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import onboard
from tests.helpers.run_files import cli, config_of, refusal, run_file, save_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QA = "Q: {input}\nA: {output}"
FAST = Settings(2, 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def encoded_prompts(monkeypatch, module):
    """The first prompt of each task that a module encodes, as text, in the order of the calls."""
    seen, real = [], module.encode_tasks

    def recorded(tasks, tokenizer, *args):
        rows = real(tasks, tokenizer, *args)
        seen.extend(tokenizer.decode(prompt_and_answer(rows[offset])[0]) for offset in rows.offsets if len(rows))
        return rows

    monkeypatch.setattr(module, "encode_tasks", recorded)
    return seen


# ---- new tasks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bank(base, tmp_path):
    tasks = [{"path": write_task(tmp_path, "red"), "prompt": "arrow"}, {"path": write_task(tmp_path, "blue")}]
    train(config_of(tmp_path, base, tasks, prompt=QA, training={"steps": 1}))
    return tmp_path / "out"


def test_a_new_task_takes_the_prompt_of_the_bank_unless_it_is_given_one(bank, tmp_path, monkeypatch):
    module = __import__("colora.transfer.onboarding.onboard", fromlist=["x"])
    seen = encoded_prompts(monkeypatch, module)
    new = tmp_path / write_task(tmp_path, "new", 6)
    onboard(bank, new, settings=FAST)
    onboard(bank, new, name="own", settings=FAST, prompt="{input}: {output}")
    onboard(bank, new, name="talk", settings=FAST, prompt="chat")
    assert seen == ["Q: new 0\nA:", "new 0:", "<|user|>new 0</s><|assistant|>"]
    info = read_bank_info(bank / "bank")
    kept = {"red": NAMED_TEMPLATES["arrow"].text, "own": "{input}: {output}", "talk": None}
    assert (info.prompt, info.prompts) == (QA, kept)


def test_a_prompt_that_does_not_fit_the_new_examples_changes_nothing(bank, tmp_path):
    before = (bank / "bank" / "bank.json").read_bytes()
    new = tmp_path / write_task(tmp_path, "new", 6, instruction="Say it.")
    told = refusal("onboard", bank, new)
    assert f"prompt (--prompt): task 'new', train example 1: found the instruction 'Say it.', and {QA!r}" in told
    assert "expected {output} once" in refusal("onboard", bank, new, "--prompt", "{input}")
    assert (bank / "bank" / "bank.json").read_bytes() == before
    assert cli("onboard", bank, new, "--prompt", "qa", "--steps", 1).exit_code == 0
    assert read_bank_info(bank / "bank").template("new") == NAMED_TEMPLATES["qa"]


# ---- before training ------------------------------------------------------------------------------------------------


def test_similarity_before_training_is_under_the_prompts_of_the_run(base, tmp_path, monkeypatch):
    seen = encoded_prompts(monkeypatch, colora.transfer.before_training)
    path = run_file(tmp_path, base, prompt=QA)
    run_similarity(load_config(path))
    assert [text[:6] for text in seen] == ["Q: red", "Q: blu"]
    lines = []
    run_similarity(load_config(path, ["prompt=auto"]), log=lines.append)
    assert lines[0].startswith("prompt: auto takes")


# ---- groups, and alone ----------------------------------------------------------------------------------------------


def test_auto_is_decided_once_for_all_groups(base, tmp_path, monkeypatch):
    config = config_of(tmp_path, base, prompt="auto", grouping=[["red"], ["blue"]], training={"steps": 1})
    lines = []
    train_groups(config, log=lines.append)
    assert [line for line in lines if line.startswith("prompt: auto")] == lines[:1]
    chosen = json.loads((tmp_path / "out" / "prompt.json").read_text())["prompt"]
    text = None if chosen == "chat" else chosen
    for group in ("red", "blue"):
        assert read_bank_info(tmp_path / "out" / "groups" / group / "bank").prompt == text

    def forbidden(*args):
        raise AssertionError("decided again")

    monkeypatch.setattr("colora.training.prompts.likeliest_template", forbidden)
    train_groups(config)


def test_a_task_alone_has_the_prompt_that_it_has_in_the_bank(base, tmp_path, monkeypatch):
    tasks = [
        {"path": write_task(tmp_path, name, 14), "val": 4, "test": 2} | more
        for name, more in (("red", {"prompt": "arrow"}), ("blue", {}))
    ]
    config = config_of(tmp_path, base, tasks, prompt="auto", chat_template=False, training={"steps": 1})
    found = measure_transfer(config)
    whole = read_bank_info(tmp_path / "out" / "bank")
    for name in ("red", "blue"):
        assert read_bank_info(tmp_path / "out" / "alone" / name / "bank").template(name) == whole.template(name)
    assert whole.template("red") == NAMED_TEMPLATES["arrow"]
    assert measure_transfer(config) == found  # nothing is trained again
    split = evaluate_bank(tmp_path / "out", overrides={"split": "val"}, progress=False)
    assert [one.value for one in split.records] == pytest.approx([one.nll.together for one in found])


def test_what_a_run_says_of_a_prompt_is_said_of_its_parts(base, tmp_path):
    tasks = [
        {"path": write_task(tmp_path, "red"), "prompt": "{input}: {output}"},
        {"path": write_task(tmp_path, "blue")},
    ]
    config = config_of(tmp_path, base, tasks, prompt=QA, grouping=[["blue"], ["red"]], training={"steps": 1})
    train_groups(config)
    _, tokenizer = load_base(base)
    assert tokenizer.chat_template
    assert read_bank_info(tmp_path / "out" / "groups" / "blue" / "bank").prompt_of("blue") == QA
    assert read_bank_info(tmp_path / "out" / "groups" / "red" / "bank").prompt_of("red") == "{input}: {output}"
    with pytest.raises(ConfigError, match="holds another run"):
        train_groups(load_config(tmp_path / "run.yaml", ["prompt=qa"]))
