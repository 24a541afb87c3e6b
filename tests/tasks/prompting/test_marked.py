"""Rows in marked tokens: nothing of the text is lost, and the space before an answer is seen."""

import pytest

from colora.tasks.encode import EncodedRow, encode_causal, encode_seq2seq, prompt_and_answer
from colora.tasks.prompting.marked import mark_row
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.tasks.schema import Example
from tests.helpers.tiny import byte_fallback_tokenizer, tiny_tokenizer


def marked(example, tokenizer):
    row = encode_causal(example, tokenizer, 500)
    return mark_row(*prompt_and_answer(EncodedRow(input_ids=row.input_ids, labels=row.labels, task_ids=0)), tokenizer)


@pytest.mark.parametrize("text", ["one two", "  é 日本 \n", "\ufffd"])
def test_the_pieces_are_the_text_of_the_row(text):
    row = marked(Example(text, ("drei ü",), template=NAMED_TEMPLATES["qa"]), tiny_tokenizer())
    assert "".join(row.prompt) == f"Q: {text}\nA:"
    assert (row.answer[0], "".join(row.answer)) == (" ", " drei ü</s>")
    assert row.answer[-1] == "</s>"


def test_a_character_of_several_tokens_is_one_piece_and_they_are_counted():
    row = marked(Example("é", ("日",), template=NAMED_TEMPLATES["arrow"]), tiny_tokenizer())
    assert row.prompt == ("é", " ", "-", ">")
    assert row.answer == (" ", "日", "</s>")
    assert (row.prompt_tokens, row.answer_tokens) == (5, 5)


def test_a_tokenizer_that_hides_the_first_space_does_not_hide_it_here():
    tokenizer = byte_fallback_tokenizer()
    row = marked(Example("b", ("hello",), template=NAMED_TEMPLATES["qa"]), tokenizer)
    assert (row.answer[0], "".join(row.answer)) == (" ", " hello</s>")


def test_the_middle_of_long_texts_is_left_out():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("abcdefghij", add_special_tokens=False)["input_ids"]
    row = mark_row(ids, ids[:4], tokenizer, most=4)
    assert row.prompt == ("a", "b", None, "i", "j")
    assert row.answer == ("a", "b", "c", "d")
    assert (row.prompt_tokens, row.answer_tokens) == (10, 4)


def test_prompt_and_answer_of_an_encoder_decoder():
    row = encode_seq2seq(Example("a", ("b",)), tiny_tokenizer(), 50)
    given = EncodedRow(input_ids=row.input_ids, labels=row.labels, task_ids=0)
    assert prompt_and_answer(given) == (row.input_ids, row.labels)
