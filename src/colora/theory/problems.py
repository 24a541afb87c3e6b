"""Problems whose truth is known: users who share subspaces, or nearly, and what they observe.

    y_i = ⟨X_i, B_k Λ_k* A_k⟩ + noise

Everything is drawn from one seed, in blocks of users, so that a problem larger than memory can be drawn anew at every
pass and is the same each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from colora.errors import ConfigError
from colora.theory.design import Dense, Design, Multivariate, RankOne
from colora.theory.factors import Factors, Truth
from colora.theory.users import Block, Users

__all__ = ["DesignName", "Problem"]

DesignName = Literal["dense", "rank-one", "multivariate"]
BLOCK = 256  # users
_SHARED, _CORES, _OWN, _SAMPLES, _NEW = range(5)  # streams of random numbers


@dataclass(frozen=True)
class Problem:
    """K users and their truth.

    Attributes:
        users: K.
        samples: of each user; "multivariate" samples are vectors, of d_out observations each.
        d_out, d_in, rank: of W_k = B Λ_k A.
        design: "dense": entries of X_i standard normal; "rank-one": X_i = u vᵀ, both standard normal; "multivariate":
            y = W_k x + noise with standard normal x.
        noise: standard deviation σ of the noise on each observation.
        spread: numbers of samples are drawn evenly from samples (1 − spread) to samples (1 + spread).
        extra: this many users, the first ones, have one sample more, so that a total can be met exactly.
        condition: ratio of each core's largest to its smallest singular value; None leaves them as drawn.
        diversity: 0: all users have the same core, 1: unrelated ones; Λ_k = √(1 − diversity²) Λ_0 + diversity Λ_k'.
        angle: degrees by which each user's own subspaces are turned away from the shared ones, each in a direction of
            its own: 0 is the model, at 90 nothing is shared.
        seed: of everything drawn.
    """

    users: int
    samples: int
    d_out: int = 20
    d_in: int = 20
    rank: int = 2
    design: DesignName = "dense"
    noise: float = 0.0
    spread: float = 0.0
    extra: int = 0
    condition: float | None = None
    diversity: float = 1.0
    angle: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"{name}: expected {f'at least {least}' if value < least else 'a finite number'}, found {value}"
            for name, least in (("users", 1), ("samples", 1), ("rank", 1), ("noise", 0), ("seed", 0))
            if not least <= (value := getattr(self, name)) < inf
        ]
        small = min(self.d_out, self.d_in)
        if not self.rank <= small or (self.angle and 2 * self.rank > small):
            faults.append(
                f"rank: expected at most {small // 2 if self.angle else small} with d_out {self.d_out}, d_in "
                f"{self.d_in} and angle {self.angle:g}, found {self.rank}"
            )
        if self.design not in ("dense", "rank-one", "multivariate"):
            faults.append(f"design: expected dense, rank-one or multivariate, found {self.design!r}")
        for name, most in (("extra", self.users), ("spread", 1.0), ("diversity", 1.0), ("angle", 90.0)):
            if not 0 <= getattr(self, name) <= most:
                faults.append(f"{name}: expected 0 to {most:g}, found {getattr(self, name)}")
        if self.condition is not None and not 1 <= self.condition < inf:
            faults.append(f"condition: expected at least 1, found {self.condition}")
        if faults:
            raise ConfigError("a problem that cannot be made", faults)

    def truth(self) -> Truth:
        """A*, B* orthonormal, the cores, and each user's own factors if `angle` is not 0."""
        random = self._random(_SHARED)
        A = _orthonormal(random, self.d_in, self.rank).mT
        B = _orthonormal(random, self.d_out, self.rank)
        shared = Factors(A, B, self._cores(self.users, _CORES))
        if not self.angle:
            return Truth(shared)
        own = self._random(_OWN)
        A_own = torch.stack([_turned(A.mT, self.angle, own).mT for _ in range(self.users)])
        B_own = torch.stack([_turned(B, self.angle, own) for _ in range(self.users)])
        return Truth(shared, A_own, B_own)

    def observed(self, stream: bool = False) -> Users:
        """The samples of all users; with `stream` drawn anew at each pass, and never all in memory."""
        drawn = _Drawn(self, self.truth(), self._counts())
        blocks = drawn if stream else list(drawn)
        observations = drawn.counts * (self.d_out if self.design == "multivariate" else 1)
        return Users(blocks, observations, self.d_out, self.d_in)

    def new_user(self, samples: int, number: int = 0) -> tuple[Users, Truth]:
        """A user who is not among the K, with the same subspaces (or turned as far) and a core of their own."""
        stream = _NEW + number
        shared = self.truth().shared
        cores = self._cores(self.users + number + 1, _CORES)[-1:]
        own = self._random(_OWN, stream)
        if self.angle:
            A, B = _turned(shared.A.mT, self.angle, own).mT, _turned(shared.B, self.angle, own)
        else:
            A, B = shared.A, shared.B
        truth = Truth(Factors(A, B, cores))
        design = self._design(1, samples, self._random(_SAMPLES, stream))
        y = design.measure(truth.matrices())
        y = y + self.noise * torch.from_numpy(own.standard_normal(y.shape))
        return Users.of([Block(design, y, torch.zeros(1, dtype=torch.long))]), truth

    def _counts(self) -> Int[Tensor, " K"]:
        counts = torch.full((self.users,), self.samples, dtype=torch.long)
        counts[: self.extra] += 1
        if self.spread:
            part = torch.from_numpy(self._random(_SAMPLES).uniform(1 - self.spread, 1 + self.spread, self.users))
            counts = (counts * part).round().long().clamp_min(1)
        return counts

    def _cores(self, number: int, stream: int) -> Float[Tensor, "number r r"]:
        drawn = torch.from_numpy(self._random(stream).standard_normal((number + 1, self.rank, self.rank)))
        cores = (1 - self.diversity**2) ** 0.5 * drawn[0] + self.diversity * drawn[1:]
        if self.condition is not None:
            U, _, Vt = torch.linalg.svd(cores)
            values = torch.logspace(0, -1, self.rank, base=self.condition, dtype=torch.float64)
            cores = U * values @ Vt
        return cores

    def _design(self, users: int, samples: int, random: np.random.Generator) -> Design:
        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(random.standard_normal((users, samples, *shape)))

        if self.design == "dense":
            return Dense(normal(self.d_out, self.d_in))
        if self.design == "rank-one":
            return RankOne(normal(self.d_out), normal(self.d_in))
        return Multivariate(normal(self.d_in), self.d_out)

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])


