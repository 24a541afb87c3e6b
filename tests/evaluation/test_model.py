"""Likelihood, generation and `evaluate` on tiny models, against slow one-by-one reference implementations."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from colora.errors import ColoraError, ConfigError, TaskFileError, TaskIdError
from colora.evaluation.evaluate import evaluate
from colora.evaluation.nll import token_nll
from colora.evaluation.settings import EvaluationSettings
from colora.models.generate import generate_outputs
from colora.tasks.encode import encode_causal, encode_seq2seq
from colora.tasks.prompting.prompts import end_token_id, prompt_ids
from colora.tasks.schema import Example, Task
from tests.helpers.tiny import tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "t5": tiny_t5}


def task(name, *pairs, split="test"):
    examples = tuple(Example(text, outputs, None) for text, outputs in pairs)
    return Task(name, {"train": (), "val": (), "test": ()} | {split: examples}, "", None)


TASKS = (
    task("ca", ("1 de març", ("un de març", "l'u de març")), ("dos", ("2",)),
         ("un text força més llarg que els altres", ("x",))),
    task("el", ("τρία", ("ένα μεγάλο κείμενο",)), ("α", ("β",))),
)  # fmt: skip
INDEX = {"ca": 3, "el": 5}
LONG = EvaluationSettings(max_length=200)


class Listener(nn.Module):
    """A model that takes task ids and keeps what it was given, with the rows they came with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.heard = model, model.config, []

    def forward(self, task_ids=None, **inputs):
        self.heard.append((task_ids, inputs["input_ids"]))
        return self.model(**inputs)

    def generate(self, task_ids=None, **inputs):
        self.heard.append((task_ids, inputs["input_ids"]))
        return self.model.generate(**inputs)


def slow_nll(model, example):
    """One row, no padding, all logits, float64."""
    if model.config.is_encoder_decoder:
        row = encode_seq2seq(example, TOKENIZER, 200)
        answer = list(row.labels)
        decoder = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
        logits = model(input_ids=torch.tensor([list(row.input_ids)]), decoder_input_ids=decoder).logits[0]
    else:
        row = encode_causal(example, TOKENIZER, 200)
        answer = [label for label in row.labels if label != -100]
        logits = model(input_ids=torch.tensor([list(row.input_ids)])).logits[0, -len(answer) - 1 : -1]
    assert answer[-1] == end_token_id(TOKENIZER)
    return -sum(logits.double().log_softmax(-1)[i, token].item() for i, token in enumerate(answer)), len(answer)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("batch_rows", [2, 16])
def test_nll_equals_the_slow_reference(family, batch_rows):
    model = MODELS[family](dtype=torch.float64)
    found = token_nll(model, TOKENIZER, TASKS, EvaluationSettings(max_length=200, batch_rows=batch_rows))
    for one in TASKS:
        with torch.no_grad():
            slow = [slow_nll(model, example) for example in one.splits["test"]]
        assert found[one.name].tokens == sum(tokens for _, tokens in slow)
        assert found[one.name].sum == pytest.approx(sum(nats for nats, _ in slow), rel=1e-12)


def test_nll_in_float32_and_under_peft():
    wide = token_nll(tiny_llama(dtype=torch.float64), TOKENIZER, TASKS, LONG)
    narrow = tiny_llama()
    lora = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))  # B = 0: the base model
    for model in (narrow, lora, Listener(tiny_llama())):
        found = token_nll(model, TOKENIZER, TASKS, LONG)
        for name, expected in wide.items():
            assert found[name].mean == pytest.approx(expected.mean, rel=1e-5)


def test_only_the_logits_of_answers_are_computed():
    model, rows = tiny_llama(), []
    model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    one = task("long", ("a prompt of many tokens " * 4, ("y",)))
    token_nll(model, TOKENIZER, [one], LONG)
    assert rows == [2]  # the letter and the end token


def test_limit_missing_splits_and_progress():
    done = []
    found = token_nll(
        tiny_llama(), TOKENIZER, TASKS, EvaluationSettings(max_length=200, batch_rows=2, limit=1), progress=done.append
    )
    assert sum(done) == 2
    assert found["el"].tokens == len(TOKENIZER("ένα μεγάλο κείμενο")["input_ids"]) + 1
    assert token_nll(tiny_llama(), TOKENIZER, TASKS, EvaluationSettings(split="val", max_length=200)) == {}


