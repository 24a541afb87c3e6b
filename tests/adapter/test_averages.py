"""torch's averages of a model with a bank: right while the tasks stay, refused by name afterwards."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from colora.errors import ConfigError
from tests.helpers.dense_oracle import TASKS, factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_llama

CHANGES = {
    "added": lambda model: model.add_tasks(["dee"]),
    "removed": lambda model: model.remove_task("ada"),
    "replaced": lambda model: (model.remove_task("ada"), model.add_tasks(["dee"])),
    "one left": lambda model: (model.remove_task("ada"), model.remove_task("bo")),
}


def test_an_average_of_two_states_is_their_mean():
    model = make_bank(tiny_llama())
    average = AveragedModel(model)
    average.update_parameters(model)
    before = factors(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "colora_" in name:
                value.add_(1.0)
    average.update_parameters(model)
    for layer, tensors in factors(average.module).items():
        for part, value in tensors.items():
            torch.testing.assert_close(value, before[layer][part] + 0.5)
    average.eval()
    with torch.no_grad():
        assert average(**make_inputs(), task_ids=[2, 0, 1, 2]).logits.shape == (4, 6, 262)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("begun", [False, True])
def test_an_average_of_other_tasks_is_refused(change, begun):
    model = make_bank(tiny_llama())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    if begun:
        average.update_parameters(model)
    before = factors(average.module)
    CHANGES[change](model)
    with pytest.raises(ConfigError, match=f"average is of a bank with default: {', '.join(TASKS)}; the model now has"):
        average.update_parameters(model)
    after = factors(average.module)
    assert all(torch.equal(after[layer][part], value) for layer, t in before.items() for part, value in t.items())


def test_averages_of_other_models_do_what_they_did():
    model = torch.nn.Linear(2, 2)
    average = AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average.module.weight, model.weight)
