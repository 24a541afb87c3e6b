"""Bytes of a record against messages built from the formulas: who sends what in which round, serialised and counted."""

import pytest
import safetensors.torch
import torch

from colora.experiments.methods import federation
from colora.experiments.methods import train as training
from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.runner import Runner
from tests.helpers.method_trials import runner_trial, toy_tasks
from tests.helpers.reference_methods import CLIENTS, LAYERS, RANK
from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama

WIDTHS = {"q_proj": (8, 8), "k_proj": (8, 4), "v_proj": (8, 4), "o_proj": (8, 8)}  # d_in, d_out
WIDTHS |= {"gate_proj": (8, 16), "up_proj": (8, 16), "down_proj": (16, 8)}
PLACES = [f"model.layers.1.{name}" for name in LAYERS]


def always(*parts):
    return lambda number: parts


def b_first(number):
    return ("A",) if number % 2 else ("B",)


SENT = {
    # what one client sends in round t
    "fedit": always("A", "B"),
    "ffa-lora": always("B"),
    "fedsa-lora": always("A"),
    "fed-alora": always("B"),
    "rolora": b_first,
    "fedex-lora": always("A", "B"),
    "fed-sb": always("core"),
    "fed-core": always("core"),
    "feddpa": always("A", "B"),
    "feddpa-f": lambda number: () if number else ("A", "B"),  # here the first round is the first stage
    "ditto": always("A", "B"),
    "fed-colora": always("A", "B"),
    "fed-colora-alternating": b_first,
}
RETURNED = SENT | {"fedex-lora": always("A", "B", "residual_A", "residual_B")}


def shape(part, place):
    inputs, outputs = WIDTHS[place.rsplit(".", 1)[-1]]
    stacked = (CLIENTS + 1) * RANK
    shapes = {"A": (RANK, inputs), "B": (outputs, RANK), "core": (RANK, RANK)}
    return (shapes | {"residual_A": (stacked, inputs), "residual_B": (outputs, stacked)})[part]


def message(parts, number="0."):
    """Bytes of a message with these parts of all layers. A term's parts bear its number; the residual is a layer's."""
    tensors = {
        f"{place}.{'' if part.startswith('residual') else number}{part}": torch.ones(shape(part, place))
        for place in PLACES
        for part in parts
    }
    return len(safetensors.torch.save(tensors))


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return Runner(save_base(tmp_path_factory.mktemp("base"), tiny_llama(hidden=8, layers=2)), device="cpu")


@pytest.mark.parametrize(("steps", "local_steps", "rounds"), [(5, 2, 3), (2, 2, 1), (1, 3, 1), (4, 2, 2)])
@pytest.mark.parametrize("method", SENT)
def test_bytes_are_those_of_the_messages(method, steps, local_steps, rounds, runner):
    trial = runner_trial(runner.base, method, options={}, rows=1, test=1, generate=0)
    record = runner.run(trial.model_copy(update={"steps": steps, "local_steps": local_steps}), toy_tasks())
    up = sum(message(parts) for number in range(rounds) if (parts := SENT[method](number))) * CLIENTS
    down = sum(message(parts) for number in range(rounds) if (parts := RETURNED[method](number))) * CLIENTS
    if method == "fed-sb":  # the first client sends A and B to the server, which sends them to the others
        start = message(("A", "B"), number="")
        up, down = up + start, down + start * (CLIENTS - 1)
    assert (record.rounds, record.bytes_up, record.bytes_down) == (rounds, up, down)


def test_all_federated_methods_are_counted():
    assert set(SENT) == {name for name, method in METHODS.items() if method.federated}


@pytest.mark.parametrize("method", SENT)
def test_what_is_sent_and_returned(method, runner, monkeypatch):
    """The tensors themselves: the server returns the mean of what the clients hold, and FedEx what that mean lost."""
    rounds, end_round = [], training.end_round

    def before(layers):
        return {
            f"{place}.0.{part}": tensor.detach().clone()
            for place, layer in layers.items()
            for part, tensor in layer.term_layers()[0].parts()
        }

    def watched(layers, *given):
        rounds.append((before(layers), messages := []))
        monkeypatch.setattr(federation, "message_bytes", lambda tensors: messages.append(tensors) or 1)
        return end_round(layers, *given)

    monkeypatch.setattr(training, "end_round", watched)
    trial = runner_trial(runner.base, method, options={}, steps=4, rows=1, local_steps=2, test=1, generate=0, lr=0.05)
    runner.run(trial, toy_tasks())
    assert len(rounds) == 2
    for number, (held, messages) in enumerate(rounds):
        if not SENT[method](number):
            assert not messages
            continue
        *sent, returned = messages
        assert len(sent) == CLIENTS
        for one in sent:
            assert {name: tuple(value.shape) for name, value in one.items()} == {
                f"{place}.0.{part}": shape(part, place) for place in PLACES for part in SENT[method](number)
            }
        for name in sent[0]:
            assert torch.allclose(returned[name], held[name].mean(0), rtol=1e-5, atol=1e-8)
        for place in PLACES if method == "fedex-lora" else []:
            A, B = held[f"{place}.0.A"].double(), held[f"{place}.0.B"].double()
            lost = (B @ A).mean(0) - B.mean(0) @ A.mean(0)
            assert lost.abs().max() > 1e-5
            factors = returned[f"{place}.residual_B"].double(), returned[f"{place}.residual_A"].double()
            assert torch.allclose(factors[0] @ factors[1], lost, atol=1e-7)


def test_a_message_is_a_header_and_its_numbers():
    """Eight bytes of length, a header, and four bytes a number: nothing else, and not the memory behind a slice."""
    whole = torch.arange(24.0).view(4, 6)
    assert federation.message_bytes({"a": whole[1]}) == federation.message_bytes({"a": whole[:, 1][:1].expand(6)})
    small, large = (federation.message_bytes({"a": torch.zeros(n)}) for n in (100, 900))
    assert large - small == 4 * 800
    assert federation.message_bytes({"a": torch.zeros(900).half()}) == large - 2 * 900