@pytest.mark.parametrize("family", MODELS)
def test_mixed_batches_generate_what_single_rows_do(family):
    model = MODELS[family](seed=3, dtype=torch.float64)
    # Larger weights: a tiny random model otherwise repeats one token whatever the prompt.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    seq2seq = model.config.is_encoder_decoder
    examples = [example for one in TASKS for example in one.splits["test"]]
    prompts = [prompt_ids(example, TOKENIZER, encoder_decoder=seq2seq) for example in examples]
    single = [generate_outputs(model, TOKENIZER, [prompt], None, 8)[0] for prompt in prompts]
    assert len(set(single)) > 1
    for batch_rows in (2, 16):
        assert generate_outputs(model, TOKENIZER, prompts, None, 8, batch_rows) == single
    order = [3, 0, 4, 2, 1]
    assert generate_outputs(model, TOKENIZER, [prompts[i] for i in order], None, 8, 3) == [single[i] for i in order]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_task_ids_reach_the_model_with_their_rows(family):
    model = Listener(MODELS[family]())
    seq2seq = family == "t5"
    encode = encode_seq2seq if seq2seq else encode_causal
    pairs = [(one.name, example) for one in TASKS for example in one.splits["test"]]
    rows = {tuple(encode(example, TOKENIZER, 200).input_ids): INDEX[name] for name, example in pairs}
    prompts = {tuple(prompt_ids(example, TOKENIZER, encoder_decoder=seq2seq)): INDEX[name] for name, example in pairs}
    for metric, expected in (("nll", rows), ("rougeL", prompts)):
        model.heard = []
        settings = EvaluationSettings(metrics=[metric], max_length=200, max_new_tokens=2, batch_rows=2)
        evaluate(model, TOKENIZER, TASKS, settings, INDEX, progress=False)
        seen = {}
        for task_ids, input_ids in model.heard:
            assert task_ids.dtype == torch.long
            for task_id, row in zip(task_ids.tolist(), input_ids.tolist(), strict=True):
                seen[tuple(token for token in row if token != TOKENIZER.pad_token_id)] = task_id
        assert seen == expected


def test_long_inputs_are_cut_from_the_left_with_a_warning():
    long = task("long", ("lost " * 30 + "kept", ("y",)), ("short", ("z",)))
    model = Listener(tiny_llama())
    with pytest.warns(UserWarning, match="'long': 1 prompts were cut to fit 40 tokens"):
        evaluate(
            model,
            TOKENIZER,
            [long],
            EvaluationSettings(metrics=["rougeL"], max_length=40, max_new_tokens=2),
            progress=False,
        )
    with pytest.warns(UserWarning, match="1 of 2 test inputs were cut to fit 40 tokens"):
        evaluate(model, TOKENIZER, [long], EvaluationSettings(metrics=["nll"], max_length=40), progress=False)
    for _, input_ids in model.heard:
        assert input_ids.shape[1] <= 40
        assert "lost kept" in TOKENIZER.decode(input_ids[0])
    model.heard.clear()
    with pytest.warns(UserWarning, match="cut to fit 12 tokens"):  # 512 positions, 500 of them for the output
        evaluate(
            tiny_llama(), TOKENIZER, [long], EvaluationSettings(metrics=["rougeL"], max_new_tokens=500), progress=False
        )
    with pytest.raises(ConfigError, match="found 512 positions and max_new_tokens=512"):
        evaluate(model, TOKENIZER, [long], EvaluationSettings(max_new_tokens=512), progress=False)
    with pytest.raises(TaskFileError, match="test example 1"):
        token_nll(model, TOKENIZER, [long], EvaluationSettings(max_length=4))


def test_nothing_is_left_changed():
    model = tiny_llama().train()
    model.model.layers[0].eval()
    sides = TOKENIZER.padding_side, TOKENIZER.truncation_side
    modes = [module.training for module in model.modules()]
    evaluate(model, TOKENIZER, TASKS, EvaluationSettings(max_new_tokens=2, max_length=200), progress=False)
    assert [module.training for module in model.modules()] == modes
    assert (TOKENIZER.padding_side, TOKENIZER.truncation_side) == sides
    model(input_ids=torch.tensor([[7, 8]])).logits.sum().backward()  # no inference tensors left behind


def test_generation_ignores_the_settings_a_model_ships(recwarn):
    model, prompts = tiny_llama(), [prompt_ids(TASKS[0].splits["test"][0], TOKENIZER)]
    plain = generate_outputs(model, TOKENIZER, prompts, None, 8)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, repetition_penalty=5.0, max_length=3)
    assert generate_outputs(model, TOKENIZER, prompts, None, 8) == plain
    assert not [warning for warning in recwarn if "generation" in str(warning.message)]


def test_generation_stops_at_the_end_token():
    model, end = tiny_llama(), end_token_id(TOKENIZER)
    script = [*TOKENIZER("ok")["input_ids"], end, *TOKENIZER("more")["input_ids"]]

    class Scripted(nn.Module):
        config = model.config

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def generate(self, input_ids, eos_token_id, **_):
            assert end in eos_token_id
            return torch.cat([input_ids, torch.tensor([script] * len(input_ids))], dim=1)

    assert generate_outputs(Scripted(), TOKENIZER, [[7], [8, 9]], None, 8) == ["ok", "ok"]


