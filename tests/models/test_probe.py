"""The check at start: a model runs in a batch as it runs alone, or is refused by name."""

import random

import pytest
import torch
from peft import get_peft_model
from transformers import (
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from benchmarks.architectures.zoo import ZOO
from colora.adapter.config import CoLoRAConfig
from colora.errors import ConfigError
from colora.models.decoding import probe
from colora.models.decoding.batch import Batch, Row
from colora.models.decoding.cache import SlotCache
from colora.models.decoding.limits import spans
from colora.models.decoding.sampling import Sampling
from tests.helpers.tiny import COMMON, VOCAB, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = tiny_tokenizer()
TASKS = ["legal", "billing"]
# What the refusal must name.
REFUSED = {
    "Llama 4": "chunked_attention of 8 positions .llama4_text.: choose a length of at most 8",
    "Mistral, window": "sliding windows of 8 positions .mistral.: choose a length of at most 8",
    "Gemma 3": "sliding_attention of 8 positions .gemma3_text.: choose a length of at most 8",
    "Phi 3, longrope": "'longrope' .phi3., .* choose a length of at most 16",
    "GPT-Neo": "GPTNeoForCausalLM cannot .* the logits of .* a length of at most 8, its window_size, may do",
    "RoBERTa, decoder": "RobertaForCausalLM cannot run in continuous batches: the logits of",
    "Mamba": "linear_attention .mamba.",
    "Mamba 2": "linear_attention .mamba2.",
    "Jamba": "linear_attention .jamba.",
    "RWKV": "RwkvForCausalLM cannot run in continuous batches: its forward pass takes no past_key_values",
    "RecurrentGemma": "linear_attention .recurrent_gemma.",
    "LFM2": "conv .lfm2.",
}
CAUSAL = [name for name, one in ZOO.items() if one.kind == "causal"]


def bank(model):
    torch.manual_seed(1)
    config = CoLoRAConfig(r=2, lora_alpha=8, tasks=TASKS, init_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config, autocast_adapter_dtype=False).eval()


def batch_of(model, rows=3, positions=64):
    batch = Batch(model, TOKENIZER, rows, positions)
    batch.ends = set()  # every row as long as it may be
    return batch


def prompt(number, length):
    return random.Random(number).choices(range(6, VOCAB), k=length)


def generated(model, row):
    with torch.inference_mode():
        found = model.generate(
            input_ids=torch.tensor([row.prompt]), task_ids=torch.tensor([row.task]), do_sample=False,
            max_new_tokens=row.sampling.max_tokens, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return found[0, len(row.prompt) :].tolist()


# ---- what runs is right, and the rest is refused --------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_answers_in_company_as_alone_or_is_refused_by_name(name):
    model = bank(ZOO[name].make())
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]):
            batch_of(model)
        return
    batch = batch_of(model)
    rows = [Row(prompt(number, length), number % 2, Sampling(8)) for number, length in enumerate((3, 29, 9, 5, 17))]
    waiting = list(rows)
    while waiting or batch.rows:  # slots are used again, after longer rows and after shorter ones
        new, waiting = waiting[: batch.room], waiting[batch.room :]
        batch.join(new) if new else None
        batch.step()
    for row in rows:
        assert row.tokens == generated(model, row)


def test_the_check_leaves_the_number_of_threads_as_it_was(monkeypatch):
    seen, before, script = [], torch.get_num_threads(), probe._short_script
    monkeypatch.setattr(
        probe, "_short_script", lambda *arguments: (seen.append(torch.get_num_threads()), script(*arguments))
    )
    torch.set_num_threads(2)
    try:
        batch_of(bank(tiny_llama()))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_a_model_that_leaves_the_cache_empty_is_refused_in_every_type():
    # Not as noise of its own: in bfloat16 that excused what the forward pass with an empty cache makes.
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        config = XLNetConfig(vocab_size=VOCAB, d_model=64, n_layer=2, n_head=4, d_inner=128)
        model = bank(XLNetLMHeadModel(config).to(dtype))
        with pytest.raises(ConfigError, match=r"XLNetLMHeadModel .* keeps no keys and values by row"):
            batch_of(model)


