"""Answers from a closed set: nats of every choice against plain passes in float64, and a task's own frequencies."""

import math
from dataclasses import replace

import pytest
import torch

from colora.errors import ConfigError
from colora.experiments.methods.choices import _asked, asked_choice_scores, choice_scores, frequency_scores
from colora.experiments.methods.forward import Row
from colora.experiments.methods.in_context import questions
from colora.experiments.methods.runner import Runner
from colora.experiments.trial import read_trial_records, write_trial_records
from colora.tasks.encode import IGNORED
from colora.tasks.prompting.prompts import prompt_ids
from colora.tasks.prompting.templates import parse_template
from colora.tasks.schema import Example, Task, prompted
from tests.helpers.method_trials import make_trial, real, runner_trial
from tests.helpers.reference_methods import Toy, exact_llama
from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

YES_NO, RATINGS, WORDS = ("yes", "no", "it is not possible"), ("1", "2", "3"), ("yes", "yellow", "it")


def task(name, choices, answers, tests=None):
    """Training answers in this order, and as many test examples."""

    def examples(split, given):
        return tuple(Example(f"{name} {split} {n}", (answer,)) for n, answer in enumerate(given))

    splits = {"train": examples("train", answers), "val": (), "test": examples("test", tests or answers)}
    return Task(name, splits, "", 0, choices=choices)


def tasks():
    return [
        task("red", YES_NO, ["yes", "no", "yes", "it is not possible"]),
        task("blue", RATINGS, ["3", "1", "1"], ["1", "3"]),
        task("green", (), ["anything", "at all"]),
    ]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer(chat=False)


@pytest.mark.parametrize("first_layer", [0, 1])
@pytest.mark.parametrize("prompt", [None, "qa"])
def test_nats_of_every_choice_are_those_of_a_pass_of_its_own(tokenizer, first_layer, prompt):
    """A row for every choice, alone, with its task's dense weights, in float64."""
    toy = Toy(make_trial("colora"), first_layer)
    given = [prompted(one, None if prompt is None else parse_template(prompt)) for one in tasks()]
    with real(toy) as (layers, forward):
        for layer in layers.values():
            for tensor in layer.terms.parameters():
                tensor.data.normal_(std=0.3)
        found = choice_scores(forward, tokenizer, given, "test", 3, 200)
        lead = [] if prompt is None else [tokenizer(" ")["input_ids"][-1]]
        for k, (one, scores) in enumerate(zip(given, found, strict=True)):
            if not one.choices:
                assert scores is None
                continue
            weights = {
                name: toy.W0[name]
                + toy.s * sum(left @ right for left, right in (term.factors(k) for term in layer.term_layers()))
                for name, layer in layers.items()
            }
            assert scores.names == list(one.choices)
            assert len(scores.nats) == len(scores.right) == min(3, len(one.splits["test"]))
            for example, right, nats in zip(one.splits["test"], scores.right, scores.nats, strict=False):
                assert one.choices[right] == example.outputs[0]
                asked = prompt_ids(example, tokenizer)
                for choice, value in zip(one.choices, nats, strict=True):
                    said = [*lead, *tokenizer(choice)["input_ids"]]
                    row = Row((*asked, *said), (*(IGNORED for _ in asked), *said))
                    with torch.no_grad():
                        assert value == pytest.approx(toy.nats(row, weights).item(), abs=6e-4)


def test_choices_that_part_with_their_last_token_are_read_from_one_row(tokenizer):
    def rows(choices):
        one = task("red", choices, [choices[0]])
        return len(_asked(one, one.splits["train"][0], tokenizer).paths)

    assert rows(("1", "2", "3", "4", "5")) == 1
    assert rows(("Completion A", "Completion B", "Completion C")) == 1
    assert rows(("a", "be", "bo")) == 1
    assert rows(("hateful", "not hateful")) == 2
    assert rows(YES_NO) == 3


