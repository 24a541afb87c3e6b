"""Examples in the prompt against a plain computation: one text a question, read whole, without a cache."""

from dataclasses import replace

import pytest
import torch
from tokenizers import processors

from colora.errors import ConfigError
from colora.experiments.methods.answering import answer_questions
from colora.experiments.methods.in_context import answer_end, questions, similarity_order
from colora.experiments.methods.runner import Runner
from colora.tasks.prompting.templates import parse_template
from colora.tasks.schema import Example, Task, prompted
from tests.helpers.method_trials import runner_trial, toy_tasks
from tests.helpers.reference_in_context import context_text, greedy_answer, nats_of
from tests.helpers.reference_methods import exact_llama
from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

INPUTS = ["the cat sat", "a dog ran far", "the dog sat", "one bird", "", "Cat and dog", "one bird ran"]
TEMPLATES = {"newline": "{instruction}\n\n{input}\n{output}", "qa": "{instruction}\nQ: {input}\nA: {output}"}


def some_task(instruction=None, template="qa", train=INPUTS[:5], test=INPUTS[5:]):
    splits = {
        split: tuple(Example(text, (f"{text[:3]}!{n}",), instruction) for n, text in enumerate(texts))
        for split, texts in (("train", train), ("val", ()), ("test", test))
    }
    return prompted(Task("pets", splits, "", 0), parse_template(template))


def trial(**changes):
    return runner_trial("tiny", "in-context", **({"test": 9, "max_new_tokens": 6} | changes))


@pytest.mark.parametrize("limit", [1024, 120, 70])
@pytest.mark.parametrize("instruction", [None, "Name it."])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.filterwarnings("ignore:task 'pets'")
def test_questions_and_answers_equal_the_plain_computation(nearest, template, instruction, limit):
    model, tokenizer = exact_llama(layers=2), tiny_tokenizer(chat=False)
    task = some_task(instruction, template)
    asked = questions(task, tokenizer, model, trial(), limit, nearest)
    assert asked.share_context == (not nearest) or limit < 1024
    nats, texts = answer_questions(model, tokenizer, asked, 2, 6)
    assert (len(nats), len(texts)) == (2, 2)
    longest = max(6, *(len(example.outputs[0]) + 2 for example in task.splits["test"]))
    for example, question, found, text in zip(task.splits["test"], asked.items, nats, texts, strict=True):
        context, prompt, count = context_text(task, example, TEMPLATES[template], limit, longest, nearest)
        lead = " " if template == "qa" else ""
        if count:
            assert tokenizer.decode(list(question.context)) == context
        assert question.examples == count
        before = list(question.context + question.prompt)
        assert tokenizer.decode(before) == (context + prompt)
        answer = tokenizer(lead + example.outputs[0] + "\n")["input_ids"]
        assert list(question.answer) == answer
        assert len(before) + longest <= limit
        assert found == pytest.approx(nats_of(model, before, answer), rel=1e-9)
        newline = tokenizer("\n")["input_ids"][0]
        said = greedy_answer(model, before, 6, {newline, tokenizer.eos_token_id})
        assert text == tokenizer.decode(said, skip_special_tokens=True).strip()


def test_more_questions_than_a_batch_and_fewer_answers():
    """More than two batches of 12; the answers stop in the middle of one; each question is as if asked alone."""
    model, tokenizer = exact_llama(layers=1), tiny_tokenizer(chat=False)
    task = some_task(test=[f"{'cat ' * (n % 4)}{n}" for n in range(27)])
    for nearest in (False, True):
        asked = questions(task, tokenizer, model, trial(test=27), 400, nearest)
        nats, texts = answer_questions(model, tokenizer, asked, 14, 4)
        assert (len(nats), len(texts)) == (27, 14)
        for place in (0, 11, 12, 13, 26):
            question = asked.items[place]
            before = list(question.context + question.prompt)
            assert nats[place] == pytest.approx(nats_of(model, before, list(question.answer)), rel=1e-9)


