"""Trials end to end on a tiny base, and what is measured: likelihoods, similarity, and numbers counted by hand."""

import math

import pytest
import torch

from colora.errors import ConfigError, TaskFileError, TrainingDivergedError
from colora.experiments.methods.data import encode_rows
from colora.experiments.methods.measure import kept_parameters, likelihoods, similarity, trained_parameters
from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.runner import Runner
from colora.experiments.trial import read_trial_records, write_trial_records
from tests.helpers.method_trials import close, make_trial, real, run, runner_trial, toy_tasks, values_of
from tests.helpers.reference_methods import CLIENTS, Toy, toy_rows
from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama

# Seven layers: q, o 8 × 8, k, v 8 → 4, gate, up 8 → 16, down 16 → 8; r = 2, K = 3.
A, B = 2 * (6 * 8 + 16), 2 * (8 + 4 + 4 + 8 + 16 + 16 + 8)
CORE, DIAGONAL, FOLDED = 7 * 4, 7 * 2, 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16
COUNTS = {
    # method: (trained, kept for all, kept for each)
    "base": (0, 0, 0),
    "in-context": (0, 0, 0),
    "in-context-nearest": (0, 0, 0),
    "frequencies": (0, 0, 0),
    "local": (3 * (A + B), 0, A + B),
    "local-matched": (3 * 128, 0, 128),
    "pooled": (A + B, A + B, 0),
    "pooled-matched": (3 * 128, 3 * 128, 0),
    "oppu": (A + B + 3 * 128, A + B, 128),
    "pooled-and-own": (A + B + 3 * 128, A + B, 128),
    "alora": (B + 3 * A, B, A),
    "shared-a": (A + 3 * B, A, B),
    "shared-core": (CORE + 3 * (A + B), CORE, A + B),
    "colora": (A + B + 3 * CORE, A + B, CORE),
    "colora-alternating": (A + B + 3 * CORE, A + B, CORE),
    "colora-diagonal": (A + B + 3 * DIAGONAL, A + B, DIAGONAL),
    "colora-mean": (A + B + 3 * CORE, A + B, CORE),
    "colora-residual": (A + B + 3 * (CORE + 128), A + B, CORE + 128),
    "colora-own-a": (A + B + 3 * CORE + B // 2 + 3 * A // 2, A + B + B // 2, CORE + A // 2),
    "colora-one-core": (A + B + 3 * 4, A + B, 4),
    "colora-kind-cores": (A + B + 3 * CORE, A + B, CORE),
    "mtl-lora": (A + B + 3 * CORE, A + B, CORE),
    "lora-xs": (3 * CORE, A + B, CORE),
    "post-hoc": (3 * (A + B), A + B, CORE),
    "share": (3 * (A + B + CORE), A + B, CORE),
    "fedit": (A + B, A + B, 0),
    "ffa-lora": (B, A + B, 0),
    "fedsa-lora": (A + 3 * B, A, B),
    "fed-alora": (B + 3 * A, B, A),
    "rolora": (A + B, A + B, 0),
    "fedex-lora": (A + B, A + B + FOLDED, 0),
    "fed-sb": (CORE, A + B + CORE, 0),
    "fed-core": (CORE + 3 * (A + B), CORE, A + B),
    "feddpa": (4 * (A + B), A + B, A + B),
    "feddpa-f": (A + B + 3 * 128, A + B, 128),
    "ditto": (4 * (A + B), 0, A + B),
    "fed-colora": (A + B + 3 * CORE, A + B, CORE),
    "fed-colora-alternating": (A + B + 3 * CORE, A + B, CORE),
}


@pytest.mark.parametrize("method", METHODS)
def test_numbers_trained_and_kept(method):
    toy = Toy(make_trial(method, steps=2))
    with real(toy) as (layers, forward):
        trained, shared, own = COUNTS[method]
        assert sum(layer.base.weight.numel() for layer in layers.values()) == FOLDED
        before = values_of(layers)
        assert trained_parameters(layers) == trained
        run(toy, layers, forward)
        assert kept_parameters(layers) == (shared, own)
        if not METHODS[method].compresses and METHODS[method].terms:
            after = values_of(layers)
            moved = {part for part, layer, k in after if not torch.equal(after[part, layer, k], before[part, layer, k])}
            held = {
                part + "'" * i: p for i, term in enumerate(METHODS[method].terms) for part, p in term.parts().items()
            }
            made = {"A'", "B'"} if METHODS[method].makes_basis else set()
            assert moved <= made | {part for part, p in held.items() if p.trained}


@pytest.mark.parametrize("method", ["local", "colora", "colora-residual", "colora-diagonal", "post-hoc", "fedsa-lora"])
def test_similarity_is_the_cosine_of_dense_updates(method):
    toy = Toy(make_trial(method, steps=4))
    with real(toy) as (layers, forward):
        run(toy, layers, forward)
        updates = []
        for k in range(CLIENTS):
            dense = [
                sum(left @ right for left, right in (term.factors(k) for term in layer.term_layers())).flatten()
                for layer in layers.values()
            ]
            updates.append(torch.cat(dense).detach())
        expected = torch.stack([torch.stack([torch.cosine_similarity(a, b, dim=0) for b in updates]) for a in updates])
        found = torch.tensor(similarity(layers), dtype=torch.float64)
        assert (found - expected).abs().max() <= 0.5001e-4
        assert expected.min() < 0.9995


def test_no_similarity_without_updates():
    with real(Toy(make_trial("base"))) as (layers, _):
        assert similarity(layers) is None


@pytest.mark.parametrize("sizes", [(1, 5, 3), (40, 2, 33), (2, 2, 2)])
def test_likelihoods_of_tasks_with_unequal_numbers_of_rows(sizes):
    """More rows than fit one batch of 96 as well; each is the nats of the row alone with its task's weights."""
    toy = Toy(make_trial("colora"), rows=toy_rows(sizes))
    with real(toy) as (layers, forward):
        for layer in layers.values():
            for tensor in layer.terms.parameters():
                tensor.data.normal_(std=0.3)
        found = likelihoods(forward, toy.rows)
        assert tuple(map(len, found)) == sizes
        for k, own in enumerate(toy.rows):
            weights = {
                name: toy.W0[name]
                + toy.s * sum(left @ right for left, right in (term.factors(k) for term in layer.term_layers()))
                for name, layer in layers.items()
            }
            for place in {0, len(own) // 2, len(own) - 1}:
                with torch.no_grad():
                    close(torch.tensor(found[k][place]).double(), toy.nats(own[place], weights), (k, place), rtol=1e-6)


# ---- end to end -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), tiny_llama(hidden=8, layers=2))


@pytest.fixture(scope="module")
def runner(base):
    return Runner(base, device="cpu")


def what_counts(record):
    return record.model_dump(exclude={"seconds", "peak_memory", "environment"})


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.counts_answers])
def test_every_method_runs_and_its_record_survives_the_file(method, base, runner, tmp_path):
    record = runner.run(runner_trial(base, method), toy_tasks())
    assert record.error is None
    assert list(record.scores) == ["red", "blue", "green"]
    assert [len(scores.nll) for scores in record.scores.values()] == [3, 2, 3]
    assert [len(scores.rougeL) for scores in record.scores.values()] == [2, 2, 2]
    for metric in ("token_nll", "rougeL", "exact_match"):
        assert math.isfinite(record.mean(metric))
    trained, shared, own = COUNTS[method]
    assert (record.trainable, record.shared_numbers, record.task_numbers) == (trained, shared, own)
    assert (record.similarity is None) == (own == 0)
    federated = METHODS[method].federated
    assert (record.rounds, record.bytes_up is None, record.bytes_down is None) == (
        (2, False, False) if federated else (None, True, True)
    )
    assert [step for step, _ in record.losses] == ([0, 1, 2, 3] if METHODS[method].terms else [])
    write_trial_records(tmp_path / "records.jsonl", [record, record])
    assert read_trial_records(tmp_path / "records.jsonl") == [record, record]


