"""Slow and plain reference implementations of the methods: what each paper's formula says, no code of `colora`.

Every client has matrices of its own, every weight is dense, W_k = W0 + s · B Λ A, every row runs by itself, gradients
come from autograd on those dense weights, rounds are loops over clients, and AdamW is written out. All in float64.

A reference implementation takes a `Toy` and the initial values, by (part, layer, client), and gives a `Trained`.
"""

import math
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from colora.experiments.methods.data import step_rows
from colora.experiments.methods.forward import Row
from colora.experiments.trial import Trial
from colora.tasks.encode import IGNORED
from tests.helpers.tiny import tiny_llama

CLIENTS, RANK, ALPHA = 3, 2, 3.0
LAYERS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
)  # fmt: skip
Values = dict[tuple, Tensor]


class ExactNorm(nn.Module):
    """A root-mean-square norm in the input's own precision; that of transformers rounds to float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def exact_llama(layers: int = 1, hidden: int = 8, seed: int = 0) -> nn.Module:
    """A tiny llama that computes in float64 throughout, with weights large enough for its layers to matter."""
    model = tiny_llama(seed=seed, dtype=torch.float64, hidden=hidden, layers=layers)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, ExactNorm(module))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.4)
    return model


def toy_rows(sizes: tuple[int, ...] = (4, 5, 3), seed: int = 3) -> list[list[Row]]:
    """Rows of random tokens, of unequal lengths; each has a prompt of 2 or 3 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def one() -> Row:
        length, prompt = (int(torch.randint(low, high, (), generator=generator)) for low, high in [(5, 9), (2, 4)])
        ids = tuple(torch.randint(6, 200, (length,), generator=generator).tolist())
        return Row(ids, (IGNORED,) * prompt + ids[prompt:])

    return [[one() for _ in range(size)] for size in sizes]


@dataclass
class Toy:
    """A tiny comparison: the base model and, of each client, the loss as a function of its dense weights."""

    trial: Trial
    first_layer: int = 0
    rows: list[list[Row]] = field(default_factory=toy_rows)
    blocks: int = 1
    begin: int = 0

    def __post_init__(self) -> None:
        self.model = exact_llama(layers=self.first_layer + self.blocks).requires_grad_(False)
        self.base = deepcopy(self.model)
        places = range(self.first_layer, self.first_layer + self.blocks)
        self.layers = [f"model.layers.{place}.{name}" for place in places for name in LAYERS]
        self.W0 = {layer: self.base.get_submodule(layer).weight for layer in self.layers}
        self.s = ALPHA / RANK
        self.clients = range(len(self.rows))

    def batch(self, client: int, step: int) -> list[Row]:
        """The rows of one client in one step."""
        m = self.trial.rows
        return step_rows(self.rows, m, self.begin + step, self.trial.seed)[client * m : (client + 1) * m]

    def stage(self, begin: int, steps: int) -> "Toy":
        """Some of the steps as a training of its own, with its share of the steps in which the rates rise."""
        warmup = self.trial.warmup_steps * steps // self.trial.steps
        other = copy(self)
        other.begin, other.trial = begin, self.trial.model_copy(update={"steps": steps, "warmup_steps": warmup})
        return other

    def nats(self, row: Row, weights: dict[str, Tensor]) -> Tensor:
        """Nats of the row's answer; the row runs alone, so there is no padding."""
        named = {f"{layer}.weight": weight for layer, weight in weights.items()}
        logits = functional_call(self.base, named, (torch.tensor([row.input_ids]),)).logits[0]
        return torch.stack([-logits[t - 1].log_softmax(-1)[row.labels[t]] for t in said_at(row)]).sum()

    def loss(self, client: int, step: int, weights: dict[str, Tensor]) -> Tensor:
        """Mean nats per answer token of the client's rows in this step."""
        rows = self.batch(client, step)
        return sum(self.nats(row, weights) for row in rows) / sum(len(said_at(row)) for row in rows)