def test_the_nearest_stands_last_and_ties_keep_their_order():
    train = [Example(text, ("x",)) for text in INPUTS[:5]]
    assert similarity_order(Example("The DOG sat", ("x",)), train) == [2, 0, 1, 3, 4]
    assert similarity_order(Example("fish", ("x",)), train) == [0, 1, 2, 3, 4]
    assert similarity_order(Example("", ("x",)), train) == [0, 1, 2, 3, 4]
    asked = questions(
        some_task(test=["the dog sat"]), tiny_tokenizer(chat=False), tiny_llama(), trial(), 1024, nearest=True
    )
    text = tiny_tokenizer(chat=False).decode(list(asked.items[0].context))
    assert [line[3:] for line in text.splitlines() if line.startswith("Q:")] == [
        "", "one bird", "a dog ran far", "the cat sat", "the dog sat",
    ]  # fmt: skip


def test_instructions_that_differ_or_stand_elsewhere_are_in_every_example():
    tokenizer = tiny_tokenizer(chat=False)
    task = some_task("Name it.")
    train = task.splits["train"]
    other = replace(task, splits=task.splits | {"train": (replace(train[0], instruction="Call it."), *train[1:])})
    elsewhere = prompted(task, parse_template("Q: {input} ({instruction})\nA: {output}"))
    for one, wanted in ((task, 1), (other, 5), (elsewhere, 6)):
        asked = questions(one, tokenizer, tiny_llama(), trial(), 1024, nearest=False)
        shown = tokenizer.decode(list(asked.items[0].context + asked.items[0].prompt))
        assert shown.count("Name it.") == wanted


def test_an_instruction_stands_in_the_prompt_where_no_example_fits():
    tokenizer = tiny_tokenizer(chat=False)
    with pytest.warns(UserWarning, match="task 'pets': 0 of 5 training examples fit a context of 40 tokens"):
        asked = questions(some_task("Name it."), tokenizer, tiny_llama(), trial(), 40, nearest=False)
    assert all(not question.context for question in asked.items)
    assert all(tokenizer.decode(list(question.prompt)).startswith("Name it.\nQ: ") for question in asked.items)
    nats, _ = answer_questions(tiny_llama(), tokenizer, asked, 0, 6)
    assert len(nats) == 2


def test_the_models_positions_bound_the_context_as_well():
    with pytest.warns(UserWarning, match="of 5 training examples fit a context of 80 tokens"):
        questions(some_task(), tiny_tokenizer(chat=False), tiny_llama(positions=80), trial(), 1024, nearest=False)


def test_no_room_at_all():
    with pytest.raises(ConfigError, match="expected room for a prompt in 6 tokens, of which an answer takes 7"):
        questions(some_task(), tiny_tokenizer(chat=False), tiny_llama(), trial(), 6, nearest=False)


def test_a_beginning_of_sequence_stands_once_at_the_beginning():
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    asked = questions(some_task(), tokenizer, tiny_llama(), trial(), 1024, nearest=False)
    before = asked.items[0].context + asked.items[0].prompt
    assert before[0] == 1
    assert 1 not in before[1:]


def test_answers_with_lines_end_at_a_blank_line():
    assert answer_end([Example("a", ("b",)), Example("a", ("c\n",))]) == "\n"
    assert answer_end([Example("a", ("b",)), Example("a", ("c\nd",))]) == "\n\n"


@pytest.mark.parametrize("method", ["in-context", "in-context-nearest"])
def test_a_trial_keeps_and_trains_nothing(method, tmp_path):
    runner = Runner(save_base(tmp_path, tiny_llama(hidden=8, layers=2)), device="cpu")
    record = runner.run(runner_trial(runner.base, method, prompt="qa"), toy_tasks())
    plain = runner.run(runner_trial(runner.base, "base", prompt="qa"), toy_tasks())
    assert (record.trainable, record.shared_numbers, record.task_numbers, record.losses) == (0, 0, 0, [])
    for name, scores in record.scores.items():
        assert scores.tokens == plain.scores[name].tokens, "as many tokens count as with every method"
        assert scores.nll != plain.scores[name].nll
    assert torch.is_grad_enabled()