def test_a_long_input_is_cut_alike_for_all_choices(tokenizer):
    seen = []
    toy = Toy(make_trial("base"))
    with real(toy) as (_, forward):
        read = forward.label_logits
        forward.label_logits = lambda rows: seen.extend(rows) or read(rows)
        one = task("red", YES_NO, ["yes"])
        long = replace(one, splits=one.splits | {"test": (Example("x" * 100, ("yes",)),)})
        choice_scores(forward, tokenizer, [long] * 3, "test", 1, 40)
    assert len({row.input_ids[: row.labels.count(IGNORED)] for row in seen}) == 1
    assert max(len(row.input_ids) for row in seen) == 39, "and a place for the end"


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.filterwarnings("ignore:task ")
def test_nats_with_examples_in_the_prompt_are_those_of_plain_passes(tokenizer, nearest):
    model = exact_llama(layers=2)
    trial = make_trial("in-context", test=15, max_new_tokens=20)
    one = prompted(task("red", YES_NO, ["yes", "no"], ["no", "it is not possible", "yes"] * 5), parse_template("qa"))
    asked = questions(one, tokenizer, model, trial, 300, nearest)
    found = asked_choice_scores(model, tokenizer, one, "test", asked)
    assert len(found.nats) == 15
    for question, nats in list(zip(asked.items, found.nats, strict=True))[::7]:
        for choice, value in zip(YES_NO, nats, strict=True):
            before, said = [*question.context, *question.prompt], tokenizer(f" {choice}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([before + said])).logits[0].log_softmax(-1)
            expected = -sum(logits[len(before) - 1 + place, token] for place, token in enumerate(said))
            assert value == pytest.approx(expected.item(), abs=6e-4)
    assert asked_choice_scores(model, tokenizer, replace(one, choices=()), "test", asked) is None


def test_choices_must_exclude_each_other_and_hold_every_answer(tokenizer):
    toy = Toy(make_trial("base"))
    with real(toy) as (_, forward):
        with pytest.raises(ConfigError, match=r'task "red": expected choices of which none .* found "no" and "none"'):
            choice_scores(forward, tokenizer, [task("red", ("no", "none"), ["no"])] * 3, "test", 3, 100)
        with pytest.raises(ConfigError, match='task "red", test: expected one of the choices 1, 2, 3, found "4"'):
            choice_scores(forward, tokenizer, [task("red", RATINGS, ["4"])] * 3, "test", 3, 100)
        assert choice_scores(forward, tokenizer, [task("red", (), ["4"])] * 3, "test", 3, 100) == [None] * 3


# ---- each one's own frequencies -------------------------------------------------------------------------------------


def test_frequencies_are_shares_of_the_training_answers_and_one_more_of_each():
    given = [task("red", RATINGS, ["3", "1", "1", "1"], ["1", "2", "2"]), task("blue", RATINGS, ["2"])]
    found = frequency_scores(given, "test", 2)
    assert found["red"].choices.right == [0, 1]
    expected = [-math.log(4 / 7), -math.log(1 / 7), -math.log(2 / 7)]
    assert found["red"].choices.nats == [pytest.approx(expected, abs=6e-4)] * 2
    assert found["red"].value("accuracy") == 50.0
    assert found["red"].value("choice_nats") == pytest.approx((expected[0] + expected[1]) / 2, abs=1e-3)
    assert found["red"].value("rank_correlation") is None, "the same for every text"
    assert found["blue"].choices.nats == [pytest.approx([-math.log(p / 4) for p in (1, 2, 1)], abs=6e-4)]
    assert (found["red"].nll, found["red"].tokens, found["red"].value("token_nll")) == ([], [], None)


def test_frequencies_refuse_free_answers_by_name():
    with pytest.raises(ConfigError, match=r"found tasks without: green\. Name other groups"):
        frequency_scores(tasks(), "test", 2)
    with pytest.raises(ConfigError, match='task "red", train: expected one of the choices 1, 2, 3, found "4"'):
        frequency_scores([task("red", RATINGS, ["4"], ["1"])], "test", 2)


# ---- end to end -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), tiny_llama(hidden=8, layers=2))


@pytest.mark.parametrize("method", ["base", "colora", "in-context", "frequencies"])
def test_a_trial_has_the_scores_of_choices_and_its_record_survives_the_file(base, method, tmp_path):
    given = [task(name, RATINGS, ["1", "3", "2", "1"]) for name in ("red", "blue", "green")]
    record = Runner(base, device="cpu").run(runner_trial(base, method), given)
    for scores in record.scores.values():
        assert scores.choices.right == [0, 2, 1]
        assert len(scores.choices.nats) == 3
    assert 0 <= record.mean("accuracy") <= 100
    assert record.mean("choice_nats") > 0
    assert (record.mean("token_nll") is None) == (method == "frequencies")
    if method == "frequencies":
        with pytest.raises(ConfigError, match="without: red"):
            Runner(base, device="cpu").run(runner_trial(base, method), [task("red", (), ["a"])])
    else:
        assert -1 <= record.mean("rank_correlation") <= 1
    write_trial_records(tmp_path / "records.jsonl", [record])
    assert read_trial_records(tmp_path / "records.jsonl") == [record]