def said_at(row: Row) -> list[int]:
    """The places of the answer's tokens."""
    return [place for place, label in enumerate(row.labels) if label != IGNORED and place > 0]


@dataclass
class Trained:
    """What an implementation ends with: each client's matrices by (part, layer), dense weights, and mean losses."""

    held: list[Values]
    weights: list[dict[str, Tensor]]
    losses: list[float]
    folded: dict[str, Tensor] | None = None


class Adam:
    """AdamW, written out; a tensor that does not move keeps its moments and its count. Cores do not decay."""

    def __init__(self, decay: float = 0.0) -> None:
        self.decay = decay
        self.state: dict[tuple, tuple[Tensor, Tensor, int]] = {}

    def move(self, name: tuple, value: Tensor, gradient: Tensor, rate: float) -> Tensor:
        m, v, t = self.state.get(name, (torch.zeros_like(value), torch.zeros_like(value), 0))
        m, v, t = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2, t + 1
        self.state[name] = m, v, t
        if not name[0].startswith("core"):
            value = value - rate * self.decay * value
        return value - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)


def rate_at(peak: float, step: int, trial: Trial) -> float:
    """Up in equal stairs, then down as a cosine."""
    rates = [peak * (stair + 1) / trial.warmup_steps for stair in range(trial.warmup_steps)]
    rest = trial.steps - trial.warmup_steps
    rates += [peak * (1 + math.cos(math.pi * place / rest)) / 2 for place in range(rest)]
    return rates[step]


def leaves_of(values: Values) -> Values:
    return {name: value.detach().clone().requires_grad_() for name, value in values.items()}


Weight = Callable[[Values, str, int], Tensor]
Moves = Callable[[str, int], bool]


def always(part: str, when: int) -> bool:
    return True


def centralised(
    toy: Toy,
    values: Values,
    weight: Weight,
    rates: dict[str, float],
    moves: Moves = always,
    after: Callable[[Values, int], None] | None = None,
) -> tuple[Values, list[float]]:
    """Σ_k L_k descended in `values`; `weight` gives W_k of a layer from them, `moves` says what moves in a step."""
    adam, losses = Adam(toy.trial.weight_decay), []
    for step in range(toy.trial.steps):
        leaves = leaves_of(values)
        each = [toy.loss(k, step, {layer: weight(leaves, layer, k) for layer in toy.layers}) for k in toy.clients]
        losses.append(float(sum(each).detach()) / len(each))
        gradients = torch.autograd.grad(sum(each), list(leaves.values()))
        for (name, value), gradient in zip(list(values.items()), gradients, strict=True):
            if moves(name[0], step):
                values[name] = adam.move(name, value, gradient, rate_at(rates[name[0]], step, toy.trial))
        if after is not None:
            after(values, step)
    return values, losses


def federated(
    toy: Toy,
    server: Values,
    home: list[Values],
    weight: Weight,
    rates: dict[str, float],
    moves: Moves = always,
    at_server: Callable[[Values, list[Values]], None] | None = None,
) -> tuple[Values, list[Values], list[float]]:
    """Rounds: each client in turn starts from the server's values and its own, trains alone; the server averages."""
    steps, local = toy.trial.steps, toy.trial.local_steps
    at_home, losses = [Adam(toy.trial.weight_decay) for _ in toy.clients], [0.0] * steps
    for number, start in enumerate(range(0, steps, local)):
        returned = []
        for k in toy.clients:
            fresh, values = Adam(toy.trial.weight_decay), server | home[k]
            for step in range(start, min(start + local, steps)):
                leaves = leaves_of(values)
                loss = toy.loss(k, step, {layer: weight(leaves, layer, k) for layer in toy.layers})
                losses[step] += float(loss.detach()) / len(toy.clients)
                gradients = torch.autograd.grad(loss, list(leaves.values()))
                for (name, value), gradient in zip(list(values.items()), gradients, strict=True):
                    if moves(name[0], number):
                        adam = fresh if name in server else at_home[k]
                        values[name] = adam.move(name, value, gradient, rate_at(rates[name[0]], step, toy.trial))
            home[k] = {name: values[name] for name in home[k]}
            returned.append({name: values[name] for name in server})
        server = {name: sum(copy[name] for copy in returned) / len(returned) for name in server}
        if at_server is not None:
            at_server(server, returned)
    return server, home, losses