@pytest.mark.parametrize("name", ["Gemma 2", "GPT-J", "MPT"])
def test_an_answer_does_not_depend_on_who_had_the_slot_before(name):
    model = bank(ZOO[name].make())

    def ask(before):
        batch = batch_of(model, 2)
        batch.join([Row(one, 1, Sampling(4)) for one in before])
        while batch.rows:
            batch.step()
        batch.join([Row([50] * 30, 1, Sampling(30))])  # somebody else's long answer runs meanwhile
        row = Row([10, 11, 12], 0, Sampling(12))
        batch.join([row])
        while row.finish is None:
            batch.step()
        return row.tokens

    expected = generated(model, Row([10, 11, 12], 0, Sampling(12)))
    assert [ask([[number] * 40, [number + 1] * 40]) for number in (20, 30, 90)] == [expected] * 3


# ---- faults of a kind that nobody has named yet ---------------------------------------------------------------------


def llama(kind=LlamaForCausalLM, **values):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, **COMMON, **values,
    )  # fmt: skip
    return kind(config).double().eval()


class CountsItself(LlamaForCausalLM):
    """Takes its positions from the length of the cache, whatever it is told."""

    def forward(self, input_ids=None, past_key_values=None, position_ids=None, **options):
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        own = torch.arange(start, start + input_ids.shape[1])[None]
        return super().forward(input_ids, position_ids=own, past_key_values=past_key_values, **options)


class LooksBack(LlamaForCausalLM):
    """Forgets what lies further back than `reach` tokens, as local attention does, under a name of its own."""

    def forward(self, input_ids=None, past_key_values=None, attention_mask=None, **options):
        kept = 0 if past_key_values is None else past_key_values.get_seq_length()
        total, reach = kept + input_ids.shape[1], self.config.my_local_reach
        query, key = torch.arange(kept, total)[:, None], torch.arange(total)
        hidden = (key > query) | (key <= query - reach)
        mask = torch.zeros(1, 1, len(query), total, dtype=self.dtype).masked_fill(hidden, torch.finfo(self.dtype).min)
        if attention_mask is not None and attention_mask.ndim == 4:
            mask = torch.minimum(mask, attention_mask)
        return super().forward(input_ids, past_key_values=past_key_values, attention_mask=mask, **options)


class SeesTheBatch(LlamaForCausalLM):
    """Its logits depend on the other rows."""

    def forward(self, input_ids=None, past_key_values=None, **options):
        output = super().forward(input_ids, past_key_values=past_key_values, **options)
        output.logits = output.logits - 0.1 * output.logits.mean(0, keepdim=True)
        return output


class KeepsState(LlamaForCausalLM):
    """Has a memory of the last call, as recurrent layers have, in no cache."""

    def forward(self, input_ids=None, past_key_values=None, use_cache=None, **options):
        output = super().forward(input_ids, past_key_values=past_key_values, use_cache=use_cache, **options)
        state = getattr(self, "state", 0) if use_cache else 0
        output.logits, self.state = output.logits + state, output.logits.mean().item() if use_cache else 0
        return output


class TakesNoCache(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        return super().forward(input_ids, attention_mask=attention_mask)


class Raises(LlamaForCausalLM):
    def forward(self, input_ids=None, past_key_values=None, use_cache=None, **options):
        if past_key_values is not None:
            raise RuntimeError("this cache is not mine")
        return super().forward(input_ids)


class PassesOn(LlamaForCausalLM):
    """Names nothing, and is right."""

    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options)


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        (CountsItself, {}, "the logits of"),
        (LooksBack, {"my_local_reach": 6}, "the logits of"),
        (LooksBack, {"my_local_reach": 40}, "the logits of .* choose a length of at most 40, its my_local_reach"),
        (SeesTheBatch, {}, "the logits of"),
        (KeepsState, {}, "the logits of"),
        (TakesNoCache, {}, "takes no past_key_values"),
        (Raises, {}, "raises RuntimeError: this cache is not mine"),
    ],
)
def test_an_unknown_model_that_cannot_run_so_is_refused_by_name(kind, values, reason):
    model = bank(llama(kind, **values))
    with pytest.raises(ConfigError, match=f"{kind.__name__} cannot run in continuous batches: .*{reason}"):
        batch_of(model)


def test_a_model_that_looks_back_far_enough_runs():
    assert batch_of(bank(llama(PassesOn))).passes.mask == "additive"
    assert batch_of(bank(llama(LooksBack, my_local_reach=40)), positions=40).passes.mask == "additive"
    assert batch_of(bank(ZOO["GPT-Neo"].make()), positions=8).passes.mask == "additive"


