"""Differential privacy of the shared factors: clients clip their updates, the server adds Gaussian noise to the sum.

Protected are the factors that leave the server, at the level of a client: with or without one client they are about
equally likely, by (epsilon, delta). Flower's accountant computes epsilon. Not protected: the server itself receives
each client's clipped update in plain form; losses and numbers of examples, if they are shared, are outside the
accounting, and so is who takes part. The core needs no noise: it never leaves the client.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod

from colora.common.files import write_json
from colora.errors import CheckpointError, ConfigError
from colora.federated.combine import combine
from colora.federated.state import Tensors
from colora.training.config import FederationSpec

__all__ = ["PrivateMean"]

POPULATION = 10**6  # only reported: the accounting does not use that clients are drawn at random


class PrivateMean:
    """The mean of clipped updates with noise of standard deviation noise · clip on their sum.

    Args:
        spec: clip, noise and delta of the federation.
        ledger: file of the privacy spent, kept over restarts; None: it is not kept.

    Raises:
        ConfigError: if dp-accounting, which Flower's accountant uses, is missing.
        CheckpointError: if the ledger is damaged or of other settings: the privacy spent is then unknown.
    """

    def __init__(self, spec: FederationSpec, ledger: Path | None = None) -> None:
        if spec.clip is None:
            raise ConfigError("differential privacy needs federation.clip")
        self.clip, self.noise, self.ledger = spec.clip, spec.noise, ledger
        config = PrivacyConfig(
            spec.delta, POPULATION, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
        )
        try:
            self._accountant = RdpAccountant(config)
        except ImportError as error:
            raise ConfigError('differential privacy needs dp-accounting: pip install "colora[privacy]"') from error
        if ledger is not None and ledger.is_file():
            try:
                self._accountant.load_state_dict(json.loads(ledger.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
                raise CheckpointError(f"{ledger}: damaged, or of other privacy settings: {error}") from error
        # From the system's entropy: whoever knows the seed could subtract the noise.
        self._generator = torch.Generator().manual_seed(secrets.randbits(63))

    @property
    def epsilon(self) -> float:
        """The privacy spent so far, at the delta of the settings."""
        return self._accountant.get_privacy_spent().epsilon

    def __call__(self, updates: Sequence[Tensors]) -> Tensors | None:
        """The noisy mean of one round; its cost is on disk before it is returned."""
        self._accountant.compose(GaussianPrivacyEvent(self.noise, len(updates), POPULATION))
        if self.ledger is not None:
            state: Any = self._accountant.state_dict()
            write_json(self.ledger, state)
        mean = combine(updates, [1.0] * len(updates))
        deviation = self.noise * self.clip / len(updates)
        return {
            name: tensor + deviation * torch.randn(tensor.shape, generator=self._generator)
            for name, tensor in mean.items()
        }