def test_bad_arguments_are_named():
    model = tiny_llama()
    with pytest.raises(TaskIdError, match=r"known to the model \(ca\), found el"):
        evaluate(model, TOKENIZER, TASKS, task_index={"ca": 0})
    with pytest.raises(TaskIdError, match=r"found .*el"):
        token_nll(model, TOKENIZER, TASKS, LONG, {"ca": 0})
    with pytest.raises(TaskIdError, match=r"shape \(2,\), found"):
        generate_outputs(model, TOKENIZER, [[7], [8]], torch.tensor([0]), 4)
    with pytest.raises(ColoraError, match=r"empty ones at \[1\]"):
        generate_outputs(model, TOKENIZER, [[7], []], None, 4)
    with pytest.raises(ConfigError, match="max_new_tokens: expected at least 1, found 0"):
        generate_outputs(model, TOKENIZER, [[7]], None, 0)
    with pytest.raises(ConfigError, match="batch_rows: expected at least 1, found 0"):
        generate_outputs(model, TOKENIZER, [[7]], None, 4, 0)
    with pytest.raises(ConfigError, match="found 'bleu'"):
        evaluate(model, TOKENIZER, TASKS, EvaluationSettings(metrics=["bleu"]))
    with pytest.raises(ConfigError, match="expected one of train, val, test, found 'dev'"):
        evaluate(model, TOKENIZER, TASKS, EvaluationSettings(split="dev"))
    with pytest.raises(ConfigError, match="limit: expected at least 1 or None, found 0"):
        evaluate(model, TOKENIZER, TASKS, EvaluationSettings(limit=0))
    assert generate_outputs(model, TOKENIZER, [], None, 4) == []


def test_evaluate_makes_records_and_predictions():
    absent = task("fr", ("un", ("1",)), split="val")
    model = Listener(tiny_llama())
    settings = EvaluationSettings(max_length=200, max_new_tokens=3, batch_rows=3, run="r1", method="CoLoRA", seed=7)
    result = evaluate(model, TOKENIZER, [*TASKS, absent], settings, INDEX, progress=False)
    assert [(one.task, one.metric) for one in result.records] == [
        (name, metric) for name in ("ca", "el") for metric in ("rougeL", "exact_match", "token_nll")
    ]
    assert {(one.run, one.method, one.split, one.seed) for one in result.records} == {("r1", "CoLoRA", "test", 7)}
    assert [one.n for one in result.records if one.metric == "rougeL"] == [3, 2]
    assert list(result.skipped) == ["fr"]
    assert "val" in result.skipped["fr"]
    assert [(one.task, one.input, one.outputs) for one in result.predictions] == [
        (one.name, example.input, example.outputs) for one in TASKS for example in one.splits["test"]
    ]
    nll = token_nll(model.model, TOKENIZER, TASKS, LONG)
    recorded = {one.task: (one.value, one.n) for one in result.records if one.metric == "token_nll"}
    assert recorded == {name: (pytest.approx(one.mean, rel=1e-5), one.tokens) for name, one in nll.items()}


def test_evaluate_scores_perfect_outputs(monkeypatch):
    answers = [example.outputs[-1] for one in TASKS for example in one.splits["test"]]
    monkeypatch.setattr("colora.evaluation.evaluate.generate_outputs", lambda *_: [*answers[:-1], "wrong"])
    result = evaluate(tiny_llama(), TOKENIZER, TASKS, EvaluationSettings(metrics=("exact_match",)), progress=False)
    assert [(one.task, one.value, one.n) for one in result.records] == [("ca", 100.0, 3), ("el", 50.0, 2)]


def test_evaluate_without_generation_makes_no_predictions():
    result = evaluate(
        tiny_llama(), TOKENIZER, TASKS, EvaluationSettings(metrics=("nll",), max_length=200, limit=1), progress=False
    )
    assert [one.metric for one in result.records] == ["token_nll", "token_nll"]
    assert result.predictions == []


def test_a_diverged_model_is_refused_by_name():
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ColoraError, match="'token_nll' for task 'ca': value: expected a finite number, found nan"):
        evaluate(model, TOKENIZER, TASKS, EvaluationSettings(metrics=["nll"]), progress=False)


def test_evaluate_without_any_example():
    result = evaluate(tiny_llama(), TOKENIZER, TASKS, EvaluationSettings(split="val"), progress=False)
    assert result.records == []
    assert list(result.skipped) == ["ca", "el"]