def finish(toy: Toy, held: list[Values], weight: Weight, losses: list[float]) -> Trained:
    weights = [{layer: weight(held[k], layer, k) for layer in toy.layers} for k in toy.clients]
    return Trained(held, weights, losses)


def one(toy: Toy, start: Values, *parts: str) -> Values:
    """One matrix for all, as the first client has it at the start."""
    return {(part, layer): start[part, layer, 0] for part in parts for layer in toy.layers}


def each(toy: Toy, start: Values, *parts: str) -> list[Values]:
    """A matrix for each client."""
    return [{(part, layer): start[part, layer, k] for part in parts for layer in toy.layers} for k in toy.clients]


def named(own: list[Values]) -> Values:
    """The clients' matrices in one dictionary, by (part, layer, client)."""
    return {(*name, k): value for k, values in enumerate(own) for name, value in values.items()}


def unnamed(values: Values, clients: range) -> list[Values]:
    """What each client holds: what is for all, and its own."""
    return [{name[:2]: value for name, value in values.items() if len(name) == 2 or name[2] == k} for k in clients]


def rates_of(toy: Toy, cores: bool) -> dict[str, float]:
    lr = toy.trial.lr
    core = toy.trial.core_lr if cores and toy.trial.core_lr is not None else lr
    return {"A": lr, "B": lr, "A'": lr, "B'": lr, "core": core}


# ---- centralised ----------------------------------------------------------------------------------------------------


def base(toy: Toy, start: Values) -> Trained:
    return Trained([{} for _ in toy.clients], [toy.W0 for _ in toy.clients], [])


def local(toy: Toy, start: Values) -> Trained:
    """K runs that know nothing of each other: W_k = W0 + s B_k A_k."""
    held, losses = [], [0.0] * toy.trial.steps
    for k in toy.clients:
        values, adam = each(toy, start, "A", "B")[k], Adam(toy.trial.weight_decay)
        for step in range(toy.trial.steps):
            leaves = leaves_of(values)
            W = {layer: toy.W0[layer] + toy.s * leaves["B", layer] @ leaves["A", layer] for layer in toy.layers}
            loss = toy.loss(k, step, W)
            losses[step] += float(loss.detach()) / len(toy.clients)
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                values[name] = adam.move(name, values[name], gradient, rate_at(toy.trial.lr, step, toy.trial))
        held.append(values)
    return finish(toy, held, lambda v, n, k: toy.W0[n] + toy.s * v["B", n] @ v["A", n], losses)


def pooled(toy: Toy, start: Values) -> Trained:
    def W(v: Values, n: str, k: int) -> Tensor:
        return toy.W0[n] + toy.s * v["B", n] @ v["A", n]

    values, losses = centralised(toy, one(toy, start, "A", "B"), W, rates_of(toy, False))
    return finish(toy, [values for _ in toy.clients], W, losses)


def _shared_and_cores(
    toy: Toy, start: Values, cores: bool, moves: Moves = always, after=None, diagonal: bool = False
) -> Trained:
    """W_k = W0 + s B Λ_k A, with A and B for all."""

    def W(v: Values, n: str, k: int) -> Tensor:
        core = v["core", n, k] if ("core", n, k) in v else v["core", n]
        return toy.W0[n] + toy.s * v["B", n] @ (torch.diag(core) if diagonal else core) @ v["A", n]

    values = one(toy, start, "A", "B") | named(each(toy, start, "core"))
    values, losses = centralised(toy, values, W, rates_of(toy, cores), moves, after)
    return finish(toy, unnamed(values, toy.clients), W, losses)


