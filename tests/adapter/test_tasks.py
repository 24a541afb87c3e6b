"""Adding, removing, reading and writing the tasks of a bank in place."""

import unicodedata

import pytest
import torch
from peft import PeftModel, get_peft_model

from colora import CoLoRAConfig
from colora.adapter.tasklist import task_uids
from colora.errors import ConfigError, TaskIdError
from tests.helpers.dense_oracle import TASKS, distance, factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_gpt2, tiny_llama

IDS = ["cy", "ada", "bo", "cy"]


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(**make_inputs(), task_ids=ids).logits


def cores(model):
    return [value for name, value in model.named_parameters() if "colora_core" in name]


def state(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_unchanged(model, before, tasks=TASKS):
    now = state(model)
    assert model.tasks == tasks
    assert now.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in now.items())


def test_a_thousand_tasks_are_added_in_place():
    model = make_bank(tiny_llama())
    before = logits(model)
    model.add_tasks([f"user {i}" for i in range(1000)])
    assert all(core.shape == (1003, 4, 4) and core.is_contiguous() for core in cores(model))
    assert torch.equal(logits(model), before)
    assert model.tasks[-1] == "user 999"
    assert logits(model, [1002, 1000, 1001, 3]).isfinite().all()


def test_a_new_task_starts_with_the_identity():
    model = make_bank(tiny_llama())
    model.add_tasks(["dee"])
    assert all(torch.equal(core, torch.eye(4)) for core in model.core("dee").values())


def test_a_new_task_may_start_at_the_mean():
    model = make_bank(tiny_llama())
    expected = [core.detach().mean(0) for core in cores(model)]
    model.add_tasks(["dee", "eli"], init="mean")
    for name in ("dee", "eli"):
        assert all(torch.equal(core, mean) for core, mean in zip(model.core(name).values(), expected, strict=True))


def test_a_new_task_may_start_as_a_copy():
    model = make_bank(tiny_llama())
    model.add_tasks(["dee"], init="bo")
    assert torch.equal(logits(model, ["dee"] * 4), logits(model, ["bo"] * 4))
    model.set_core("dee", {name: 0 * core for name, core in model.core("dee").items()})
    assert distance(logits(model, ["dee"] * 4), logits(model, ["bo"] * 4)) > 1e-3  # a copy, not the same storage


def test_a_single_name_is_one_task():
    model = make_bank(tiny_llama())
    model.add_tasks("dee")
    assert model.tasks == [*TASKS, "dee"]


def test_removing_a_task_leaves_the_others_to_the_last_bit():
    model = make_bank(tiny_llama())
    before = logits(model, ["cy", "bo", "bo", "cy"])
    model.set_task("cy")
    model.remove_task("ada")
    assert model.tasks == ["bo", "cy"]
    assert torch.equal(logits(model, ["cy", "bo", "bo", "cy"]), before)
    assert torch.equal(logits(model, [1, 0, 0, 1]), before)
    with torch.no_grad():
        assert distance(model(**make_inputs()).logits, logits(model, ["cy"] * 4)) < 1e-5  # still the task that was set
    with pytest.raises(TaskIdError, match="unknown task 'ada'; this bank knows bo, cy"):
        logits(model)


def test_removing_the_task_that_was_set_takes_the_choice_back():
    model = make_bank(tiny_llama())
    model.set_task("bo")
    model.remove_task("bo")
    with pytest.raises(TaskIdError, match="which task"), torch.no_grad():
        model(**make_inputs())


def test_core_is_a_copy_and_set_core_writes_it_back():
    model = make_bank(tiny_gpt2())
    before, first = state(model), logits(model)
    core = model.core("bo")
    assert set(core) == set(factors(model))
    for value in core.values():
        value.zero_()
    assert_unchanged(model, before)
    model.set_core("bo", core)
    assert all(not value.any() for value in model.core("bo").values())
    changed = logits(model)
    assert torch.equal(changed[[0, 1, 3]], first[[0, 1, 3]])
    assert distance(changed[2], first[2]) > 1e-3
    model.set_core("bo", {name: before[f"base_model.model.{name}.colora_core.default"][1] for name in core})
    assert_unchanged(model, before)


def test_a_core_moves_between_banks_that_share_their_factors():
    one, other = make_bank(tiny_llama()), make_bank(tiny_llama())
    other.set_core("ada", one.core("cy"))
    assert torch.equal(logits(other, ["ada"] * 4), logits(one, ["cy"] * 4))


def test_each_task_keeps_its_number_for_the_optimizer():
    model = make_bank(tiny_llama())
    model.add_tasks(["dee", "eli"])
    first = task_uids(cores(model)[0])
    assert len(set(first)) == 5
    model.remove_task("bo")
    model.add_tasks(["bo"])
    for core in cores(model):
        uids = task_uids(core)
        assert uids[:4] == [first[0], first[2], first[3], first[4]]
        assert uids[4] not in first  # a new task of an old name is a new task


def test_added_tasks_are_trained_by_the_optimizer_that_was_there():
    model = make_bank(tiny_llama())
    optimizer = torch.optim.SGD(cores(model), lr=0.1)
    model.add_tasks(["dee"])
    inputs = make_inputs()
    model(**inputs, labels=inputs["input_ids"], task_ids=["dee"] * 4).loss.backward()
    optimizer.step()
    assert all(distance(core, torch.eye(4)) > 0 for core in model.core("dee").values())


