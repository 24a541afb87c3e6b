"""Slow and plain reference implementations, continued: methods with two terms, two stages, tied or shared cores."""

import torch
from torch import Tensor

from tests.helpers.reference_methods import (
    RANK,
    Adam,
    Toy,
    Trained,
    Values,
    Weight,
    centralised,
    each,
    federated,
    finish,
    leaves_of,
    named,
    one,
    rate_at,
    rates_of,
    unnamed,
)


def held_of(values: Values, part: str, layer: str, client: int) -> Tensor:
    """A client's own, or what is for all."""
    return values[part, layer, client] if (part, layer, client) in values else values[part, layer]


def first_term(toy: Toy) -> Weight:
    return lambda v, n, k: toy.W0[n] + toy.s * held_of(v, "B", n, k) @ held_of(v, "A", n, k)


def second_term(toy: Toy) -> Weight:
    return lambda v, n, k: toy.W0[n] + toy.s * held_of(v, "B'", n, k) @ held_of(v, "A'", n, k)


def both_terms(toy: Toy) -> Weight:
    return lambda v, n, k: first_term(toy)(v, n, k) + second_term(toy)(v, n, k) - toy.W0[n]


def with_core(toy: Toy) -> Weight:
    return lambda v, n, k: toy.W0[n] + toy.s * held_of(v, "B", n, k) @ held_of(v, "core", n, k) @ held_of(v, "A", n, k)


def at_once(toy: Toy, values: Values, weight: Weight, cores: bool = False, after=None) -> Trained:
    """Everything trained together."""
    values, losses = centralised(toy, values, weight, rates_of(toy, cores), after=after)
    return finish(toy, unnamed(values, toy.clients), weight, losses)


def drawn(toy: Toy, core_names: list[tuple]):
    """The pull of the cores to their mean; each name is one core of every client."""
    pull, release = toy.trial.options.get("pull", 0.0), toy.trial.options.get("release", 1.0)
    steps = toy.trial.steps

    def after(values: Values, step: int) -> None:
        left = 1.0 if step < release * steps or release == 1 else (steps - step) / (steps - release * steps)
        share = min(1.0, rate_at(toy.trial.core_lr, step, toy.trial) * pull * left)
        for name in core_names:
            mean = sum(values[(*name, k)] for k in toy.clients) / len(toy.clients)
            for k in toy.clients:
                values[(*name, k)] = values[(*name, k)] + share * (mean - values[(*name, k)])

    return after


def oppu(toy: Toy, start: Values) -> Trained:
    half = round(toy.trial.options["first"] * toy.trial.steps)
    common, losses = centralised(toy.stage(0, half), one(toy, start, "A", "B"), first_term(toy), rates_of(toy, False))
    own, more = centralised(
        toy.stage(half, toy.trial.steps - half),
        named(each(toy, start, "A'", "B'")),
        lambda v, n, k: both_terms(toy)(common | v, n, k),
        rates_of(toy, False),
    )
    return finish(toy, unnamed(common | own, toy.clients), both_terms(toy), losses + more)


def pooled_and_own(toy: Toy, start: Values) -> Trained:
    return at_once(toy, one(toy, start, "A", "B") | named(each(toy, start, "A'", "B'")), both_terms(toy))


def alora(toy: Toy, start: Values) -> Trained:
    return at_once(toy, one(toy, start, "B") | named(each(toy, start, "A")), first_term(toy))


def shared_a(toy: Toy, start: Values) -> Trained:
    return at_once(toy, one(toy, start, "A") | named(each(toy, start, "B")), first_term(toy))


def shared_core(toy: Toy, start: Values) -> Trained:
    return at_once(toy, one(toy, start, "core") | named(each(toy, start, "A", "B")), with_core(toy), cores=True)


def colora_own_a(toy: Toy, start: Values) -> Trained:
    values = one(toy, start, "A", "B", "B'") | named(each(toy, start, "core", "A'"))
    after = drawn(toy, [("core", n) for n in toy.layers])
    return at_once(
        toy, values, lambda v, n, k: with_core(toy)(v, n, k) + second_term(toy)(v, n, k) - toy.W0[n], True, after
    )


def _tied(toy: Toy, start: Values, of) -> Trained:
    """One core of a client for all layers n with one and the same `of(n)`."""

    def W(v: Values, n: str, k: int) -> Tensor:
        return toy.W0[n] + toy.s * v["B", n] @ v["core", of(n), k] @ v["A", n]

    values = one(toy, start, "A", "B")
    values |= {("core", of(n), k): start["core", n, k] for n in toy.layers for k in toy.clients}
    after = drawn(toy, [("core", name) for name in dict.fromkeys(of(n) for n in toy.layers)])
    values, losses = centralised(toy, values, W, rates_of(toy, True), after=after)
    weights = [{n: W(values, n, k) for n in toy.layers} for k in toy.clients]
    factors = {name: value for name, value in values.items() if len(name) == 2}
    held = [factors | {("core", n): values["core", of(n), k] for n in toy.layers} for k in toy.clients]
    return Trained(held, weights, losses)


def colora_one_core(toy: Toy, start: Values) -> Trained:
    return _tied(toy, start, lambda n: "all")


def colora_kind_cores(toy: Toy, start: Values) -> Trained:
    return _tied(toy, start, lambda n: n.split(".")[-1])


