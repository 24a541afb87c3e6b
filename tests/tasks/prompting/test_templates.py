"""Prompt templates: what stands where, and which tokens an answer has."""

import pytest

from colora.errors import ConfigError
from colora.tasks.encode import IGNORED, encode_causal
from colora.tasks.prompting.prompts import prompt_ids, use_plain_prompts
from colora.tasks.prompting.templates import NAMED_TEMPLATES, parse_template
from colora.tasks.schema import Example
from tests.helpers.tiny import tiny_tokenizer


def test_parse_template_gives_the_spaces_before_the_answer_to_the_answer():
    template = parse_template("Q: {input}\nA:  {output}")
    assert template.lead == "  "
    assert template.prompt(None, "{a} b") == "Q: {a} b\nA:"


def test_prompt_without_an_instruction_leaves_its_line_out():
    template = NAMED_TEMPLATES["qa"]
    assert template.prompt(None, "x") == "Q: x\nA:"
    assert template.prompt("Say it:", "x") == "Say it:\nQ: x\nA:"


def test_prompt_refuses_an_instruction_that_has_no_place():
    with pytest.raises(ConfigError, match=r"add {instruction} to the prompt"):
        parse_template("{input}={output}").prompt("Say it:", "x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{input}", r"\{output\} once, found it 0"),
        ("{input}{input}{output}", r"\{input\} once, found it 2"),
        ("{input} {outputs}", r"found \{outputs\}"),
        ("{input} {output}.", r"found '\.' after it"),
        ("qq", "or one of newline, qa"),
    ],
)
def test_parse_template_says_what_is_wrong(text, found):
    with pytest.raises(ConfigError, match=found):
        parse_template(text)


def test_named_newline_is_the_plain_prompt():
    tokenizer = tiny_tokenizer()
    use_plain_prompts(tokenizer)
    for instruction in (None, "say it"):
        plain = Example("one two", ("three",), instruction)
        named = Example("one two", ("three",), instruction, template=NAMED_TEMPLATES["newline"])
        assert encode_causal(named, tokenizer, 64) == encode_causal(plain, tokenizer, 64)


def test_the_tokens_of_prompt_and_answer_are_those_of_the_whole_text():
    tokenizer = tiny_tokenizer()
    example = Example("one two", ("three",), template=NAMED_TEMPLATES["qa"])
    row = encode_causal(example, tokenizer, 64)
    prompt = prompt_ids(example, tokenizer)
    assert row.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(row.input_ids[:-1]) == "Q: one two\nA: three"
    assert tokenizer.decode([label for label in row.labels[:-1] if label != IGNORED]) == " three"