def test_added_tasks_are_saved_and_loaded(tmp_path):
    model = make_bank(tiny_llama())
    model.add_tasks(["dee"], init="mean")
    model.remove_task("ada")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert loaded.tasks == ["bo", "cy", "dee"]
    ids = ["dee", "bo", "cy", "dee"]
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.parametrize(
    ("names", "init", "error", "message"),
    [
        (["dee", "bo"], "identity", ConfigError, "'bo' is already a task"),
        (["dee", "dee"], "identity", ConfigError, "'dee' stands twice"),
        (["dee", "a/b"], "identity", ConfigError, "found 'a/b'"),
        (["dee", ""], "identity", ConfigError, "1 to 100 letters"),
        (["dee", 7], "identity", ConfigError, "must be a string, found int"),
        (["dee"], "zed", TaskIdError, "unknown task 'zed'; this bank knows ada, bo, cy"),
    ],
)
def test_tasks_that_cannot_be_added_change_nothing(names, init, error, message):
    model = make_bank(tiny_llama())
    before = state(model)
    with pytest.raises(error, match=message):
        model.add_tasks(names, init=init)
    assert_unchanged(model, before)


def test_tasks_that_cannot_be_removed_change_nothing():
    model, single = make_bank(tiny_llama()), make_bank(tiny_llama(), tasks=["only"])
    before, alone = state(model), state(single)
    with pytest.raises(TaskIdError, match="unknown task 'zed'"):
        model.remove_task("zed")
    with pytest.raises(ConfigError, match="'only' is the only task"):
        single.remove_task("only")
    assert_unchanged(model, before)
    assert_unchanged(single, alone, ["only"])


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda core: core.pop(LAYER), f"{LAYER}: missing"),
        (lambda core: core.update({"elsewhere": core[LAYER]}), "elsewhere: no such adapted layer"),
        (lambda core: core.update({LAYER: torch.zeros(3, 4)}), rf"{LAYER}: expected shape \(4, 4\), found \(3, 4\)"),
        (lambda core: core[LAYER].fill_(float("nan")), f"{LAYER}: holds NaN"),
    ],
)
def test_a_core_that_does_not_fit_changes_nothing(change, message):
    model = make_bank(tiny_llama())
    before, core = state(model), {name: 2 * value for name, value in model.core("bo").items()}
    change(core)
    with pytest.raises(ConfigError, match=message):
        model.set_core("bo", core)
    assert_unchanged(model, before)


@pytest.mark.parametrize("method", ["set_task", "core", "remove_task"])
def test_unknown_names_are_answered_with_the_known_ones(method):
    with pytest.raises(TaskIdError, match="unknown task 'zed'; this bank knows ada, bo, cy"):
        getattr(make_bank(tiny_llama()), method)("zed")


def test_a_long_list_of_known_names_is_cut():
    model = make_bank(tiny_llama(), tasks=[f"t{i}" for i in range(100)])
    with pytest.raises(TaskIdError, match=r"t0, t1, .*t19, \.\.\. and 80 more"):
        model.set_task("zed")


def test_tasks_added_or_removed_between_backward_and_step_keep_the_gradients_of_the_others():
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    inputs = make_inputs()
    model(**inputs, task_ids=[0, 1, 2, 1]).logits.square().mean().backward()
    before = [core.grad.clone() for core in cores(model)]
    model.add_tasks(["new"])
    assert all(torch.equal(core.grad[:3], grad) for core, grad in zip(cores(model), before, strict=True))
    assert all(not core.grad[3].any() for core in cores(model))
    model.remove_task(model.tasks[1])
    assert all(torch.equal(core.grad[:2], grad[[0, 2]]) for core, grad in zip(cores(model), before, strict=True))


def test_one_config_object_for_two_models_leaves_each_with_its_own_tasks(tmp_path):
    names = ["ada", "bo"]
    config = CoLoRAConfig(r=2, tasks=names, task_type="CAUSAL_LM")
    one, two = get_peft_model(tiny_llama(), config), get_peft_model(tiny_llama(), config)
    one.add_tasks(["cy"])
    assert (one.tasks, two.tasks, names) == (["ada", "bo", "cy"], ["ada", "bo"], ["ada", "bo"])
    for number, model in enumerate((one, two)):
        model.save_pretrained(tmp_path / str(number), save_embedding_layers=False)
        assert PeftModel.from_pretrained(tiny_llama(), tmp_path / str(number)).tasks == model.tasks


def test_ids_of_a_batch_are_gone_after_it():
    """An inner module called on its own must not find the ids of the batch before."""
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM").eval()
    inputs = make_inputs()
    inner = model.get_base_model().model
    with torch.no_grad():
        model(**inputs, task_ids=[0, 1, 2, 1])
        with pytest.raises(TaskIdError, match="which task"):
            inner(**inputs)
        model.generate(**inputs, task_ids=[0, 1, 2, 1], max_new_tokens=2)
        with pytest.raises(TaskIdError, match="which task"):
            inner(**inputs)
    model(**inputs, task_ids=[0, 1, 2, 1])  # with gradients they stay, for a backward pass that computes again
    model.set_task(model.tasks[2])
    expected = model(**inputs, task_ids=[2] * 4, output_hidden_states=True).hidden_states[-1]
    model.set_task(model.tasks[2])
    assert distance(inner(**inputs).last_hidden_state, expected) < 1e-5


@pytest.mark.parametrize("name", ["हिन्दी", "días", unicodedata.normalize("NFD", "días"), "任务 1", "_x", "a.b:c+d-e"])
def test_names_of_every_script_are_names(name):
    assert CoLoRAConfig(tasks=[name]).tasks == [name]


@pytest.mark.parametrize("name", ["", "a/b", " a", "\u0301a", "x" * 101, "任" * 70, "a\nb", "a\ud800"])
def test_what_could_not_be_a_folder_is_no_name(name):
    with pytest.raises(ConfigError, match="expected a task name of 1 to 100 letters"):
        CoLoRAConfig(tasks=[name])