def share(toy: Toy, start: Values) -> Trained:
    """The basis has signs of its own, so only the weights can be compared."""
    half = round(toy.trial.options["first"] * toy.trial.steps)
    alone, losses = centralised(
        toy.stage(0, half), named(each(toy, start, "A", "B")), first_term(toy), rates_of(toy, False)
    )
    basis, cores = {}, {}
    for n in toy.layers:
        U = torch.linalg.svd(torch.cat([alone["B", n, k] for k in toy.clients], dim=1)).U[:, :RANK]
        V = torch.linalg.svd(torch.cat([alone["A", n, k].T for k in toy.clients], dim=1)).U[:, :RANK]
        basis["B", n], basis["A", n] = U, V.T
        for k in toy.clients:
            cores["core", n, k] = U.T @ (alone["B", n, k] @ alone["A", n, k]) @ V
    rest = toy.stage(half, toy.trial.steps - half)
    cores, more = centralised(rest, cores, lambda v, n, k: with_core(toy)(basis | v, n, k), rates_of(toy, True))
    done = finish(toy, unnamed(basis | cores, toy.clients), with_core(toy), losses + more)
    done.held = []
    return done


# ---- federated ------------------------------------------------------------------------------------------------------


def fed_core(toy: Toy, start: Values) -> Trained:
    server, home, losses = federated(
        toy, one(toy, start, "core"), each(toy, start, "A", "B"), with_core(toy), rates_of(toy, True)
    )
    return finish(toy, [server | home[k] for k in toy.clients], with_core(toy), losses)


def descend(toy: Toy, k: int, step: int, moved: Values, weight, adam: Adam, losses: list[float]) -> None:
    """One step of client k on `moved`; `weight` gives the weight of a layer from these."""
    leaves = leaves_of(moved)
    loss = toy.loss(k, step, {n: weight(leaves, n, k) for n in toy.layers})
    losses[step] += float(loss.detach()) / len(toy.clients)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    for (name, value), gradient in zip(list(moved.items()), gradients, strict=True):
        moved[name] = adam.move(name, value, gradient, rate_at(toy.trial.lr, step, toy.trial))


def mean_of(returned: list[Values]) -> Values:
    return {name: sum(copy[name] for copy in returned) / len(returned) for name in returned[0]}


def feddpa(toy: Toy, start: Values) -> Trained:
    server, home, at_home = (
        one(toy, start, "A", "B"),
        each(toy, start, "A'", "B'"),
        [Adam(toy.trial.weight_decay) for _ in toy.clients],
    )
    steps, losses = toy.trial.steps, [0.0] * toy.trial.steps
    for number, begin in enumerate(range(0, steps, toy.trial.local_steps)):
        end = min(begin + toy.trial.local_steps, steps)
        turn = begin + (int((end - begin) * toy.trial.options.get("own_share", 0.5)) if number else 0)
        returned = []
        for k in toy.clients:
            for step in range(begin, turn):
                received = dict(server)
                descend(
                    toy, k, step, home[k], lambda v, n, k, r=received: both_terms(toy)(r | v, n, k), at_home[k], losses
                )
            copy, fresh = dict(server), Adam(toy.trial.weight_decay)
            for step in range(turn, end):
                descend(toy, k, step, copy, first_term(toy), fresh, losses)
            returned.append(copy)
        server = mean_of(returned)
    return finish(toy, [server | home[k] for k in toy.clients], both_terms(toy), losses)


def feddpa_f(toy: Toy, start: Values) -> Trained:
    local, steps = toy.trial.local_steps, toy.trial.steps
    first = round(toy.trial.options["first"] * steps / local) * local
    server, _, losses = federated(
        toy.stage(0, first), one(toy, start, "A", "B"), each(toy, start), first_term(toy), rates_of(toy, False)
    )
    rest, home = toy.stage(first, steps - first), each(toy, start, "A'", "B'")
    more = [0.0] * (steps - first)
    for k in toy.clients:
        adam = Adam(toy.trial.weight_decay)
        for step in range(steps - first):
            descend(rest, k, step, home[k], lambda v, n, k: both_terms(toy)(server | v, n, k), adam, more)
    return finish(toy, [server | home[k] for k in toy.clients], both_terms(toy), losses + more)


def ditto(toy: Toy, start: Values) -> Trained:
    """The client answers with its own model alone."""
    server, home, at_home = (
        one(toy, start, "A", "B"),
        each(toy, start, "A'", "B'"),
        [Adam(toy.trial.weight_decay) for _ in toy.clients],
    )
    steps, losses, given = toy.trial.steps, [0.0] * toy.trial.steps, toy.trial.options
    for begin in range(0, steps, toy.trial.local_steps):
        end = min(begin + toy.trial.local_steps, steps)
        turn = begin + int((end - begin) * given.get("own_share", 0.5))
        returned = []
        for k in toy.clients:
            for step in range(begin, turn):
                descend(toy, k, step, home[k], second_term(toy), at_home[k], losses)
                release = given["release"]
                left = 1.0 if step < release * steps else (steps - step) / (steps - release * steps)
                near = min(1.0, rate_at(toy.trial.lr, step, toy.trial) * given["pull"] * left)
                for part, n in home[k]:
                    home[k][part, n] = (1 - near) * home[k][part, n] + near * server[part[0], n]
            copy, fresh = dict(server), Adam(toy.trial.weight_decay)
            for step in range(turn, end):
                descend(toy, k, step, copy, first_term(toy), fresh, losses)
            returned.append(copy)
        server = mean_of(returned)
    return finish(toy, [server | home[k] for k in toy.clients], second_term(toy), losses)