def colora(toy: Toy, start: Values) -> Trained:
    return _shared_and_cores(toy, start, cores=True)


def colora_diagonal(toy: Toy, start: Values) -> Trained:
    return _shared_and_cores(toy, start, cores=True, diagonal=True)


def mtl_lora(toy: Toy, start: Values) -> Trained:
    return _shared_and_cores(toy, start, cores=False)


def colora_alternating(toy: Toy, start: Values) -> Trained:
    turn = int(toy.trial.options.get("turn", 5))

    def moves(part: str, step: int) -> bool:
        return part in ("A", "B") if (step // turn) % 2 == 0 else part == "core"

    return _shared_and_cores(toy, start, cores=True, moves=moves)


def colora_mean(toy: Toy, start: Values) -> Trained:
    pull = toy.trial.options.get("pull", 1.0)

    def after(values: Values, step: int) -> None:
        strength = rate_at(toy.trial.core_lr or toy.trial.lr, step, toy.trial) * pull
        for n in toy.layers:
            mean = sum(values["core", n, k] for k in toy.clients) / len(toy.clients)
            for k in toy.clients:
                values["core", n, k] = values["core", n, k] - min(strength, 1.0) * (values["core", n, k] - mean)

    return _shared_and_cores(toy, start, cores=True, after=after)


def colora_residual(toy: Toy, start: Values) -> Trained:
    def W(v: Values, n: str, k: int) -> Tensor:
        core, B, A = (v[part, n, k] if (part, n, k) in v else v[part, n] for part in ("core", "B'", "A'"))
        return toy.W0[n] + toy.s * (v["B", n] @ core @ v["A", n] + B @ A)

    values = one(toy, start, "A", "B") | named(each(toy, start, "core", "A'", "B'"))
    values, losses = centralised(toy, values, W, rates_of(toy, True))
    return finish(toy, unnamed(values, toy.clients), W, losses)


def lora_xs(toy: Toy, start: Values) -> Trained:
    """A and B are the singular directions of W0, of which the signs are open: taken as they are, and tested apart."""
    A, B = one(toy, start, "A"), one(toy, start, "B")

    def W(v: Values, n: str, k: int) -> Tensor:
        core = v["core", n, k] if ("core", n, k) in v else v["core", n]
        return toy.W0[n] + toy.s * B["B", n] @ core @ A["A", n]

    values, losses = centralised(toy, named(each(toy, start, "core")), W, rates_of(toy, True))
    return finish(toy, [A | B | held for held in unnamed(values, toy.clients)], W, losses)


def post_hoc(toy: Toy, start: Values) -> Trained:
    """Local LoRAs, whose dense updates then get shared orthonormal factors by alternating least squares."""
    alone = local(toy, start)
    weights: list[dict[str, Tensor]] = [{} for _ in toy.clients]
    for n in toy.layers:
        D = [alone.held[k]["B", n] @ alone.held[k]["A", n] for k in toy.clients]
        V = torch.linalg.svd(torch.cat(D, dim=0)).Vh[:RANK].T
        before = -1.0
        for _ in range(20):
            U = torch.linalg.svd(torch.cat([d @ V for d in D], dim=1)).U[:, :RANK]
            V = torch.linalg.svd(torch.cat([d.T @ U for d in D], dim=1)).U[:, :RANK]
            energy = float(sum((U.T @ d @ V).square().sum() for d in D))
            if energy - before <= 1e-9 * energy:
                break
            before = energy
        for k, d in enumerate(D):
            weights[k][n] = toy.W0[n] + toy.s * U @ (U.T @ d @ V) @ V.T
    return Trained([], weights, alone.losses)


# ---- federated ------------------------------------------------------------------------------------------------------


def _federated(
    toy: Toy,
    start: Values,
    server: tuple[str, ...],
    home: tuple[str, ...],
    weight: Weight,
    cores: bool = False,
    moves: Moves = always,
    frozen: Values | None = None,
) -> Trained:
    shared, own, losses = federated(
        toy, one(toy, start, *server), each(toy, start, *home), weight, rates_of(toy, cores), moves
    )
    return finish(toy, [shared | own[k] | (frozen or {}) for k in toy.clients], weight, losses)


def _of_two(toy: Toy) -> Weight:
    return lambda v, n, k: toy.W0[n] + toy.s * v["B", n] @ v["A", n]


def _of_three(toy: Toy) -> Weight:
    return lambda v, n, k: toy.W0[n] + toy.s * v["B", n] @ v["core", n] @ v["A", n]


def fedit(toy: Toy, start: Values) -> Trained:
    return _federated(toy, start, ("A", "B"), (), _of_two(toy))


def ffa_lora(toy: Toy, start: Values) -> Trained:
    A0 = one(toy, start, "A")
    return _federated(toy, start, ("B",), (), lambda v, n, k: toy.W0[n] + toy.s * v["B", n] @ A0["A", n], frozen=A0)


def fedsa_lora(toy: Toy, start: Values) -> Trained:
    return _federated(toy, start, ("A",), ("B",), _of_two(toy))


def fed_alora(toy: Toy, start: Values) -> Trained:
    return _federated(toy, start, ("B",), ("A",), _of_two(toy))


def b_first(part: str, round_number: int) -> bool:
    """B in rounds 0, 2, ..., A in rounds 1, 3, ..."""
    return {"A": round_number % 2 == 1, "B": round_number % 2 == 0}.get(part, True)


def rolora(toy: Toy, start: Values) -> Trained:
    return _federated(toy, start, ("A", "B"), (), _of_two(toy), moves=b_first)


def fed_colora(toy: Toy, start: Values) -> Trained:
    return _federated(toy, start, ("A", "B"), ("core",), _of_three(toy), cores=True)


def fed_colora_alternating(toy: Toy, start: Values) -> Trained:
    return _federated(toy, start, ("A", "B"), ("core",), _of_three(toy), cores=True, moves=b_first)


def fedex_lora(toy: Toy, start: Values) -> Trained:
    """As FedIT, and after each round W0 ← W0 + s (mean_k B_k A_k − mean B mean A): the clients' mean weight is kept."""
    W0 = dict(toy.W0)

    def W(v: Values, n: str, k: int) -> Tensor:
        return W0[n] + toy.s * v["B", n] @ v["A", n]

    def fold(server: Values, returned: list[Values]) -> None:
        for n in toy.layers:
            mean = sum(W0[n] + toy.s * copy["B", n] @ copy["A", n] for copy in returned) / len(returned)
            W0[n] = mean - toy.s * server["B", n] @ server["A", n]

    server, _, losses = federated(
        toy, one(toy, start, "A", "B"), each(toy, start), W, rates_of(toy, False), at_server=fold
    )
    done = finish(toy, [server for _ in toy.clients], W, losses)
    done.folded = {n: W0[n] - toy.W0[n] for n in toy.layers}
    return done


def fed_sb(toy: Toy, start: Values) -> Trained:
    """From its own start: the exact SVD of the first client's first gradient. Only the weights can be compared."""
    leaves = {n: W.detach().clone().requires_grad_() for n, W in toy.W0.items()}
    gradients = torch.autograd.grad(toy.loss(0, 0, leaves), list(leaves.values()))
    A, B = {}, {}
    for n, gradient in zip(leaves, gradients, strict=True):
        U, _, Vh = torch.linalg.svd(gradient)
        A["A", n], B["B", n] = Vh[:RANK], U[:, :RANK]

    def W(v: Values, n: str, k: int) -> Tensor:
        return toy.W0[n] + toy.s * B["B", n] @ v["core", n] @ A["A", n]

    zero = {("core", n): torch.zeros(RANK, RANK, dtype=torch.float64) for n in toy.layers}
    server, _, losses = federated(toy, zero, each(toy, start), W, rates_of(toy, True))
    done = finish(toy, [server for _ in toy.clients], W, losses)
    done.held = []
    return done
