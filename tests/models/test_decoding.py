"""Continuous batching: whoever else is in the batch, an answer is what it is alone, and what `generate` gives."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import LlamaConfig, MistralConfig, T5Config

from colora.adapter.config import CoLoRAConfig
from colora.errors import ConfigError
from colora.models.decoding.batch import Batch, Row, run_rows
from colora.models.decoding.cache import FIRST_CAPACITY, check_attention
from colora.models.decoding.layout import lay_out_by_columns
from colora.models.decoding.sampling import Sampling
from colora.models.decoding.text import TextStream
from colora.models.generate import generate_outputs
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["legal", "billing", "sales"]
TOKENIZER = tiny_tokenizer()


def bank(make=tiny_llama, dtype=torch.float64, **options):
    model = make(dtype=dtype, **options)
    torch.manual_seed(1)
    config = CoLoRAConfig(r=3, lora_alpha=30, tasks=TASKS, init_weights=False)
    return get_peft_model(model, config, autocast_adapter_dtype=False).eval()


LLAMA = bank()


def prompt(number, length):
    return random.Random(number).choices(range(6, VOCAB), k=length)


def run(batch, rows, joins=(100,)):
    """All rows through the batch, `joins` of them at a time, a step in between; their texts."""
    texts, waiting, turn = {id(row): "" for row in rows}, list(rows), 0
    while waiting or batch.rows:
        size = min(joins[turn % len(joins)], batch.room)
        turn += 1
        new, waiting = waiting[:size], waiting[size:]
        for piece in (batch.join(new) if new else []) + batch.step():
            texts[id(piece.row)] += piece.text
    return [texts[id(row)] for row in rows]


def alone(model, row):
    """The same row by itself."""
    one = Row(row.prompt, row.task, row.sampling)
    (text,) = run_rows(Batch(model, TOKENIZER, 1), [one])
    return one, text


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_greedy_outputs_are_those_of_generate(make):
    model = bank(make)
    prompts = [prompt(number, 1 + 7 * number % 23) for number in range(9)]
    ids = torch.tensor([number % 3 for number in range(9)])
    expected = generate_outputs(model, TOKENIZER, prompts, ids, 12)
    rows = [Row(one, int(task), Sampling(max_tokens=12)) for one, task in zip(prompts, ids, strict=True)]
    assert len({tuple(row) for row in expected}) > 5  # they differ
    found = run(Batch(model, TOKENIZER, 4), rows, joins=(2, 1))
    # `generate` shows half a character at the very end as a replacement character; a stream has nothing to show yet
    assert found == [
        one.rstrip("\ufffd").rstrip() if text != one else one for one, text in zip(expected, found, strict=True)
    ]
    assert [len(row.tokens) for row in rows if row.finish == "length"] == [12 for row in rows if row.finish == "length"]


rows_ = st.tuples(
    st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 2), st.sampled_from([0.0, 0.7, 1.5]),
    st.sampled_from([1.0, 0.8]), st.sampled_from([0.0, 1.5]), st.integers(1, 20),
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(rows_, min_size=1, max_size=9), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 5))
def test_other_rows_never_change_an_answer(given_rows, joins, most):
    rows = [
        Row(prompt(seed, length), task, Sampling(count, temperature, top_p, seed=seed, frequency_penalty=penalty))
        for seed, length, task, temperature, top_p, penalty, count in given_rows
    ]
    texts = run(Batch(LLAMA, TOKENIZER, most), rows, joins)
    for row, text in zip(rows, texts, strict=True):
        one, expected = alone(LLAMA, row)
        assert (row.tokens, row.finish, text) == (one.tokens, one.finish, expected)


def test_another_task_gives_another_answer():
    outputs = {tuple(alone(LLAMA, Row(prompt(3, 9), task, Sampling(16)))[0].tokens) for task in range(3)}
    assert len(outputs) == 3


def test_rows_that_leave_early_do_not_disturb_the_others():
    rows = [Row(prompt(number, 5 + number), number % 3, Sampling(20)) for number in range(5)]
    batch = Batch(LLAMA, TOKENIZER, 5)
    batch.join(rows)
    for number in (0, 3):
        batch.step()
        batch.leave(rows[number])
    while batch.rows:
        batch.step()
    for number in (1, 2, 4):
        assert rows[number].tokens == alone(LLAMA, rows[number])[0].tokens
    assert batch.room == 5


def test_weights_by_columns_have_the_same_values_and_are_still_shared():
    model, other = bank(dtype=torch.float32), bank(dtype=torch.float32)
    lay_out_by_columns(model)
    (head, embedding), values = (model.get_output_embeddings(), model.get_input_embeddings()), other.state_dict()
    assert head.weight is embedding.weight
    assert head.weight.stride() == (1, head.weight.shape[0])
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    rows = [Row(prompt(number, 5 + number), number % 3, Sampling(12)) for number in range(5)]
    for row in rows:
        assert alone(model, row)[1] == alone(other, row)[1]


def test_rows_longer_than_the_first_capacity():
    long = FIRST_CAPACITY + 37
    rows = [Row(prompt(1, long), 0, Sampling(9)), Row(prompt(2, 3), 1, Sampling(FIRST_CAPACITY + 20))]
    batch = Batch(LLAMA, TOKENIZER, 2)
    run(batch, rows, joins=(1,))
    assert batch.cache.bytes() == 0  # what long rows took is given back
    for row in rows:
        assert row.tokens == alone(LLAMA, row)[0].tokens


def test_the_last_position_ends_a_row_and_longer_prompts_are_refused():
    batch = Batch(bank(positions=24), TOKENIZER, 2)
    row = Row(prompt(1, 20), 0, Sampling(100))
    run(batch, [row])
    assert (row.finish, len(row.tokens)) == ("length", 4)
    with pytest.raises(ConfigError, match="prompt of 1 to 23 tokens, found 24"):
        batch.join([Row(prompt(1, 24), 0, Sampling())])
    with pytest.raises(ConfigError, match="found 0"):
        batch.join([Row([], 0, Sampling())])
    with pytest.raises(ConfigError, match="at most 2 further rows"):
        batch.join([Row([7], 0, Sampling())] * 3)
    assert not batch.rows


def test_a_seed_repeats_its_draws_and_seeds_differ():
    def tokens(seed):
        return alone(LLAMA, Row(prompt(5, 8), 0, Sampling(12, temperature=1.0, seed=seed)))[0].tokens

    assert tokens(3) == tokens(3)
    assert len({tuple(tokens(seed)) for seed in range(6)}) > 4
    assert len({tuple(tokens(None)) for _ in range(6)}) > 4
    assert tokens(2**64 + 5) == tokens(2**64 + 5)  # any integer is a seed
    assert tokens(-1) == tokens(-1)


def test_top_k_of_one_is_greedy_and_penalties_forbid_repetition():
    def tokens(**options):
        return alone(LLAMA, Row(prompt(4, 8), 1, Sampling(15, **options)))[0].tokens

    assert tokens(temperature=1.3, top_k=1) == tokens()
    assert tokens(temperature=1.3, top_p=1e-6) == tokens()
    assert len(tokens()) > len(set(tokens()))
    once = tokens(presence_penalty=2.0, frequency_penalty=2.0)
    assert len(once) - len(set(once)) < len(tokens()) - len(set(tokens()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"), ({"temperature": 2.5}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"), ({"stop": ("",)}, "stop"), ({"presence_penalty": 3}, "presence_penalty"),
    ],
)  # fmt: skip
def test_sampling_out_of_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("config", "positions", "message"),
    [
        (LlamaConfig(), 4096, None),
        (MistralConfig(sliding_window=None), 4096, None),
        (MistralConfig(sliding_window=512), 512, None),
        (MistralConfig(sliding_window=512), 513, "at most 512"),
        (LlamaConfig(layer_types=["full_attention", "linear_attention"], num_hidden_layers=2), 64, "linear_attention"),
        (T5Config(), 64, "encoder-decoder"),
    ],
)
def test_models_without_full_attention_are_refused(config, positions, message):
    if message is None:
        check_attention(config, positions)
    else:
        with pytest.raises(ConfigError, match=message):
            check_attention(config, positions)


def test_encoder_decoders_and_slow_tokenizers_are_refused():
    model = get_peft_model(tiny_t5(), CoLoRAConfig(r=2, tasks=TASKS))
    with pytest.raises(ConfigError, match="encoder-decoder"):
        Batch(model, TOKENIZER)


# ---- text ------------------------------------------------------------------------------------------------------------


def streamed(text, stop=()):
    stream = TextStream(TOKENIZER, stop)
    pieces = []
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.end()]


@settings(deadline=None)
@given(
    st.text(alphabet="ab \n\tü€😀", max_size=30),
    st.lists(st.text(alphabet="ab \n€", min_size=1, max_size=4), max_size=3),
)
def test_pieces_make_up_the_text_to_its_first_stop_string(text, stop):
    # as soon as any stop string is complete: at the first of the places where one ends
    ends = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    first = min(ends)[0] if ends else None
    expected = text if first is None else text[: min(text[:first].index(one) for one in stop if one in text[:first])]
    assert "".join(streamed(text, stop)) == expected.strip()


def test_nothing_is_given_out_that_might_be_taken_back():
    assert streamed("ab\n\nQ:x", ("\n\nQ:",)) == ["a", "b", "", "", "", "", ""]
    assert streamed("ab\n\nx", ("\n\nQ:",)) == ["a", "b", "", "", "\n\nx", ""]
    assert streamed("  a ", ()) == ["", "", "a", "", ""]
    assert streamed("€", ()) == ["", "", "€", ""]
