"""The text of an output, byte for byte: whatever the decoder does with spaces and with bytes that are no character."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.models.decoding.text import TextStream
from tests.helpers.tiny import SPECIALS, byte_fallback_tokenizer, tiny_tokenizer

FALLBACK, BYTES = byte_fallback_tokenizer(), tiny_tokenizer()
WORDS = [FALLBACK.convert_tokens_to_ids(one) for one in ("▁", "▁a", "▁hello", "b", "섬", "»")]
HINDI = [len(SPECIALS) + byte for byte in "क\n".encode()]


def streamed(tokenizer, tokens, prompt=(), stop=(), strip=False):
    stream = TextStream(tokenizer, stop, strip, prompt)
    return [*(stream.add(token) for token in tokens), stream.end()]


def follows(tokenizer, prompt, tokens):
    """What the tokens add to the prompt's text, decoded as a whole."""
    before = tokenizer.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert whole.startswith(before)
    return whole[len(before) :]


def test_the_first_space_is_kept():
    prompt, tokens = [1, WORDS[3]], [WORDS[1], WORDS[3], WORDS[0]]
    assert FALLBACK.decode(tokens) == "ab "  # what the decoder says without the prompt
    assert streamed(FALLBACK, tokens, prompt) == [" a", "b", " ", ""]


pieces = st.lists(st.sampled_from([*([word] for word in WORDS), HINDI]), max_size=8)


@settings(deadline=None)
@given(pieces, pieces)
def test_pieces_make_up_what_follows_the_prompt(before, after):
    prompt, tokens = [1, *chain(*before)], [*chain(*after)]
    assert "".join(streamed(FALLBACK, tokens, prompt)) == follows(FALLBACK, prompt, tokens)


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_pieces_make_up_any_text(before, after):
    prompt, tokens = (BYTES(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    assert "".join(streamed(BYTES, tokens, prompt)) == after


@given(st.lists(st.integers(len(SPECIALS), len(SPECIALS) + 255), max_size=12))
@settings(deadline=None)
def test_bytes_that_are_no_text_end_no_stream(tokens):
    """As a hot sampler draws them. What was given out stays, and the rest comes, with U+FFFD where there is no text."""
    text = "".join(streamed(FALLBACK, tokens, [1, WORDS[3]]))
    assert bool(text) == bool(tokens)


def test_half_a_character_at_the_end_is_shown_as_one():
    euro = BYTES("a€", add_special_tokens=False)["input_ids"]
    assert streamed(BYTES, euro[:-1]) == ["a", "", "", "\ufffd"]
    assert streamed(BYTES, euro[-1:], euro[:-1]) == ["€", ""]  # its other half stands in the prompt


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(("\n\n",), "  a:"), ((" b",), "  a:\n\n "), (("c",), "  a:\n\n  b \n"), (("\n c",), "  a:\n\n  b \n")],
)
def test_white_space_before_a_stop_string_stays(stop, expected):
    tokens = BYTES("  a:\n\n  b \n", add_special_tokens=False)["input_ids"]
    stream = TextStream(BYTES, stop, strip=False)
    text = ""
    for token in tokens:
        text += stream.add(token)
        if stream.stopped:
            break
    assert text + stream.end() == expected
