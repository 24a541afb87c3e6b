"""The choice of a prompt by the untouched base: its nats are those of the text a person would read."""

import pytest
import torch

from colora.models.prompt_choice import LEFT_OUT, likeliest_template, template_nats
from colora.tasks.prompting.templates import NAMED_TEMPLATES, parse_template
from colora.tasks.schema import Example, Task
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

PAIRS = (("one", "two"), ("three", "four"), ("five", "six"))


def task(pairs=PAIRS):
    examples = tuple(Example(question, (answer,)) for question, answer in pairs)
    return Task("count", {"train": examples, "val": (), "test": ()}, "here", None)


def model_and_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tiny_llama().double().eval(), tokenizer


def test_template_nats_are_those_of_the_answer_in_the_whole_text():
    model, tokenizer = model_and_tokenizer()
    expected = 0.0
    for question, answer in PAIRS:
        before = f"Q: {question}\nA:"
        prompt, whole = tokenizer(before)["input_ids"], tokenizer(f"{before} {answer}")["input_ids"]
        ids = torch.tensor([whole])
        logprobs = model(input_ids=ids).logits[0].detach().log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            expected -= float(logprobs[place - 1, ids[0, place]]) / len(PAIRS)
    assert template_nats(model, tokenizer, [task()], 512, NAMED_TEMPLATES["qa"]) == pytest.approx(expected, rel=1e-6)


def test_rows_that_do_not_fit_are_left_out():
    model, tokenizer = model_and_tokenizer()
    assert template_nats(model, tokenizer, [task()], 3, NAMED_TEMPLATES["qa"]) == float("inf")


def test_likeliest_template_takes_the_least_nats_and_offers_the_chat_template_where_there_is_one():
    model, tokenizer = model_and_tokenizer()
    name, nats = likeliest_template(model, tokenizer, [task()], 512)
    assert set(nats) == set(NAMED_TEMPLATES) - set(LEFT_OUT)
    assert nats[name] == min(nats.values())
    own = {"mine": parse_template("{input}>{output}")}
    assert likeliest_template(model, tokenizer, [task()], 512, own)[0] == "mine"
    chatty = tiny_tokenizer()
    assert "chat" in likeliest_template(model, chatty, [task()], 512)[1]