def test_trials_do_not_depend_on_what_ran_before(base, runner):
    """Twice on one runner and once on a fresh one: the same scores, whatever ran in between."""
    methods = ["colora", "fedex-lora", "lora-xs", "fed-sb"]
    tasks = toy_tasks()
    first = {method: what_counts(runner.run(runner_trial(base, method), tasks)) for method in methods}
    second = {method: what_counts(runner.run(runner_trial(base, method), tasks)) for method in reversed(methods)}
    fresh = Runner(base, device="cpu")
    torch.manual_seed(99)
    third = {method: what_counts(fresh.run(runner_trial(base, method), tasks)) for method in methods[1:] + methods[:1]}
    assert first == second == third


def test_seeds_differ(base, runner):
    one, two = (runner.run(runner_trial(base, "colora", seed=seed), toy_tasks()) for seed in (0, 1))
    assert one.losses != two.losses


def test_rows_of_the_split_are_measured_and_the_base_is_the_base(base, runner):
    """The base method gives the nats of the model as it was loaded."""
    trial = runner_trial(base, "base", split="val", generate=0)
    record = runner.run(trial, toy_tasks())
    rows = encode_rows(toy_tasks(), runner.tokenizer, "val", trial.max_length)
    for scores, own in zip(record.scores.values(), rows, strict=True):
        assert scores.tokens == [row.answer_tokens for row in own]
        assert scores.rougeL == []
        for nll, row in zip(scores.nll, own, strict=True):
            with torch.no_grad():
                logits = runner.model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
            said = [-logits[t, label] for t, label in enumerate(row.labels[1:]) if label >= 0]
            assert nll == pytest.approx(float(sum(said)), abs=1e-3)


def test_double_precision_reaches_the_adapters(base):
    record = Runner(base, "fp64", device="cpu").run(
        runner_trial(base, "fedit", dtype="fp64", generate=0, steps=1), toy_tasks()
    )
    assert record.bytes_up > 3 * 8 * (A + B)


def test_what_cannot_be_run(base, runner):
    with pytest.raises(ConfigError, match="unknown method 'lora'; known: base, in-context, in-context-nearest, freq"):
        runner.run(runner_trial(base, "lora"), toy_tasks())
    with pytest.raises(ConfigError, match="unknown option 'x' of method 'local': it takes none"):
        runner.run(runner_trial(base, "local", options={"x": 1.0}), toy_tasks())
    with pytest.raises(TaskFileError, match="task 'blue': expected examples in split 'train', found none"):
        runner.run(runner_trial(base, "local"), toy_tasks(sizes=(4, 0, 3)))
    with pytest.raises(TrainingDivergedError, match="lower the rates"):
        runner.run(runner_trial(base, "local", lr=1e30), toy_tasks())
    # and the runner goes on
    assert runner.run(runner_trial(base, "base", generate=0), toy_tasks()).error is None
