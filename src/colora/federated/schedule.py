"""What is trained in a round, for how many steps, and at which rates."""

import math

from colora.federated.local import Phase
from colora.federated.state import PARTS
from colora.training.config import FederationSpec

__all__ = ["FINAL_RATE", "round_phases", "trained_parts"]

FINAL_RATE = 0.1  # of the peak learning rates: where the cosine ends, and for the steps after the last round


def trained_parts(spec: FederationSpec, round_number: int) -> str:
    """ "A", "B" or "AB": the factors that are trained in a round, from 0.

    Examples:
        >>> [trained_parts(FederationSpec(schedule="alternating"), number) for number in range(4)]
        ['B', 'A', 'B', 'A']
    """
    return PARTS if spec.schedule == "simultaneous" else "BA"[round_number % 2]


def round_phases(spec: FederationSpec, round_number: int, parts: str, onboard_steps: int) -> list[Phase]:
    """A round's local steps; the rates fall as a cosine over all rounds, to `FINAL_RATE`."""
    cosine = math.cos(math.pi * round_number / max(1, spec.rounds - 1))
    rate = FINAL_RATE + (1 - FINAL_RATE) / 2 * (1 + cosine)
    onboarding = Phase(True, "", [rate] * onboard_steps)
    if spec.order == "together":
        return [onboarding, Phase(spec.core_steps > 0, parts, [rate] * (spec.core_steps + spec.local_steps))]
    return [onboarding, Phase(True, "", [rate] * spec.core_steps), Phase(False, parts, [rate] * spec.local_steps)]
