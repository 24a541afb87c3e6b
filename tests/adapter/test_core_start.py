"""Where cores start: at the identity, or turned in some directions."""

import pytest
import torch

from colora.adapter.core_start import rotated_cores


def test_cores_that_are_not_turned_are_the_identity():
    assert torch.equal(rotated_cores(3, 4, 0.0), torch.eye(4).expand(3, 4, 4))


@pytest.mark.parametrize("rotated", [0.25, 0.5, 1.0])
def test_rotated_cores_are_orthogonal_alike_in_the_first_directions_and_different_in_the_others(rotated):
    cores = rotated_cores(5, 8, rotated, torch.Generator().manual_seed(0))
    common = 8 - round(8 * rotated)
    torch.testing.assert_close(cores @ cores.mT, torch.eye(8).expand(5, 8, 8), atol=1e-5, rtol=0)
    assert torch.equal(cores[:, :common, :common], torch.eye(common).expand(5, -1, -1))
    assert not cores[:, :common, common:].any()
    apart = (cores[:, None] - cores[None]).abs().amax((-2, -1))
    assert (apart + torch.eye(5) > 0.1).all()


def test_rotated_cores_are_drawn_evenly_and_again_by_the_same_generator():
    first, again = (rotated_cores(2000, 2, 1.0, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    # Of an even draw the mean of every entry is zero; a plain QR has a diagonal of one sign.
    assert first.mean(0).abs().max() < 0.06
