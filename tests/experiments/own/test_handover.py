"""What is handed over gives the likelihoods that the trial measured, whatever method won."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from colora import load_bank
from colora.bank.how_to_prompt import HowToPrompt
from colora.bank.layout import BankInfo
from colora.errors import BankFileError, ConfigError
from colora.experiments.methods.data import encode_rows
from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.runner import Runner
from colora.experiments.own.contenders import CONTENDERS
from colora.experiments.own.handover.adapters import is_bank, write_bank_of, write_loras
from colora.experiments.own.handover.contexts import contexts, write_contexts
from colora.experiments.own.handover.weights import keep_weights, read_weights
from colora.models.base import load_base
from colora.models.batching import pad
from colora.models.likelihood import row_nll
from colora.tasks.encode import IGNORED
from colora.tasks.prompting.templates import template_of
from colora.tasks.schema import prompted
from tests.helpers.method_trials import runner_trial, toy_tasks
from tests.helpers.run_files import save_base

TRAINED = [one.method for one in CONTENDERS if one.trained and one.method in METHODS]
RATES = {"lr": 0.05, "core_lr": 0.1, "steps": 6, "alpha": 3.0, "first_layer": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), chat=False)


def trained(base, method, folder):
    """A runner after a trial, its record, and what it kept."""
    runner, path = Runner(base, "fp64"), folder / "kept.safetensors"
    trial = runner_trial(base, method, dtype="fp64", options={}, **RATES)
    runner.on_trained = lambda trial, layers: keep_weights(path, layers, trial.tasks)
    return runner, runner.run(trial, toy_tasks()), path


def nats(model, tokenizer, index, trial, call=None):
    """Nats of the test answers of a task, by its place among the toy tasks."""
    rows = encode_rows(toy_tasks(), tokenizer, "test", trial.max_length)[index][: trial.test]
    ids, mask = pad([row.input_ids for row in rows], 0, model.device)
    labels, _ = pad([row.labels for row in rows], IGNORED, model.device)
    with torch.no_grad():
        return row_nll(model, {"input_ids": ids, "attention_mask": mask} | (call or {}), labels).tolist()


def assert_same(found, record, task):
    assert found == pytest.approx(record.scores[task].nll, abs=6e-5)  # records round to four digits


@pytest.mark.parametrize("method", [*TRAINED, "colora-residual"])
def test_loras_give_the_trials_own_likelihoods(base, tmp_path, method):
    runner, record, path = trained(base, method, tmp_path)
    untouched = Runner(base, "fp64").run(runner_trial(base, "base", dtype="fp64", first_layer=0), toy_tasks())
    weights = read_weights(path)
    use = HowToPrompt(BankInfo(base=base, chat_template=False, prompt="qa"), runner.tokenizer)
    folders = write_loras(weights, runner.model, tmp_path / "lora", use)
    assert "Q: {input}" in (folders[0] / "README.md").read_text("utf-8")
    shared = method == "pooled"
    assert [folder.name for folder in folders] == (["all"] if shared else ["red", "blue", "green"])
    for index, task in enumerate(weights.tasks):
        model, tokenizer = load_base(base, dtype=torch.float64, chat_template=False)
        lora = PeftModel.from_pretrained(model, folders[0 if shared else index], autocast_adapter_dtype=False)
        assert_same(nats(lora, tokenizer, index, record.trial), record, task)
        assert record.scores[task].nll != untouched.scores[task].nll


@pytest.mark.parametrize("method", ["pooled", "colora"])
def test_banks_give_the_trials_own_likelihoods(base, tmp_path, method):
    runner, record, path = trained(base, method, tmp_path)
    weights = read_weights(path)
    assert is_bank(weights)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    write_bank_of(weights, runner.model, tmp_path / "bank", BankInfo(base=base, chat_template=False))
    assert runner.model.state_dict().keys() == before.keys()  # and the base is as it was
    model, tokenizer, info = load_bank(tmp_path / "bank", dtype=torch.float64)
    assert info.base == base
    for index, task in enumerate(weights.tasks):
        ids = {"task_ids": torch.full((record.trial.test,), index)[: len(record.scores[task].nll)]}
        assert_same(nats(model, tokenizer, index, record.trial, ids), record, task)


def test_what_is_no_bank(base, tmp_path):
    for method in ("local", "colora-residual"):
        _, _, path = trained(base, method, tmp_path)
        assert not is_bank(read_weights(path))


def test_what_cannot_be_a_lora_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="expected plain terms, found a folded update or a diagonal core"):
        trained(base, "colora-diagonal", tmp_path)


def test_damaged_weights_are_told(base, tmp_path):
    _, _, path = trained(base, "pooled", tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BankFileError, match=r"kept.safetensors: cannot be read .* remove it"):
        read_weights(path)


def test_examples_in_the_prompt_are_written_as_they_were_measured(base, tmp_path):
    runner = Runner(base, "fp64")
    trial = runner_trial(base, "in-context", dtype="fp64", options={"context": 300})
    found = contexts(toy_tasks(), runner.tokenizer, runner.model, trial)
    write_contexts(found, tmp_path)
    red = json.loads((tmp_path / "prompts.json").read_text("utf-8"))["red"]
    assert red["before"].startswith("red train 0\nr0\n\nred train 1\nr1\n\n")
    assert red["before"].endswith("r3\n\n")
    assert (red["examples"], red["answer_ends_at"]) == (4, "\n")
    assert red["template"] == "{instruction}\n\n{input}\n{output}"


def test_an_instruction_that_stands_before_the_examples_is_not_asked_for_again(base):
    runner = Runner(base, "fp64")
    trial = runner_trial(base, "in-context", dtype="fp64", options={"context": 300})
    for prompt, template in (
        ("newline", "{input}\n{output}"),
        ("{instruction}\nQ: {input}\nA: {output}", "Q: {input}\nA: {output}"),
        ("Q: {input}\n{instruction}\nA: {output}", None),  # there it stands in every example
    ):
        tasks = [told(prompted(task, template_of(prompt)), "Say it.") for task in toy_tasks()]
        red = contexts(tasks, runner.tokenizer, runner.model, trial)["red"]
        assert red.before.count("Say it.") == (1 if template else red.examples)
        assert red.template == (template or prompt)


def told(task, instruction):
    splits = {name: tuple(replace(one, instruction=instruction) for one in some) for name, some in task.splits.items()}
    return replace(task, splits=splits)
