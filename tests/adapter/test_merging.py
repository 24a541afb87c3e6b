"""A model without its bank: disabled, merged for one task, unmerged, unloaded."""

import pytest
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification

from colora.errors import ConfigError, TaskIdError
from tests.helpers.dense_oracle import FAMILIES, distance, make_bank, make_inputs
from tests.helpers.odd_models import BERT, seeded
from tests.helpers.tiny import tiny_llama

IDS = [2, 0, 1, 2]


def logits(model, task_ids=None, family="llama", **extra):
    inputs = make_inputs(family)
    with torch.no_grad():
        return model(**inputs, **({} if task_ids is None else {"task_ids": task_ids}), **extra).logits


def double(family="llama"):
    return FAMILIES[family][0](dtype=torch.float64)


def test_disable_adapter_gives_the_base_model_with_or_without_ids():
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    plain, own = logits(tiny_llama()), logits(model, IDS)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
        assert torch.equal(logits(model, IDS), plain)
    assert torch.equal(logits(model, IDS), own)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_and_unload_equals_the_bank_for_this_task(family, safe_merge):
    model = make_bank(double(family), task_type=FAMILIES[family][1])
    expected = logits(model, [1] * 4, family)
    merged = model.merge_and_unload(task="bo", safe_merge=safe_merge)
    assert type(merged) is type(double(family))
    assert merged.state_dict().keys() == double(family).state_dict().keys()
    assert distance(logits(merged, family=family), expected) < 1e-10
    assert distance(expected, logits(double(family), family=family)) > 1e-3


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter"])
def test_merging_several_tasks_asks_which_and_changes_nothing(method):
    model = make_bank(tiny_llama())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TaskIdError, match="merge which task"):
        getattr(model, method)()
    with pytest.raises(TaskIdError, match="unknown task 'zed'"):
        model.merge_and_unload(task="zed")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(getattr(module, "merged", False) for module in model.modules())


def test_merge_adapter_serves_one_task_and_unmerge_gives_the_others_back():
    model = make_bank(double())
    mixed = logits(model, IDS)
    model.set_task("bo")
    own = logits(model)
    model.merge_adapter()
    assert distance(logits(model), own) < 1e-10
    model.set_task("cy")
    model.unmerge_adapter()  # takes off "bo", the task that was merged
    assert distance(logits(model, IDS), mixed) < 1e-10
    with model.disable_adapter():
        assert distance(logits(model), logits(double())) < 1e-10


def test_disabling_a_merged_bank_gives_the_base_back():
    model = make_bank(double())
    model.set_task("bo")
    model.merge_adapter()
    with model.disable_adapter():
        assert distance(logits(model), logits(double())) < 1e-10


def test_a_merged_bank_refuses_other_tasks():
    """Its weights are those of one task: ids of another would be ignored in silence."""
    model = make_bank(tiny_llama())
    model.set_task("bo")
    model.merge_adapter()
    with pytest.raises(TaskIdError, match="'bo' is merged into the base weights"):
        logits(model, IDS)
    model.set_task("cy")
    with pytest.raises(TaskIdError, match="'bo' is merged into the base weights"):
        logits(model)
    model.set_task(None)
    assert torch.equal(logits(model), logits(model, [1] * 4))


@pytest.mark.parametrize("change", ["remove_task", "set_core"])
def test_cores_of_a_merged_bank_cannot_change(change):
    """Unmerging would take another update off than was added."""
    model = make_bank(double())
    model.set_task("bo")
    model.merge_adapter()
    arguments = {"remove_task": ("ada",), "set_core": ("bo", model.core("ada"))}[change]
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        getattr(model, change)(*arguments)
    model.add_tasks(["dee"])
    model.unmerge_adapter()
    with model.disable_adapter():
        assert distance(logits(model), logits(double())) < 1e-10


def test_safe_merge_refuses_what_is_not_finite():
    model = make_bank(tiny_llama())
    model.set_core("bo", model.core("bo"))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "colora_B" in name).fill_(float("inf"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.merge_and_unload(task="bo", safe_merge=True)


def test_unload_gives_the_base_back_which_can_be_wrapped_again():
    model = make_bank(tiny_llama())
    base = model.unload()
    assert torch.equal(logits(base), logits(tiny_llama()))
    assert not base._forward_pre_hooks
    again = make_bank(base, tasks=["x", "y"], seed=5)
    expected = make_bank(tiny_llama(), tasks=["x", "y"], seed=5)
    assert torch.equal(logits(again, [1, 0, 1, 1]), logits(expected, [1, 0, 1, 1]))


def test_a_head_of_several_layers_is_merged_with_its_trained_values():
    config = ElectraConfig(**BERT, embedding_size=16, num_labels=3)
    model = make_bank(seeded(ElectraForSequenceClassification, config), task_type="SEQ_CLS", r=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier.modules_to_save" in name:
                parameter.add_(0.1)
    x = torch.randint(6, 200, (2, 5), generator=torch.Generator().manual_seed(0))
    expected = model.eval()(input_ids=x, task_ids=["bo", "bo"]).logits
    assert torch.allclose(model.merge_and_unload(task="bo")(input_ids=x).logits, expected, atol=1e-6)
