"""The algebra against its definition, in float64."""

import subprocess
import sys

import jaxtyping
import pytest
import torch

from colora.algebra import canonical_gauge, compose, core_gram

torch.manual_seed(0)
A, B, CORES = (torch.randn(*shape, dtype=torch.float64) for shape in [(3, 7), (5, 3), (4, 3, 3)])


def test_compose_is_the_product():
    assert torch.allclose(compose(A, B, CORES[1], 0.5), 0.5 * B @ CORES[1] @ A)


def test_gauge_keeps_the_model_and_makes_the_factors_orthonormal():
    a, b, cores = canonical_gauge(A, B, CORES)
    assert torch.allclose(compose(a, b, cores), compose(A, B, CORES), atol=1e-12)
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(a @ a.mT, eye)
    assert torch.allclose(b.mT @ b, eye)


def test_gauge_is_unique_up_to_rotations_of_the_factors():
    """Scaling and shearing by triangular matrices of positive diagonal does not change the canonical cores."""
    p = torch.randn(3, 3, dtype=torch.float64).triu(1) + torch.diag(torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64))
    _, _, one = canonical_gauge(A, B, CORES)
    _, _, two = canonical_gauge(A, B @ p, torch.linalg.inv(p) @ CORES)
    assert torch.allclose(one, two, atol=1e-10)


def test_gram_equals_inner_products_of_full_updates():
    full = compose(A, B, CORES, 2.0).flatten(1)
    assert torch.allclose(core_gram(canonical_gauge(A, B, CORES)[2], 2.0), full @ full.mT)


def test_shapes_that_do_not_fit_are_refused_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError, match="core"):
        compose(A, B, CORES[:, :2])
    with pytest.raises(jaxtyping.TypeCheckError, match="canonical"):
        core_gram(CORES[0])
    with pytest.raises(jaxtyping.TypeCheckError, match="A"):
        canonical_gauge(A.long(), B, CORES)


def test_nothing_is_checked_outside_of_tests():
    """Integers are no `Float`: only the tests mind."""
    script = (
        "import torch; from colora.algebra import compose; "
        "A, B, core = (torch.ones(shape, dtype=torch.long) for shape in ((3, 7), (5, 3), (3, 3))); "
        "print(tuple(compose(A, B, core, 1).shape))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed == "(5, 7)\n"
