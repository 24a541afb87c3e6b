"""The choice of a prompt by the untouched base: its nats are those of the text a person would read."""

import pytest
import torch

from colora.models.prompt_choice import EXAMPLES, LEFT_OUT, TASKS, likeliest_template
from colora.tasks.prompting.templates import NAMED_TEMPLATES, parse_template
from colora.tasks.schema import Example, Task
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

PAIRS = (("one", "two"), ("three", "four"), ("five", "six"))


QA = NAMED_TEMPLATES["qa"]


def task(pairs=PAIRS, name="count"):
    examples = tuple(Example(question, (answer,)) for question, answer in pairs)
    return Task(name, {"train": examples, "val": (), "test": ()}, "here", None)


def model_and_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tiny_llama().double().eval(), tokenizer


def nats_of(tasks, max_length=512, **candidates):
    return likeliest_template(*model_and_tokenizer(), tasks, max_length, candidates)[1]


def answer_nats(pairs):
    """Mean nats of the answers in the whole text, by hand."""
    model, tokenizer = model_and_tokenizer()
    total = 0.0
    for question, answer in pairs:
        before = f"Q: {question}\nA:"
        prompt, whole = tokenizer(before)["input_ids"], tokenizer(f"{before} {answer}")["input_ids"]
        ids = torch.tensor([whole])
        logprobs = model(input_ids=ids).logits[0].detach().log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            total -= float(logprobs[place - 1, ids[0, place]]) / len(pairs)
    return total


def test_nats_are_those_of_the_answer_in_the_whole_text():
    assert nats_of([task()], qa=QA)["qa"] == pytest.approx(answer_nats(PAIRS), rel=1e-6)


def test_every_task_counts_alike():
    few, many = PAIRS[:1], [(f"{number}", "seven") for number in range(5)]
    expected = (answer_nats(few) + answer_nats(many)) / 2
    assert nats_of([task(few), task(many, "other")], qa=QA)["qa"] == pytest.approx(expected, rel=1e-6)


def test_the_whole_of_a_sorted_file_is_looked_at():
    number = 4 * EXAMPLES
    ordered = [(f"{index}", "yes" if index < number // 2 else "no no no no") for index in range(number)]
    assert nats_of([task(ordered)], qa=QA)["qa"] == pytest.approx(answer_nats(ordered[::4]), rel=1e-6)


def test_of_many_tasks_some_are_looked_at_from_first_to_last():
    tasks = [task([(f"{number}", f"{number % 7}")], f"task-{number}") for number in range(3 * TASKS)]
    seen = [task.splits["train"][0] for task in tasks[::3]]
    expected = answer_nats([(example.input, example.outputs[0]) for example in seen])
    assert nats_of(tasks, qa=QA)["qa"] == pytest.approx(expected, rel=1e-6)


def test_templates_are_compared_on_the_examples_that_fit_under_all():
    _, tokenizer = model_and_tokenizer()
    pairs = [*PAIRS, ("a rather longer question than the others", "nine")]
    wordy = parse_template("The question is: {input}\nThe answer is: {output}")
    longest = max(
        len(tokenizer(wordy.text.replace("{input}", question).replace("{output}", answer))["input_ids"])
        for question, answer in PAIRS
    )
    room = longest + 1
    together = nats_of([task(pairs)], room, short=parse_template("{input}>{output}"), wordy=wordy)
    alone = nats_of([task()], room, short=parse_template("{input}>{output}"))
    assert together["short"] == pytest.approx(alone["short"], rel=1e-6)


def test_a_template_without_room_for_half_of_the_examples_is_out_and_spoils_nothing():
    short = parse_template("{input}>{output}")
    wordy = parse_template("word " * 60 + "{input}>{output}")
    together = nats_of([task()], 40, short=short, wordy=wordy)
    assert together == {"short": nats_of([task()], 40, short=short)["short"], "wordy": float("inf")}
    assert nats_of([task()], 3, qa=QA) == {"qa": float("inf")}


def test_likeliest_template_takes_the_least_nats_and_offers_the_chat_template_where_there_is_one():
    model, tokenizer = model_and_tokenizer()
    name, nats = likeliest_template(model, tokenizer, [task()], 512)
    assert set(nats) == set(NAMED_TEMPLATES) - set(LEFT_OUT)
    assert nats[name] == min(nats.values())
    own = {"mine": parse_template("{input}>{output}")}
    assert likeliest_template(model, tokenizer, [task()], 512, own)[0] == "mine"
    chatty = tiny_tokenizer()
    assert "chat" in likeliest_template(model, chatty, [task()], 512)[1]
