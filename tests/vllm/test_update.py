"""The update of a mixed batch against the weights of each task, dense and in float64."""

from functools import partial

import pytest
import torch

from colora.vllm.update import BankUpdate, Cores, Part

RANK, INPUTS, LAYERS = 3, 7, 4
CPU = torch.device("cpu")


@pytest.fixture
def cores():
    torch.manual_seed(0)
    made = Cores(5, LAYERS, RANK, 16, torch.float64, CPU)
    for slot in range(1, 6):
        made.fill(slot, torch.randn(LAYERS, RANK, RANK, dtype=torch.float64))
    return made


def parts(*places):
    return [
        Part(
            torch.randn(RANK, INPUTS, dtype=torch.float64),
            torch.randn(size, RANK, dtype=torch.float64),
            start,
        )
        for start, size in places
    ]


def linear(weight, dtype=torch.float64):
    made = torch.nn.Linear(*reversed(weight.shape), bias=False, dtype=dtype)
    made.weight.data = weight.to(dtype)
    return made.requires_grad_(False)


@pytest.mark.parametrize("places", [[(0, 6)], [(0, 3), (3, 2), (5, 1)], [(4, 2)]], ids=["one", "packed", "some rows"])
@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=["rows", "batch"])
def test_each_row_has_the_update_of_its_task(cores, places, shape):
    made, first = parts(*places), 1
    update = BankUpdate(made, first, 6, cores, linear)
    slots = torch.tensor([0, 2, 5, 2, 0, 1])
    cores.set_rows(slots)
    x = torch.randn(*shape, INPUTS, dtype=torch.float64)
    before = torch.randn(*shape, 6, dtype=torch.float64)
    after = update.add(x, before.clone())
    for row, slot in enumerate(slots.tolist()):
        expected = before.view(-1, 6)[row].clone()
        for number, part in enumerate(made):
            weight = part.B @ cores.stacked[slot, first + number] @ part.A
            expected[part.start : part.start + len(part.B)] += weight @ x.view(-1, INPUTS)[row]
        torch.testing.assert_close(after.view(-1, 6)[row], expected)
        if slot == 0:
            assert torch.equal(after.view(-1, 6)[row], before.view(-1, 6)[row])


def test_rows_after_those_of_the_step_have_no_adapter(cores):
    cores.set_rows(torch.tensor([1, 2, 3, 4]))
    cores.set_rows(torch.tensor([5]))
    assert cores.slot_of.tolist() == [5] + [0] * 15
    update = BankUpdate(parts((0, 6)), 0, 6, cores, linear)
    padded = update.add(torch.randn(4, INPUTS, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64))
    assert padded[0].abs().sum() > 0
    assert not padded[1:].any()


def test_a_step_without_adapters_leaves_the_output_alone(cores):
    cores.set_rows(torch.tensor([0, 0]))
    assert not cores.active
    output = torch.ones(2, 6, dtype=torch.float64)
    assert BankUpdate(parts((0, 6)), 0, 6, cores, linear).add(torch.full((2, INPUTS), torch.nan), output) is output
    assert torch.equal(output, torch.ones_like(output))


def test_slot_zero_stays_zero(cores):
    with pytest.raises(ValueError, match="slot 0"):
        cores.fill(0, torch.ones(LAYERS, RANK, RANK))
    cores.fill(3, None)
    assert not cores.stacked[3].any()
    assert not cores.stacked[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_is_the_same(dtype):
    """Whatever the number of rows, with the cores and slots of the step, and with other factors later."""
    torch.manual_seed(0)
    cores = Cores(5, LAYERS, RANK, 16, dtype, CPU)
    for slot in range(1, 6):
        cores.fill(slot, torch.randn(LAYERS, RANK, RANK))
    update = BankUpdate(parts((0, 3), (3, 2), (6, 1)), 0, 7, cores, partial(linear, dtype=dtype))

    def layer(x, weight):
        return update.add(x, torch.nn.functional.linear(x, weight))

    compiled = torch.compile(layer, dynamic=True, fullgraph=True)
    weight = torch.randn(7, INPUTS).to(dtype)
    for rows in (6, 9, 2):
        update.set_factors(parts((0, 3), (3, 2), (6, 1)))
        cores.set_rows(torch.randint(0, 6, (rows,)))
        x = torch.randn(rows, INPUTS).to(dtype)
        rounding = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(compiled(x, weight), layer(x, weight), **rounding)
        assert not torch.equal(layer(x, weight), torch.nn.functional.linear(x, weight))