def test_a_scale_that_the_longest_row_would_change_for_all_is_found_by_its_field():
    # Llama 4 scales queries of layers without rotary positions by the length of the cache, in steps of floor_scale
    def model(floor_scale):
        torch.manual_seed(0)
        config = Llama4TextConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256, num_local_experts=2,
            attention_chunk_size=64, no_rope_layers=[1, 0], floor_scale=floor_scale, **COMMON,
        )  # fmt: skip
        made = Llama4ForCausalLM(config).eval()
        with torch.no_grad():
            for weight in made.parameters():
                weight.mul_(5 if weight.ndim > 1 else 1)
        return get_peft_model(made, CoLoRAConfig(r=2, tasks=TASKS, target_modules=["q_proj"], task_type="CAUSAL_LM"))

    assert batch_of(model(8192)).passes.mask == "additive"
    with pytest.raises(ConfigError, match=r"Llama4ForCausalLM .* choose a length of at most 40, its floor_scale"):
        batch_of(model(40))


def test_a_probe_that_would_take_long_is_told_instead(monkeypatch):
    monkeypatch.setitem(probe.MOST_WORK, "cpu", 1.0)
    with pytest.raises(ConfigError, match=r"takes too long: choose a length of at most 40, its my_local_reach"):
        batch_of(bank(llama(my_local_reach=40)))


def test_fields_that_tell_no_length_are_not_taken_for_one():
    assert spans(llama(my_local_reach=40).config, 64) == {"my_local_reach": 40}
    found = {name: spans(ZOO[name].make().config, 10**6) for name in ("Llama", "Qwen 2", "Mixtral", "OPT", "GPT-2")}
    assert found == {name: {} for name in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["boolean", "none"])
def test_a_mask_that_hides_nothing_is_noticed_in_every_type(monkeypatch, dtype, mask):
    # boolean as it was once: eager attention added it; none at all: what longer rows have beyond is seen
    real = SlotCache.additive_mask
    faulty = {"boolean": lambda cache, dtype: cache.visible[:, None, None],
              "none": lambda cache, dtype: real(cache, dtype) * 0}[mask]  # fmt: skip
    model = bank(ZOO["Gemma 2"].make(dtype=dtype, spread=1.0))
    monkeypatch.setattr(probe, "MASKS", ("additive",))
    assert batch_of(model).passes.mask == "additive"
    monkeypatch.setattr(SlotCache, "additive_mask", faulty)
    with pytest.raises(ConfigError, match="the logits of"):
        batch_of(model)


# ---- nothing is left behind -----------------------------------------------------------------------------------------


def test_the_check_leaves_nothing_behind():
    model = bank(tiny_llama(dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids, state = torch.tensor([prompt(1, 7)]), torch.get_rng_state()
    expected = model(input_ids=ids, task_ids=[1]).logits
    batch = batch_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert batch.cache.bytes() == 0
    assert not batch.rows
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(input_ids=ids, task_ids=[1]).logits, expected)
    with pytest.raises(ValueError, match="which task"):  # no task of the check is left chosen
        model(input_ids=ids)


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "GPT-J", "XGLM", "MPT", "BLOOM", "Phi 3, longrope"])
def test_a_model_can_be_trained_after_the_check(name):
    model = bank(ZOO[name].make())
    batch_of(model, positions=16)
    ids = torch.tensor([prompt(1, 40), prompt(2, 40)])
    model.train()(input_ids=ids, labels=ids, task_ids=[0, 1]).loss.backward()
    cores = [weight.grad for key, weight in model.named_parameters() if "colora_core" in key]
    assert all(grad.any() for grad in cores)


def test_what_a_row_left_is_wiped_even_nan():
    cache = SlotCache(1, 2, 64)
    layer = cache.layers[0]
    bad, good = torch.full((1, 1, 9, 4), torch.nan), torch.ones(1, 1, 3, 4)
    cache.at_rows(0, 1, 9)
    layer.update(bad, bad)
    cache.at_rows(1, 1, 3)
    layer.update(good, good)
    cache.move(1, 0)
    assert (cache.filled, layer.keys[:, 0, :10].sum(-1).tolist()) == ([3, 0], [[4.0] * 3 + [0.0] * 7, [0.0] * 10])
    cache.at_positions([3], torch.device("cpu"))
    mask = cache.additive_mask(torch.float32)
    assert (mask.dtype, mask.shape, mask.isfinite().all()) == (torch.float32, (1, 1, 1, 4), True)
