"""In which numbers a base is loaded where nobody says; accelerators are stood in for, none is needed."""

import pytest
import torch

from colora.common.device import base_dtype_on, computes_bfloat16


def stand_in(monkeypatch, kind, supported=True):
    """Let torch say that there is an accelerator of this kind; what CUDA supports includes what it emulates."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: kind and torch.device(kind))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )


@pytest.mark.parametrize(
    ("kind", "supported", "expected"),
    [(None, True, False), ("cuda", True, True), ("cuda", False, False), ("mps", True, False)],
)
def test_computes_bfloat16_asks_the_accelerator_and_takes_no_emulation(monkeypatch, kind, supported, expected):
    stand_in(monkeypatch, kind, supported)
    assert computes_bfloat16() is expected


def test_computes_bfloat16_of_other_accelerators_is_what_transformers_says(monkeypatch):
    stand_in(monkeypatch, "xpu")
    for answer in (True, False):
        monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda answer=answer: answer)
        assert computes_bfloat16() is answer


def test_base_dtype_on_an_accelerator_is_bfloat16_where_it_computes_in_it(monkeypatch):
    stand_in(monkeypatch, "cuda")
    assert base_dtype_on("cuda:1") == base_dtype_on(torch.device("cuda")) == torch.bfloat16
    assert base_dtype_on(None) == base_dtype_on("cpu") == torch.float32
    stand_in(monkeypatch, "cuda", supported=False)
    assert base_dtype_on("cuda") == torch.float32
