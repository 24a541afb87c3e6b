"""What a step of `TaskAdamW` costs, counted in elements written."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from colora.errors import ConfigError
from colora.training.loop.optimizer import TaskAdamW

READS = ("view", "any", "nonzero", "detach", "select", "unsqueeze", "squeeze", "slice", "alias", "reshape")


class Written(TorchDispatchMode):
    """Records (operation, number of elements written) but for views and the scan of the gradients for zeros."""

    def __init__(self):
        super().__init__()
        self.log = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "index_copy_":
            self.log.append((name, args[3].numel()))  # rows, not the tensor they are written into
        elif not func.is_view and name not in READS:
            for output in result if isinstance(result, list | tuple) else [result]:
                if isinstance(output, torch.Tensor) and output.dtype != torch.bool:
                    self.log.append((name, output.numel()))
        return result


def written_in_a_step(optimizer, cores, present):
    for core in cores:
        core.grad = torch.zeros_like(core)
        core.grad[present] = 1.0
    optimizer.step()  # the first makes the state
    with Written() as mode:
        optimizer.step()
    return mode.log


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_what_a_step_writes_depends_on_the_tasks_present_and_not_on_all_tasks(kind):
    logs = []
    for tasks in (8, 4096):
        cores = [nn.Parameter(torch.randn(tasks, 4, 4)) for _ in range(2)]
        optimizer = TaskAdamW([{"params": cores, "role": "core"}]) if kind == "ours" else torch.optim.AdamW(cores)
        logs.append(written_in_a_step(optimizer, cores, [1, 4, 6]))
    few, many = (sum(count for _, count in log) for log in logs)
    if kind == "ours":
        assert logs[0] == logs[1]
        assert {("index_copy_", 3 * 16), ("index_copy_", 3)} <= set(logs[0])
        assert few < 3000
    else:
        assert many > 100 * few  # so this test can tell


def test_an_expected_step_is_the_same_step():
    """Told which tasks may be present, the optimiser does the same; a task expected but without gradient stays."""
    results = []
    for tasks in (None, torch.tensor([1, 3, 4])):
        torch.manual_seed(0)
        core = torch.nn.Parameter(torch.randn(6, 2, 2))
        before = core.detach().clone()
        optimizer = TaskAdamW([{"params": [core], "role": "core", "lr": 0.1, "weight_decay": 0.1}])
        for _ in range(3):
            core.grad = torch.zeros_like(core)
            core.grad[[1, 4]] = torch.randn(2, 2, 2)
            if tasks is not None:
                optimizer.expect(tasks)
            optimizer.step()
        assert torch.equal(core.detach()[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
        results.append((core.detach(), optimizer.state[core]["step"]))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].tolist() == results[1][1].tolist() == [0, 3, 0, 0, 3, 0]


def test_a_step_of_stopped_tasks_alone_moves_nothing():
    """Neither weight decay nor the momentum of the shared factors acts in a step that expects no task."""
    shared, core = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4, 2, 2))
    groups = [{"params": [shared]}, {"params": [core], "role": "core"}]
    optimizer = TaskAdamW(groups, lr=0.1, weight_decay=0.1)
    shared.grad, core.grad = torch.ones(3), torch.ones(4, 2, 2)
    optimizer.step()
    before = shared.detach().clone(), core.detach().clone()
    shared.grad, core.grad = torch.zeros(3), torch.zeros(4, 2, 2)
    optimizer.expect(torch.tensor([], dtype=torch.long))
    optimizer.step()
    assert torch.equal(shared, before[0])
    assert torch.equal(core, before[1])
    optimizer.step()  # the next one is a step again
    assert not torch.equal(shared, before[0])


def test_a_state_of_another_number_of_tasks_is_refused():
    def make(count):
        core = torch.nn.Parameter(torch.ones(count, 2, 2))
        core.grad = torch.ones_like(core)
        optimizer = TaskAdamW([{"params": [core], "role": "core"}])
        optimizer.step()
        return optimizer

    with pytest.raises(ConfigError, match="expected the state of 5 tasks, found that of 4"):
        make(5).load_state_dict(make(4).state_dict())
