"""The methods of the comparison on a toy model: a trial, the real thing attached, and what it holds afterwards."""

from contextlib import contextmanager

import torch

from colora.experiments.methods.attach import attached
from colora.experiments.methods.data import step_rows
from colora.experiments.methods.forward import SplitForward
from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.runner import compress
from colora.experiments.methods.starts import start_from_gradient, start_from_weights
from colora.experiments.methods.train import Training, task_losses, train
from colora.experiments.trial import Trial
from colora.tasks.schema import Example, Task
from tests.helpers.reference_methods import ALPHA, CLIENTS, RANK

EXACT = 1e-9
OPTIONS = {
    "colora-alternating": {"turn": 2},
    "colora-mean": {"pull": 4.0},
    "colora-residual": {"residual_rank": 1},
    "colora-own-a": {"own_rank": 1, "pull": 4.0, "release": 0.5},
    "colora-one-core": {"pull": 2.0, "release": 0.0},
    "colora-kind-cores": {"pull": 3.0},
    "oppu": {"first": 0.375, "own_rank": 1},
    "pooled-and-own": {"own_rank": 1},
    "share": {"first": 0.5},
    "feddpa-f": {"first": 0.7, "own_rank": 1},
    "ditto": {"pull": 9.0, "release": 0.25},
}
RANKS = {"local-matched": 1, "pooled-matched": 3}  # from 128 widths and 7 layers, see `test_matched_ranks`


def make_trial(method, **changes):
    given = {
        "method": method, "group": "toy", "tasks": tuple("abc"), "regime": "implicit", "examples": 4, "seed": 5,
        "base": "tiny", "dtype": "fp64", "rank": RANK, "alpha": ALPHA, "steps": 8, "warmup_steps": 2,
        "rows": 2, "local_steps": 3, "lr": 0.01, "core_lr": 0.04, "weight_decay": 2.0,
        "options": OPTIONS.get(method, {}),
    }  # fmt: skip
    return Trial(**(given | changes))


@contextmanager
def real(toy, forward=None):
    """The real thing attached, in float64 and at its start: as `Runner.run` does it."""
    trial, method = toy.trial, METHODS[toy.trial.method]
    forward = SplitForward(toy.model, toy.first_layer) if forward is None else forward
    torch.manual_seed(trial.seed)
    with attached(toy.model, method, toy.first_layer, CLIENTS, trial.rank, trial.alpha, trial.options) as layers:
        for layer in layers.values():
            layer.terms.double()
        if method.start == "weights":
            start_from_weights(layers)
        elif method.start == "gradient":
            batch = step_rows(toy.rows, trial.rows, 0, trial.seed)
            start_from_gradient(layers, lambda: task_losses(forward.row_nll(batch), batch, CLIENTS)[0])
        yield layers, forward


def run(toy, layers, forward) -> Training:
    method = METHODS[toy.trial.method]
    done = train(method, layers, forward, toy.rows, toy.trial) if method.terms else Training()
    if method.compresses:
        compress(layers, toy.trial.rank)
    return done


def values_of(layers):
    """All parts by (part, layer, client); those of a second term are marked by a prime."""
    found = {}
    for name, layer in layers.items():
        for number, term in enumerate(layer.term_layers()):
            for part, tensor in term.parts():
                for k in range(CLIENTS):
                    assert len(tensor) in (1, CLIENTS)
                    found[part + "'" * number, name, k] = tensor.detach()[k % len(tensor)].clone()
    return found


@torch.no_grad()
def effective(layer):
    """W_k of each client, by what the layer answers to the unit vectors: (K, d_out, d_in)."""
    eye = torch.eye(layer.base.in_features, dtype=torch.float64)
    return layer(eye.expand(CLIENTS, -1, -1)).mT


def close(ours, expected, what, rtol=EXACT):
    assert ours.shape == expected.shape, what
    difference = (ours - expected).abs().max().item()
    assert difference <= rtol * max(1e-3, expected.abs().max().item()), (what, difference)


def toy_tasks(sizes=(4, 5, 3), tests=(3, 2, 4)):
    def some(name, split, count):
        return tuple(Example(f"{name} {split} {n}", (f"{name[0]}{n}", "or this")) for n in range(count))

    return [
        Task(name, {"train": some(name, "train", n), "val": some(name, "val", 2), "test": some(name, "test", m)}, "", 0)
        for name, n, m in zip(("red", "blue", "green"), sizes, tests, strict=True)
    ]


def runner_trial(base, method, **changes) -> Trial:
    given = {
        "base": base, "dtype": "fp32", "tasks": ("red", "blue", "green"), "first_layer": 1, "steps": 4,
        "local_steps": 3, "generate": 2, "test": 3, "max_length": 40, "max_new_tokens": 3,
    }  # fmt: skip
    return make_trial(method, **(given | changes))
