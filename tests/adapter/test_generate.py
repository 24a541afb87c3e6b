"""Generation with one task per prompt: equal to generating one by one, and nothing is left behind."""

import pytest
import torch

from colora.errors import TaskIdError
from tests.helpers.dense_oracle import TASKS, distance, make_bank, make_inputs
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_t5

IDS = [2, 0, 1, 2]
FAMILIES = {
    "llama": (tiny_llama, "CAUSAL_LM"),
    "gpt2": (tiny_gpt2, "CAUSAL_LM"),
    "t5": (tiny_t5, "SEQ_2_SEQ_LM"),
    "untyped": (tiny_llama, None),
}
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def bank(family, **config):
    make, task_type = FAMILIES[family]
    return make_bank(make(dtype=torch.float64), task_type=task_type, **config)


def prompts():
    """Four prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(6, VOCAB, (length,), generator=generator) for length in (3, 7, 5, 6)]
    ids = torch.stack([torch.cat([torch.zeros(7 - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([torch.cat([torch.zeros(7 - len(row)), torch.ones(len(row))]) for row in rows]).long()
    return rows, {"input_ids": ids, "attention_mask": mask}


def new_tokens(output, prompt_length, is_seq2seq):
    """Up to the first end token; what follows is padding."""
    tokens = output[1 if is_seq2seq else prompt_length :].tolist()
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_mixed_tasks_equal_one_by_one(family, num_beams):
    model, (rows, batch) = bank(family), prompts()
    together = model.generate(**batch, task_ids=[TASKS[i] for i in IDS], num_beams=num_beams, **GREEDY)
    alone = []
    for prompt, task in zip(rows, IDS, strict=True):
        model.set_task(TASKS[task])
        alone.append(model.generate(input_ids=prompt[None], num_beams=num_beams, **GREEDY)[0])
    is_seq2seq = family == "t5"
    found = [new_tokens(output, 7, is_seq2seq) for output in together]
    assert found == [new_tokens(out, len(row), is_seq2seq) for out, row in zip(alone, rows, strict=True)]
    with model.disable_adapter():
        plain = model.generate(**batch, num_beams=num_beams, **GREEDY)
    assert found != [new_tokens(output, 7, is_seq2seq) for output in plain]


@pytest.mark.parametrize("ids", [torch.tensor(IDS), IDS, [TASKS[i] for i in IDS]], ids=["tensor", "list", "names"])
def test_every_form_of_ids(ids):
    model, (_, batch) = bank("llama"), prompts()
    expected = model.base_model.generate(**batch, task_ids=torch.tensor(IDS), **GREEDY)
    assert torch.equal(model.generate(**batch, task_ids=ids, **GREEDY), expected)
    assert not torch.equal(model.generate(**batch, task_ids=[0] * 4, **GREEDY), expected)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_several_return_sequences_keep_the_task_of_their_prompt(family):
    """The logits of every sampled step, taken again by one forward pass with the prompts' own tasks repeated."""
    model, (_, batch) = bank(family), prompts()
    torch.manual_seed(0)
    output = model.generate(
        **batch, task_ids=IDS, max_new_tokens=4, do_sample=True, top_k=0, num_return_sequences=2,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert output.sequences.shape[0] == 8
    repeated = {key: value.repeat_interleave(2, 0) for key, value in batch.items()}
    first = 0
    if family == "t5":
        repeated["decoder_input_ids"] = output.sequences[:, :-1]
    else:
        mask = torch.cat([repeated["attention_mask"], torch.ones(8, 3, dtype=torch.long)], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        repeated = {"input_ids": output.sequences[:, :-1], "attention_mask": mask, "position_ids": positions}
        first = 6
    with torch.no_grad():
        again = model(**repeated, task_ids=[task for task in IDS for _ in range(2)]).logits
    for step, logits in enumerate(output.logits):
        assert distance(logits.double(), again[:, first + step]) < 1e-4


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_beams_and_return_sequences_together(family):
    """The best of several returned beams is what a search for one returns."""
    model, (_, batch) = bank(family), prompts()
    several = model.generate(**batch, task_ids=IDS, num_beams=3, num_return_sequences=3, **GREEDY)
    best = model.generate(**batch, task_ids=IDS, num_beams=3, **GREEDY)
    assert several.shape[0] == 12
    for one, other in zip(several[::3], best, strict=True):
        assert new_tokens(one, 7, family == "t5") == new_tokens(other, 7, family == "t5")


def test_the_only_task_needs_no_ids():
    model, (_, batch) = bank("llama", tasks=["only"]), prompts()
    output = model.generate(**batch, **GREEDY)
    assert torch.equal(output, model.generate(**batch, task_ids=[0] * 4, **GREEDY))


def test_several_tasks_and_no_ids_asks_which():
    model, (_, batch) = bank("llama"), prompts()
    with torch.no_grad():
        model(**make_inputs(), task_ids=IDS)  # ids of an earlier batch must not leak into generation
    with pytest.raises(TaskIdError, match="which task"):
        model.generate(**batch, **GREEDY)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 2, 3], "task id 3 is out of range"),
        (["ada", "zed", "bo", "cy"], "unknown task 'zed'"),
        (torch.zeros(4, 7, dtype=torch.long), "one task per row"),
        ([0, 1, 2], "task_ids of shape|do not fit|name 3 rows"),
    ],
)
def test_wrong_ids_are_refused(ids, message):
    model, (_, batch) = bank("llama"), prompts()
    with pytest.raises(TaskIdError, match=message):
        model.generate(**batch, task_ids=ids, **GREEDY)


def test_fewer_ids_than_prompts_are_refused_even_when_they_divide_them():
    """Two ids for four prompts look like beams, but are not."""
    model, (_, batch) = bank("llama"), prompts()
    with pytest.raises(TaskIdError, match="2 rows"):
        model.generate(**batch, task_ids=[0, 1], **GREEDY)


def test_nothing_is_left_after_an_error_inside_generate():
    model, (_, batch) = bank("llama"), prompts()
    model.set_task("bo")
    with torch.no_grad():
        before = model(**make_inputs()).logits

    def fail(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        model.generate(**batch, task_ids=IDS, logits_processor=[fail], **GREEDY)
    assert model.router.generating is None
    with torch.no_grad():
        assert torch.equal(model(**make_inputs()).logits, before)


def test_tasks_of_serves_code_that_calls_the_base_model():
    model, (_, batch) = bank("llama"), prompts()
    with model.tasks_of(IDS):
        found = model.get_base_model().generate(**batch, **GREEDY)
    assert torch.equal(found, model.generate(**batch, task_ids=IDS, **GREEDY))
    assert model.router.generating is None


def test_a_forward_pass_inside_generation_may_have_its_own_ids():
    model, inputs = bank("llama"), make_inputs()
    with torch.no_grad():
        expected = model(**inputs, task_ids=[1] * 4).logits
        with model.tasks_of(IDS):
            own = model(**inputs, task_ids=[1] * 4).logits
            outer = model(**inputs).logits
        assert torch.equal(own, expected)
        assert torch.equal(outer, model(**inputs, task_ids=IDS).logits)
