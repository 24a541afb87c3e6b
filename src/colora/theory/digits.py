"""Real data that a dependency ships: scikit-learn's handwritten digits, one user for each pair of digits.

45 users; user (a, b) tells images of a from images of b: y = +1 for a, −1 for b, X the 8 × 8 image, and ⟨X, W_k⟩ > 0
means a. What they share is what strokes look like; what they ask is different for each.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from colora.errors import ColoraError
from colora.theory.design import Dense
from colora.theory.users import Block, Users

__all__ = ["PAIRS", "Digits", "draw_digits"]

PAIRS = tuple(combinations(range(10), 2))


@dataclass(frozen=True)
class Digits:
    """The users' samples, and what they are tested on.

    Attributes:
        users: 45 of them, with as many samples each.
        test: one block, all images of the test half for each pair, filled up with zeros.
        truth: ±1 for each, and 0 where it is filled up.
    """

    users: Users
    test: Dense
    truth: Float[Tensor, "k n"]

    def error_rates(self, W: Float[Tensor, "k d_out d_in"]) -> Float[Tensor, " k"]:
        """For each pair the share of its test images on the wrong side, (45,); exactly zero is wrong on either side."""
        wrong = (self.test.measure(W) * self.truth <= 0) & (self.truth != 0)
        return wrong.sum(1) / (self.truth != 0).sum(1)


def draw_digits(samples: int, seed: int) -> Digits:
    """Split the images in halves by digit and draw `samples` of each pair's from the first, half of each digit.

    No user's test image is among any user's samples. Pixels are centred by the mean of the first half and scaled to
    unit mean square.

    Args:
        samples: of each user; even, at least 2.
        seed: of the halves and of what is drawn.

    Raises:
        ColoraError: an odd number of samples, or more than there are; scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ColoraError(
            f'expected scikit-learn for the digits, found: {error}. Install it with: pip install "colora[regression]"'
        ) from error
    data = load_digits()
    random = np.random.default_rng([seed, 64])
    train, test = {}, {}
    for digit in range(10):
        found = random.permutation(np.flatnonzero(data.target == digit))
        train[digit], test[digit] = np.split(found, [len(found) // 2])
    most = 2 * min(map(len, train.values()))
    if samples < 2 or samples % 2 or samples > most:
        raise ColoraError(f"samples: expected an even number from 2 to {most} for a pair of digits, found {samples}")
    seen = data.images[np.concatenate(list(train.values()))]
    centre = seen.mean(0)
    images = torch.from_numpy((data.images - centre) / np.sqrt(((seen - centre) ** 2).mean()))

    half = samples // 2
    drawn = [[*random.choice(train[a], half, False), *random.choice(train[b], half, False)] for a, b in PAIRS]
    y = torch.cat([torch.ones(half), -torch.ones(half)]).double().expand(len(PAIRS), -1)
    users = Users.of([Block(Dense(images[torch.tensor(np.array(drawn))]), y, torch.arange(len(PAIRS)))])

    sizes = [len(test[a]) + len(test[b]) for a, b in PAIRS]
    shown = torch.zeros(len(PAIRS), max(sizes), *images.shape[1:], dtype=torch.float64)
    truth = torch.zeros(len(PAIRS), max(sizes), dtype=torch.float64)
    for index, (a, b) in enumerate(PAIRS):
        shown[index, : sizes[index]] = images[np.concatenate([test[a], test[b]])]
        truth[index, : sizes[index]] = torch.cat([torch.ones(len(test[a])), -torch.ones(len(test[b]))])
    return Digits(users, Dense(shown), truth)
