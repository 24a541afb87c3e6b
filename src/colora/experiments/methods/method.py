"""What a method is: one low-rank layer under constraints, and a rule for what moves when.

Every method compared with adds to a frozen weight, for task k of K, one or two terms

    W_k = W0 + Σ s · B Λ A        A: r × d_in, B: d_out × r, Λ: r × r

in which each of A, Λ, B is one for all tasks or a copy for each, trained or frozen, and in federated methods perhaps
replaced by the clients' mean after each round. A method is a table of these choices, so that all share one layer, one
training loop, one optimiser and one order of examples, and differ in nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from colora.errors import ConfigError
from colora.experiments.methods.schedule import Schedule, all_move

__all__ = ["FROZEN", "MEAN", "OWN", "SHARED", "Method", "Part", "Sizes", "Term", "rank_option"]

SHARES = ("first", "own_share", "release", "rotated")  # options that are a share of something


@dataclass(frozen=True)
class Part:
    """How one of A, B, Λ is held.

    Attributes:
        own: each task has a copy of its own; otherwise there is one for all.
        trained: whether it moves.
        averaged: the tasks' copies are replaced by their mean at the end of each round (federated methods).
    """

    own: bool = False
    trained: bool = True
    averaged: bool = False

    def __post_init__(self) -> None:
        if self.averaged and not (self.own and self.trained):
            raise ConfigError("a part that is averaged needs a trained copy for each client: expected own and trained")


SHARED = Part()
FROZEN = Part(trained=False)
OWN = Part(own=True)
MEAN = Part(own=True, averaged=True)


@dataclass(frozen=True)
class Sizes:
    """What a rank may depend on: of the adapted layers, and of the comparison.

    Attributes:
        widths: sum over layers of d_in + d_out: the parameters of a LoRA of rank 1.
        layers: how many there are.
        tasks: K.
        rank: the comparison's rank r.
        options: the trial's options.
    """

    widths: int
    layers: int
    tasks: int
    rank: int
    options: Mapping[str, float]

    @property
    def colora(self) -> int:
        """Parameters that CoLoRA trains at rank r: A, B, and K cores of r × r, in each layer."""
        return self.rank * self.widths + self.layers * self.tasks * self.rank**2


@dataclass(frozen=True)
class Term:
    """One s · B Λ A of a layer.

    Attributes:
        A, B: how the factors are held.
        core: how Λ is held; None for the identity, which is then not multiplied by.
        diagonal: Λ is diagonal.
        rank: rank of the term; by default the comparison's.
        one_core: whether Λ is one for each layer, one for all layers of a "kind" (those of one name, such as q_proj),
            or one for the whole "model".
    """

    A: Part
    B: Part
    core: Part | None = None
    diagonal: bool = False
    rank: Callable[[Sizes], int] = lambda sizes: sizes.rank
    one_core: Literal["layer", "kind", "model"] = "layer"

    def parts(self) -> dict[str, Part]:
        """The parts by name: "A", "B", and "core" unless it is the identity."""
        named = {"A": self.A, "B": self.B}
        return named if self.core is None else named | {"core": self.core}


def rank_option(name: str) -> Callable[[Sizes], int]:
    """The rank in the option of this name, the comparison's where it is 0."""
    return lambda sizes: int(sizes.options[name]) or sizes.rank


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        name: as experiments name it.
        title: as readers know it.
        sentence: what it is, in one sentence.
        reference: its source, authors and arXiv id; empty for the base model.
        terms: what is added to each weight; none for the base model as it is.
        schedule: which parts rest in which step.
        staged: training has two stages, each with its own rise and fall of the rates; the option `first` is the share
            of the steps that the first one has.
        unused: the indices of terms that the finished model does without.
        federated: clients train alone for a number of steps, then parts are averaged: a round.
        start: "kaiming": A as in LoRA, B = 0, Λ = I; "weights": A and B from the SVD of W0, Λ near 0; "gradient": A
            and B from the SVD of the first client's gradient at W0, Λ = 0.
        core_rate: cores move at the trial's `core_lr`; otherwise at its `lr`.
        folds_residual: what averaging A and B loses is added to W0 after each round.
        makes_basis: the second term's A and B become a basis of the first term's between the two stages.
        pull_to: what the option `pull` draws to where there is one: every core to the "mean" of the tasks' cores, or
            the "first" term: the second's factors, which also begin there, to those of the first.
        compresses: after training, the tasks' updates are replaced by their joint diagonalisation.
        prompt_examples: the base model gets training examples in its prompt: the "first" ones, or the "nearest" to each
            input; None: none.
        counts_answers: answers come from their shares in the task's training answers, without a model.
        options: what it takes in a trial's `options`, with defaults.
    """

    name: str
    title: str
    sentence: str
    reference: str
    terms: tuple[Term, ...]
    schedule: Schedule = all_move
    staged: bool = False
    unused: frozenset[int] = frozenset()
    federated: bool = False
    start: Literal["kaiming", "weights", "gradient"] = "kaiming"
    core_rate: bool = False
    folds_residual: bool = False
    makes_basis: bool = False
    pull_to: Literal["mean", "first"] = "mean"
    compresses: bool = False
    prompt_examples: Literal["first", "nearest"] | None = None
    counts_answers: bool = False
    options: Mapping[str, float] | None = None

    def with_defaults(self, options: Mapping[str, float]) -> dict[str, float]:
        """The options of a trial, completed.

        Raises:
            ConfigError: for one that the method does not take, or a share that is none.
        """
        known = dict(self.options or {})
        if unknown := sorted(set(options) - set(known)):
            expected = f"expected some of {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"unknown option {', '.join(map(repr, unknown))} of method {self.name!r}: {expected}")
        for name in SHARES:
            if name in options and not 0 <= options[name] <= 1:
                raise ConfigError(f"option {name!r}: expected a share between 0 and 1, found {options[name]:g}")
        return known | dict(options)
