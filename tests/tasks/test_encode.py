"""Encoding and collating: labels are the output and nothing else, and only the input ever gives way."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.errors import ConfigError, TaskFileError, TaskIdError
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import IGNORED, encode_causal, encode_seq2seq, encode_tasks
from colora.tasks.prompting.prompts import end_token_id, end_token_ids, prompt_ids
from colora.tasks.schema import Example, Task
from tests.helpers.tiny import tiny_llama, tiny_t5, tiny_tokenizer

CHAT, PLAIN = tiny_tokenizer(), tiny_tokenizer(chat=False)
EOS = CHAT.eos_token_id
TOKENIZERS = pytest.mark.parametrize("tokenizer", [CHAT, PLAIN], ids=["chat", "plain"])
TEXT = st.text(max_size=30)
EXAMPLES = st.builds(
    Example, TEXT, st.tuples(st.text(min_size=1, max_size=12)), st.none() | st.text(min_size=1, max_size=10)
)


def task(name: str, *examples: Example) -> Task:
    return Task(name, {"train": examples, "val": (), "test": ()}, "memory", None)


def spoken(labels: list[int]) -> list[int]:
    return [label for label in labels if label != IGNORED]


# Prompts


def test_prompt_puts_instruction_and_input_into_one_turn():
    example = Example("x + y", ("z",), "Add.")
    assert CHAT.decode(prompt_ids(example, CHAT)) == "<|user|>Add.\n\nx + y</s><|assistant|>"
    assert PLAIN.decode(prompt_ids(example, PLAIN)) == "Add.\n\nx + y\n"
    assert PLAIN.decode(prompt_ids(Example("x", ("z",)), PLAIN)) == "x\n"
    assert CHAT.decode(prompt_ids(Example("", ("z",), "Add."), CHAT)) == "<|user|>Add.</s><|assistant|>"
    # Encoder-decoders are not chat models: the template is left aside, and their encoder expects an end token.
    assert CHAT.decode(prompt_ids(example, CHAT, encoder_decoder=True)) == "Add.\n\nx + y\n</s>"


def test_plain_prompt_keeps_the_start_token_and_loses_the_end_token():
    tokenizer = tiny_tokenizer(chat=False)
    from tokenizers import processors

    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=special
    )
    example = Example("x", ("z",))
    assert tokenizer.decode(prompt_ids(example, tokenizer)) == "<s>x\n"
    assert tokenizer.decode(prompt_ids(example, tokenizer, encoder_decoder=True)) == "<s>x\n</s>"
    assert tokenizer.decode(encode_causal(example, tokenizer, 99).input_ids) == "<s>x\nz</s>"


def test_end_token_is_what_the_template_puts_after_an_answer():
    assert end_token_id(CHAT) == end_token_id(PLAIN) == EOS
    other = tiny_tokenizer()
    other.chat_template = (
        "{% for m in messages %}<|user|>{{ m['content'] | trim }} <|system|>\n</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert end_token_id(other) == other.convert_tokens_to_ids("<|system|>")
    assert end_token_ids(other) == {end_token_id(other), EOS}
    assert end_token_id(other, encoder_decoder=True) == EOS
    assert encode_causal(Example("a", ("b",)), other, 99).labels[-1] == end_token_id(other)
    other.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert end_token_id(other) == EOS
    other.eos_token = None
    with pytest.raises(ConfigError, match="expected a tokenizer with an end-of-sequence token, found none"):
        end_token_id(other)
    with pytest.raises(ConfigError, match="outputs could not end"):
        encode_seq2seq(Example("a", ("b",)), other, 99)


# Encoding


def test_causal_rows_are_what_the_template_makes_of_the_conversation():
    turns = [{"role": "user", "content": "Add.\n\n1 1"}, {"role": "assistant", "content": "2"}]
    row = encode_causal(Example("1 1", ("2", "two"), "Add."), CHAT, 100)
    assert row.input_ids == CHAT.apply_chat_template(turns, return_dict=False)
    assert CHAT.decode(encode_causal(Example("1 1", ("2", "two")), CHAT, 100, output="two").input_ids).endswith(
        "two</s>"
    )


@TOKENIZERS
@settings(max_examples=100, deadline=None)
@given(example=EXAMPLES, room=st.integers(0, 60))
def test_truncation_never_touches_output_or_instruction(tokenizer, example, room):
    whole = encode_causal(example, tokenizer, 10_000)
    assert whole.truncated == 0
    assert not whole.too_long
    assert tokenizer.decode(spoken(whole.labels)[:-1], clean_up_tokenization_spaces=False) == example.outputs[0]
    prompt = prompt_ids(example, tokenizer)
    assert whole.input_ids == prompt + spoken(whole.labels)
    assert whole.labels == [IGNORED] * len(prompt) + whole.input_ids[len(prompt) :]

    row = encode_causal(example, tokenizer, room)
    assert row.too_long == (len(row.input_ids) > room)
    assert len(row.labels) == len(row.input_ids)
    assert spoken(row.labels) == spoken(whole.labels)
    assert (row.truncated == 0) == (row.input_ids == whole.input_ids)
    least = encode_causal(Example("", example.outputs, example.instruction), tokenizer, 10_000)
    if row.too_long:
        assert row.input_ids == least.input_ids
    text = tokenizer.decode(row.input_ids)
    assert (example.instruction or "") in text
    # What is left of the input is an end of it, and no broken character stands where it was cut.
    kept = tokenizer.decode(row.input_ids).removesuffix(tokenizer.decode(spoken(row.labels)))
    if row.truncated and not row.too_long:
        assert "\ufffd" not in kept or "\ufffd" in example.input + (example.instruction or "")
        assert (
            prompt_ids(example, tokenizer, room - len(spoken(row.labels))) == row.input_ids[: -len(spoken(row.labels))]
        )


@settings(max_examples=50, deadline=None)
@given(example=EXAMPLES, room=st.integers(0, 60))
def test_seq2seq_limits_each_side_and_never_the_output(example, room):
    row = encode_seq2seq(example, CHAT, room)
    assert CHAT.decode(row.labels[:-1], clean_up_tokenization_spaces=False) == example.outputs[0]
    assert row.labels[-1] == row.input_ids[-1] == EOS
    assert row.too_long == (max(len(row.input_ids), len(row.labels)) > room)


def test_input_is_cut_from_its_left():
    row = encode_causal(Example("0123456789", ("ok",), "Do."), PLAIN, 16)
    assert PLAIN.decode(row.input_ids) == "Do.\n\n3456789\nok</s>"
    assert (row.truncated, len(row.input_ids)) == (3, 16)


# Whole tasks


def test_encoded_tasks_and_their_report():
    tasks = [
        task("a", Example("0123456789", ("ok",)), Example("0", ("ok", "no"))),
        task("none"),
        task("b", Example("1", ("x",))),
    ]
    with pytest.warns(UserWarning, match='task "a": 1 of 2 train inputs were cut to fit 9 tokens .5 tokens') as caught:
        data = encode_tasks(tasks, PLAIN, "train", 9, task_index={"b": 7, "a": 3, "none": 0})
    assert len(caught) == 1
    assert (len(data), data.sizes, data.offsets) == (3, [2, 0, 1], [0, 2, 2])
    assert [data[i]["task_ids"] for i in range(3)] == [3, 3, 7]
    a, none, b = data.report
    assert (a.name, a.examples, a.tokens, a.max_tokens, a.truncated, a.tokens_dropped) == ("a", 2, 14, 9, 1, 5)
    assert (none.examples, none.tokens, none.max_tokens) == (0, 0, 0)
    assert b.truncated == 0
    assert PLAIN.decode(data[1]["input_ids"]) == "0\nok</s>"
    assert encode_tasks(tasks, PLAIN, "train", 99)[2]["task_ids"] == 2
    assert len(encode_tasks(tasks, PLAIN, "val", 9)) == 0


def test_all_outputs_that_are_too_long_are_reported_at_once():
    tasks = [task("a", Example("q", ("ok",)), Example("q", ("x" * 50,))), task("b", Example("q", ("y" * 9,)))]
    with pytest.raises(TaskFileError) as caught:
        encode_tasks(tasks, PLAIN, "train", 10)
    assert caught.value.faults == [
        f'task "a": train example 2: expected at most 10 tokens, found 52 without its input (output "{"x" * 40}")',
        'task "b": train example 1: expected at most 10 tokens, found 11 without its input (output "yyyyyyyyy")',
    ]


def test_unknown_task_is_refused():
    with pytest.raises(TaskIdError, match='expected tasks of the bank, found "a"'):
        encode_tasks([task("a")], PLAIN, "train", 10, task_index={"b": 0})


# Batches


def test_collator_pads_on_the_right():
    items = [
        {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7], "task_ids": 2},
        {"input_ids": [8], "labels": [8], "task_ids": 0},
    ]
    batch = TaskCollator(pad_token_id=1)(items)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["task_ids"].tolist() == [2, 0]
    assert all(value.dtype == torch.long for value in batch.values())
    wide = TaskCollator(1, pad_to_multiple_of=8)(items)
    assert wide["input_ids"].shape == wide["labels"].shape == wide["attention_mask"].shape == (2, 8)


def test_batches_suit_the_models():
    tasks = [task("a", Example("0123456789", ("ok",), "Do.")), task("b", Example("1", ("much longer than that",)))]
    for model, seq2seq in ((tiny_llama(), False), (tiny_t5(), True)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = encode_tasks(tasks, CHAT, "train", 64, encoder_decoder=seq2seq)
        batch = TaskCollator(CHAT.pad_token_id)([data[0], data[1]])
        assert batch.pop("task_ids").tolist() == [0, 1]
        assert torch.isfinite(model(**batch).loss)
