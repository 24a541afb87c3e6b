"""What a base model cannot take: tokens that it has no embeddings for, and more positions than it has."""

import json

import pytest
from transformers import (
    MptConfig,
    MptForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from colora.errors import BaseModelError, ConfigError, TaskFileError
from colora.models.base import load_base
from colora.models.generate import fit_prompts, generate_outputs
from colora.models.positions import most_positions
from colora.tasks.schema import Example
from colora.training.check import check_run
from colora.training.run import train
from tests.helpers import odd_models
from tests.helpers.run_files import config_of, content, refusal, run_file, save_base, write_task
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:task .* were cut")


def base_with(folder, model=None, tokens=(), special=None):
    """A base whose tokenizer has more tokens than the model has embeddings."""
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special or {})
    (tiny_llama() if model is None else model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# ---- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "kind"), [({"pad_token": "[PAD]"}, "padding"), ({"eos_token": "[END]"}, "end-of-text")]
)
def test_a_token_of_every_batch_without_an_embedding(tmp_path, special, kind):
    base = base_with(tmp_path / "base", special=special)
    (token,) = special.values()
    message = (
        f"{kind} token has no embedding in the model: the base model has embeddings for {VOCAB} tokens, ids 0 to "
        f"{VOCAB - 1}, but none for '{token}' (id {VOCAB}): give it more (model.resize_token_embeddings"
    )
    with pytest.raises(BaseModelError) as caught:
        load_base(base)
    assert message in str(caught.value)
    file = run_file(tmp_path, base)
    for command in ("check", "train", "similarity"):
        assert message in refusal(command, str(file))
    assert not (tmp_path / "out").exists()


def test_a_token_of_the_examples_without_an_embedding(tmp_path):
    base = base_with(tmp_path / "base", tokens=["<new>", "<unused>"])
    config = config_of(tmp_path, base)
    write_task(tmp_path, "red", input="some <new> words")
    before = content(tmp_path)
    for attempt in (check_run, train):
        with pytest.raises(
            TaskFileError, match=rf'task "red": (train|test) example 1: .* none for \'<new>\' \(id {VOCAB}\)'
        ):
            attempt(config)
    assert content(tmp_path) == before


def test_a_token_of_an_output(tmp_path):
    config = config_of(tmp_path, base_with(tmp_path / "base", tokens=["<new>"]))
    write_task(tmp_path, "blue", output="a <new> colour")
    with pytest.raises(TaskFileError, match="'<new>'"):
        check_run(config)


def test_added_tokens_that_no_example_has_do_no_harm(tmp_path):
    """Gemma 3 has such a one."""
    base = base_with(tmp_path / "base", tokens=["<unused>"])
    train(config_of(tmp_path, base))
    folder = str(tmp_path / "out")
    message = f"a prompt of task 'red': the base model has embeddings for {VOCAB} tokens"
    assert message in refusal("generate", folder, "--task", "red", "say <unused>")
    write_task(tmp_path, "new", input="<unused>")
    assert "'<unused>'" in refusal("onboard", folder, str(tmp_path / "new.jsonl"), "--output", str(tmp_path / "more"))
    write_task(tmp_path, "red", input="<unused>")
    assert refusal("evaluate", folder)


def test_every_token_with_an_embedding_is_let_through(tmp_path):
    model = tiny_llama()
    model.resize_token_embeddings(VOCAB + 1)
    base = base_with(tmp_path / "base", model, tokens=["<new>"])
    config = config_of(tmp_path, base)
    write_task(tmp_path, "red", input="some <new> words")
    assert check_run(config).reports


def test_a_tokenizer_that_was_not_loaded_with_a_base_is_taken_as_it_is():
    example = Example("<new>", ("x",), None)
    assert fit_prompts([("red", example)], tiny_llama(), tiny_tokenizer(chat=False), 20, 4)


# ---- positions ------------------------------------------------------------------------------------------------------


def roberta():
    """514 rows of positions in the published model, of which the first two are never used; here 40 and 2."""
    config = RobertaConfig(**odd_models.BERT | {"max_position_embeddings": 40}, is_decoder=True, pad_token_id=1)
    return odd_models.seeded(RobertaForCausalLM, config)


def mpt():
    return odd_models.seeded(
        MptForCausalLM, MptConfig(d_model=32, n_heads=4, n_layers=1, max_seq_len=40, vocab_size=VOCAB)
    )


@pytest.mark.parametrize(
    ("make", "positions"), [(tiny_llama, 512), (tiny_gpt2, 256), (tiny_t5, None), (roberta, 38), (mpt, 40)]
)
def test_the_positions_of_a_model(make, positions):
    assert most_positions(make()) == positions


@pytest.mark.parametrize(("make", "positions"), [(roberta, 38), (mpt, 40)])
def test_as_many_positions_as_are_said_can_be_used(make, positions):
    model, tokenizer = make(), tiny_tokenizer(chat=False)
    rows = [("red", Example("long " * 40, ("x",), None))]
    prompts = fit_prompts(rows, model, tokenizer, 500, max_new_tokens=8)
    assert len(prompts[0]) == positions - 8
    assert generate_outputs(model, tokenizer, prompts, None, max_new_tokens=8)


def test_more_than_the_model_has_are_told(tmp_path):
    base = save_base(tmp_path / "base", roberta(), chat=False)
    file = str(run_file(tmp_path, base))
    for command in ("check", "train", "similarity"):
        message = refusal(command, file)
        assert "training.max_length is 96" in message
        assert "has 38 positions: lower training.max_length" in message
    federation = {"adapter": {"r": 4}, "training": {"max_length": 96}, "base": base, "output": str(tmp_path / "fed")}
    path = tmp_path / "fed.yaml"
    path.write_text(json.dumps(federation | {"tasks": [{"path": "red.jsonl"}, {"path": "blue.jsonl"}]}))
    assert "has 38 positions: lower training.max_length" in refusal("federate", "simulate", str(path))


def test_settings_that_are_not_plain_numbers_bound_nothing():
    model = tiny_llama()
    model.config.max_position_embeddings = -1
    assert most_positions(model) is None
    model.config.max_position_embeddings = 4
    with pytest.raises(ConfigError, match="expected room for a prompt, found 4 positions"):
        fit_prompts([("red", Example("x", ("x",), None))], model, tiny_tokenizer(chat=False), 20, 8)
