"""What goes wrong in one row of a batch ends that row; the others get the tokens that they would have got."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from colora.adapter.config import CoLoRAConfig
from colora.errors import ConfigError
from colora.models.decoding.batch import Batch, Row, RowError, run_rows
from colora.models.decoding.sampling import Sampler, Sampling
from colora.models.decoding.text import TextStream
from tests.helpers.tiny import VOCAB, byte_fallback_tokenizer, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TOKENIZER = tiny_tokenizer()
BYTES = byte_fallback_tokenizer()
BAD, GOOD = 2, (0, 1)
SIZES = (4, 11, 7)


def bank(bad=float("nan")):
    model = tiny_llama(dtype=torch.float64)
    torch.manual_seed(1)
    config = CoLoRAConfig(r=3, lora_alpha=30, tasks=["a", "b", "bad"], init_weights=False)
    model = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "colora_core" in name and bad is not None:
                parameter[BAD] = bad
    return model


MODEL = bank()


def batch(rows=4):
    made = Batch(MODEL, TOKENIZER, rows, probe_tasks=GOOD)
    made.ends = set()
    return made


def prompt(number, length=6):
    return random.Random(number).choices(range(6, VOCAB), k=length)


def innocent():
    return [Row(prompt(number, length), number % 2, Sampling(15)) for number, length in enumerate(SIZES)]


def expected():
    rows = innocent()
    for row in rows:
        run_rows(batch(1), [row])
    return [row.tokens for row in rows]


EXPECTED = expected()


def together(guilty, at=0, made=None):
    """The tokens of innocent rows that run beside another one, and the error of that one."""
    made, rows, errors = made or batch(), innocent(), []
    pieces = made.join(rows[:1] + ([guilty] if at == 0 else []) + rows[1:])
    for turn in range(1, 20):
        if turn == at:
            pieces += made.join([guilty])
        pieces += made.step()
    errors = {id(piece.row): piece.error for piece in pieces if piece.error is not None}
    assert not made.rows
    assert errors.keys() == {id(guilty)}
    assert guilty.finish == "error"
    assert [row.finish for row in rows] == ["length"] * 3
    return [row.tokens for row in rows], errors[id(guilty)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("at", [0, 3])
def test_logits_that_are_no_numbers_end_their_row(monkeypatch, value, at):
    monkeypatch.setattr("tests.models.test_row_errors.MODEL", bank(value))
    tokens, error = together(Row(prompt(9), BAD, Sampling(15)), at)
    assert tokens == EXPECTED
    assert str(error) == "the model failed at this request: its logits are NaN or infinite"
    sampled = Row(prompt(9), BAD, Sampling(15, temperature=1.0, seed=1))
    assert together(sampled, at)[0] == EXPECTED


def test_the_next_row_in_the_slot_of_one_with_nan_is_unharmed():
    made = batch(2)
    rest = Row(prompt(0, SIZES[0]), 0, Sampling(15))
    long_bad = Row(prompt(9, 60), BAD, Sampling(15))
    made.join([rest, long_bad])
    assert long_bad.finish == "error"
    later = Row(prompt(1, SIZES[1]), 1, Sampling(15))
    made.join([later])
    while made.rows:
        made.step()
    assert [rest.tokens, later.tokens] == EXPECTED[:2]


@pytest.mark.parametrize("step", [0, 1, 4])
def test_a_text_that_cannot_be_decoded_ends_its_row(monkeypatch, step):
    guilty, add = Row(prompt(9), 0, Sampling(15)), TextStream.add

    def fail(stream, token):
        if stream is guilty.text and len(guilty.tokens) > step:
            raise RuntimeError("secret of the tokenizer")
        return add(stream, token)

    monkeypatch.setattr(TextStream, "add", fail)
    tokens, error = together(guilty)
    assert tokens == EXPECTED
    assert isinstance(error, RowError)
    assert "the model failed at this request (RuntimeError" in str(error)
    assert "secret" not in str(error)
    assert "secret" in str(error.__cause__)


def test_a_decoder_that_panics_ends_its_row():
    # A panic of tokenizers is no Exception: it ended the thread of the model, and every request waited for ever.
    words = ["\u2581", "a", "b"]
    vocab = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *words, "\u2581" * 3])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 0, 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    with pytest.raises(RuntimeError, match="the tokenizer's decoder failed"):
        TextStream(tokenizer).add(2)
    made = batch(2)
    good, guilty = Row(prompt(0, SIZES[0]), 0, Sampling(15)), Row(prompt(9), 0, Sampling(15))
    made.join([good, guilty])
    guilty.text = TextStream(tokenizer)
    guilty.text._tokens = [2]
    while made.rows:
        made.step()
    assert (good.tokens, guilty.finish) == (EXPECTED[0], "error")


def test_a_draw_that_fails_ends_its_row(monkeypatch):
    draw = Sampler.draw
    monkeypatch.setattr(Sampler, "draw", lambda sampler, logits: 1 / 0 if sampler.counts else draw(sampler, logits))
    tokens, error = together(Row(prompt(9), 0, Sampling(15, temperature=1.0)))
    assert (tokens, type(error.__cause__)) == (EXPECTED, ZeroDivisionError)


@pytest.mark.parametrize("fails_in", ["prompts", "tokens"])
def test_a_pass_that_fails_is_narrowed_to_the_row_whose_fault_it_is(fails_in):
    made, guilty = batch(), Row([77, 78, 79], 0, Sampling(15))
    call = made.model.forward

    def fail(input_ids=None, **options):
        is_prompt = input_ids.shape[1] > 1
        one_of_guilty = (input_ids[:, 0] == 77).any() if is_prompt else guilty in made.rows and len(guilty.tokens) > 2
        if one_of_guilty and is_prompt == (fails_in == "prompts"):
            index = next(index for index, row in enumerate(made.rows) if row is guilty)
            if is_prompt or len(input_ids) > 1 or made.cache.slots.tolist() == [index]:
                raise RuntimeError("device out of memory")
        return call(input_ids=input_ids, **options)

    made.model.forward = fail
    try:
        tokens, error = together(guilty, made=made)
    finally:
        made.model.forward = call
    assert tokens == EXPECTED
    assert "the model failed at this request (RuntimeError" in str(error)
    assert len(guilty.tokens) == (0 if fails_in == "prompts" else 3)


def test_a_pass_that_fails_once_is_tried_again():
    made, rows = batch(), innocent()
    forward, made._forward = made._forward, None

    def fail_once(*arguments):
        made._forward = forward
        raise RuntimeError("once")

    made._forward = fail_once
    made.join(rows)
    made._forward = fail_once
    while made.rows:
        made.step()
    assert [row.tokens for row in rows] == EXPECTED


def test_rows_that_the_model_cannot_read_are_refused_before_they_join():
    made = batch()
    beyond = Row([7, VOCAB], 0, Sampling())
    for row, message in [
        (beyond, f"token ids from 0 to {VOCAB - 1}, as many as the model has embeddings, found {VOCAB}"),
        (Row([-1], 0, Sampling()), "found -1"),
        (Row([7], 3, Sampling()), "a task from 0 to 2, found 3"),
    ]:
        with pytest.raises(ConfigError, match=message):
            made.check(row)
        with pytest.raises(ConfigError, match=message):
            made.join([*innocent(), row])
    assert not made.rows


def test_run_rows_tells_of_the_row_that_failed():
    with pytest.raises(RowError, match="NaN or infinite"):
        run_rows(batch(), [*innocent(), Row(prompt(9), BAD, Sampling(15))])


@pytest.mark.parametrize("temperature", [1e-5, 1e-6, 1e-40, 5e-324])
def test_a_temperature_close_to_zero_is_greedy(temperature):
    rows = [Row(row.prompt, row.task, Sampling(15, temperature, top_p=0.9, top_k=5, seed=1)) for row in innocent()]
    run_rows(batch(), rows)
    if temperature < 1e-5:
        assert [row.tokens for row in rows] == EXPECTED
    penalised = Row(prompt(9), 0, Sampling(15, temperature, frequency_penalty=1.0))
    greedy = Row(prompt(9), 0, Sampling(15, frequency_penalty=1.0))
    run_rows(batch(), [penalised, greedy])
    assert penalised.tokens == greedy.tokens


# ---- text of tokens that stand for bytes ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=14), st.booleans())
def test_the_stream_of_any_tokens_is_their_text(ids, strip):
    stream = TextStream(BYTES, strip=strip)
    text = "".join([stream.add(token) for token in ids]) + stream.end()
    whole = BYTES.decode(ids, skip_special_tokens=True)
    assert text == (whole.strip() if strip else whole)


def test_characters_of_several_bytes_come_whole_and_a_bad_byte_spoils_its_run_alone():
    def pieces(*tokens):
        stream = TextStream(BYTES)
        return [*map(stream.add, BYTES.convert_tokens_to_ids(list(tokens))), stream.end()]

    assert pieces("b", "<0xC3>", "<0xA9>", "b") == ["b", "", "", "\u00e9b", ""]
    assert pieces("b", "<0x41>", "<0xFF>", "b") == ["b", "", "", "\ufffd\ufffdb", ""]
    assert pieces("b", "<0x41>", "</s>", "<0xC3>", "<0xA9>") == ["b", "", "", "", "", "A\u00e9"]


def tokenizer_with(decoder, words, model=models.WordLevel):
    """A tokenizer of whole words with a decoder of some kind."""
    vocab = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *words])}
    backend = Tokenizer(model(vocab, unk_token="<pad>"))
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


OTHERS = {
    "byte level": TOKENIZER,
    "word pieces": tokenizer_with(
        decoders.WordPiece(cleanup=True), ["a", "##b", ".", "'", "n't", "'s", "do", "not", ",", "?", "\u00e9"]
    ),
    "metaspace": tokenizer_with(
        decoders.Metaspace(prepend_scheme="always"), ["\u2581", "\u2581a", "b", "\u2581\u2581", "\u00e9", "\ufffd"]
    ),
    "word ends": tokenizer_with(decoders.BPEDecoder(suffix="</w>"), ["a</w>", "b", "</w>", ".</w>", "c"]),
}


@pytest.mark.parametrize("name", OTHERS)
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_the_stream_is_the_text_with_decoders_of_every_kind(name, data):
    tokenizer = OTHERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    stream = TextStream(tokenizer, strip=False)
    text = "".join([stream.add(token) for token in ids]) + stream.end()
    assert text == tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)


# ---- sampling as odd as it may be asked for -------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(
            Sampling,
            st.integers(1, 12),
            temperature=st.floats(0, 2),
            top_p=st.floats(0, 1, exclude_min=True),
            top_k=st.integers(0, 10**9),
            seed=st.none() | st.integers(),
            presence_penalty=st.floats(-2, 2),
            frequency_penalty=st.floats(-2, 2),
            stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_sampling_that_is_accepted_ends_a_row(samplings):
    rows = [Row(prompt(number), number % 2, sampling) for number, sampling in enumerate(samplings)]
    run_rows(batch(), rows)
    assert all(row.finish in ("stop", "length") for row in rows)
