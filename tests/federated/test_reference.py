"""The protocol against a plain reference: loops over clients, dense weights W0 + s · B Λ A, and Adam written out."""

import math

import pytest
import torch
from torch.func import functional_call

from colora.federated.local import LocalModel
from colora.federated.protocol import federate, init
from tests.helpers.federation_clients import ADAPTER, CORE_LR, DATA, FEDERATION, LR, SEED, SIZES, spec_of
from tests.helpers.reference_methods import Adam, exact_llama

DECAY = 2.0


class ReferenceFederation:
    """A federation in float64, with dense weights of each client and one row at a time."""

    def __init__(self, local, spec, max_grad_norm):
        self.model, self.spec, self.limit = exact_llama().requires_grad_(False), spec, max_grad_norm
        self.layers = [name.removeprefix("A/") for name in local.start if name.startswith("A/")]
        self.shared = {name: tensor.double() for name, tensor in local.start.items()}
        self.cores = {k: {layer: torch.eye(2, dtype=torch.float64) for layer in self.layers} for k in SIZES}
        self.core_adam = {k: Adam() for k in SIZES}
        self.factor_adam = {k: Adam(DECAY) for k in SIZES}
        self.drawn = dict.fromkeys(SIZES, 0)

    def loss(self, rows, values):
        weights = {}
        for layer in self.layers:
            change = 1.5 * values["B/" + layer] @ values[layer] @ values["A/" + layer]
            weights[f"{layer}.weight"] = self.model.get_submodule(layer).weight + change
        total, tokens = 0.0, 0
        for row in rows:
            logits = functional_call(self.model, weights, (torch.tensor([row["input_ids"]]),)).logits[0]
            for position, label in enumerate(row["labels"]):
                if label != -100:
                    total, tokens = total - logits[position - 1].log_softmax(-1)[label], tokens + 1
        return total / tokens

    def step(self, k, values, names, adam, share):
        """One local step of the values in `names`."""
        rows = DATA[k].batches(self.drawn[k], 1, self.spec.rows, SEED)[0]
        self.drawn[k] += 1
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        gradients = torch.autograd.grad(self.loss(rows, leaves), [leaves[name] for name in names])
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        shrink = min(1.0, self.limit / (norm + 1e-6)) if self.limit else 1.0
        for name, gradient in zip(names, gradients, strict=True):
            core = name in self.layers
            rate = share * (CORE_LR if core else LR)
            values[name] = (self.core_adam[k] if core else adam).move(name, values[name], shrink * gradient, rate)

    def round(self, number):
        factors = {"alternating": ["B", "A"][number % 2], "simultaneous": "AB"}[self.spec.schedule]
        trained = [name for name in self.shared if name[0] in factors]
        share = 0.1 + 0.9 * (1 + math.cos(math.pi * number / (self.spec.rounds - 1))) / 2
        total = dict.fromkeys(trained, 0.0)
        for k, size in SIZES.items():
            values = self.shared | self.cores[k]
            adam = self.factor_adam[k] if self.spec.factor_moments == "kept" else Adam(DECAY)
            if self.spec.order == "core_first":
                for _ in range(self.spec.core_steps):
                    self.step(k, values, self.layers, adam, share)
                for _ in range(self.spec.local_steps):
                    self.step(k, values, trained, adam, share)
            else:
                for _ in range(self.spec.core_steps + self.spec.local_steps):
                    self.step(k, values, [*self.layers, *trained], adam, share)
            self.cores[k] = {layer: values[layer] for layer in self.layers}
            for name in trained:
                total[name] = total[name] + size / sum(SIZES.values()) * (values[name] - self.shared[name])
        self.shared |= {name: self.shared[name] + change for name, change in total.items()}

    def end(self):
        for k in SIZES:
            values = self.shared | self.cores[k]
            for _ in range(self.spec.finish_steps):
                self.step(k, values, self.layers, Adam(), 0.1)
            self.cores[k] = {layer: values[layer] for layer in self.layers}


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("order", ["core_first", "together"])
@pytest.mark.parametrize("schedule", ["alternating", "simultaneous"])
@pytest.mark.parametrize("moments", ["fresh", "kept"])
def test_federate_equals_the_reference(moments, schedule, order, max_grad_norm):
    local = LocalModel(exact_llama(), ADAPTER, 0, SEED, LR, CORE_LR, max_grad_norm, DECAY)
    rounds = 2 if moments == "fresh" else 4  # alternating, a factor is trained in every other round
    spec = spec_of(schedule=schedule, order=order, factor_moments=moments, rounds=rounds)
    clients = {name: local.initial_state() for name in SIZES}
    state = federate(init(FEDERATION, local), clients, DATA, local, spec, SEED)
    reference = ReferenceFederation(local, spec, max_grad_norm)
    for number in range(rounds):
        reference.round(number)
    reference.end()
    # States are float32 between rounds; within a round both compute in float64.
    for name, tensor in state.shared.items():
        torch.testing.assert_close(tensor, reference.shared[name].float(), rtol=1e-5, atol=1e-6)
        moved = (tensor - local.start[name]).abs().max()
        assert moved > 1e-3, name
    for name in SIZES:
        assert clients[name].position == reference.drawn[name]
        for layer, core in clients[name].cores.items():
            torch.testing.assert_close(core, reference.cores[name][layer].float(), rtol=1e-5, atol=1e-6)
            assert (core - torch.eye(2)).abs().max() > 1e-3