@dataclass(frozen=True)
class _Drawn:
    """Blocks that are drawn when they are asked for."""

    problem: Problem
    truth: Truth
    counts: Int[Tensor, " K"]

    def __iter__(self) -> Iterator[Block]:
        for first in range(0, self.problem.users, BLOCK):
            yield self._block(torch.arange(first, min(first + BLOCK, self.problem.users)))

    def _block(self, indices: Int[Tensor, " k"]) -> Block:
        random = self.problem._random(_SAMPLES, int(indices[0]), _SAMPLES)
        most = int(self.counts[indices].max())
        design = self.problem._design(len(indices), most, random)
        real = (torch.arange(most) < self.counts[indices].unsqueeze(1)).double()
        design = design.kept(real)
        y = design.measure(self.truth.matrices(indices))
        noise = self.problem.noise * torch.from_numpy(random.standard_normal(y.shape))
        return Block(design, y + noise * real.repeat_interleave(design.per_sample, dim=1), indices)


def _orthonormal(random: np.random.Generator, size: int, rank: int) -> Float[Tensor, "size rank"]:
    return torch.linalg.qr(torch.from_numpy(random.standard_normal((size, rank)))).Q


def _turned(Q: Float[Tensor, "d r"], angle: float, random: np.random.Generator) -> Float[Tensor, "d r"]:
    """Orthonormal columns at `angle` degrees from those of Q, each towards a random direction outside their span."""
    drawn = torch.from_numpy(random.standard_normal(Q.shape))
    away = torch.linalg.qr(drawn - Q @ (Q.mT @ drawn)).Q
    turn = np.deg2rad(angle)
    return float(np.cos(turn)) * Q + float(np.sin(turn)) * away
