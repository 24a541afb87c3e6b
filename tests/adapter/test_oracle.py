"""Tests of the dense oracle that the other tests of the adapter compare with."""

import torch

from tests.helpers.dense_oracle import dense_logits, distance, factors, make_bank, make_inputs, row
from tests.helpers.tiny import tiny_llama


def test_the_oracle_is_the_base_model_where_cores_are_zero():
    base = tiny_llama(dtype=torch.float64)
    inputs = make_inputs()
    plain = base(**inputs).logits
    tensors = factors(make_bank(tiny_llama(dtype=torch.float64)))
    for tensor in tensors.values():
        tensor["core"] = torch.zeros_like(tensor["core"])
    assert distance(dense_logits(base, tensors, [0, 1, 2, 0], inputs), plain) < 1e-12


def test_tasks_of_the_oracle_differ_from_the_base_and_from_each_other():
    base = tiny_llama(dtype=torch.float64)
    inputs = row(make_inputs(), 0)
    tensors = factors(make_bank(tiny_llama(dtype=torch.float64)))
    logits = [base(**inputs).logits, *(dense_logits(base, tensors, [task], inputs) for task in range(3))]
    assert all(distance(logits[i], logits[j]) > 1e-2 for i in range(4) for j in range(i))
