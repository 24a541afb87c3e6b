"""Several banks on one base, precision, copies, compilation, transformers' Trainer."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from colora import CoLoRAConfig
from colora.errors import ConfigError, TaskIdError
from tests.helpers.dense_oracle import FAMILIES, TASKS, dense_logits, distance, factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_gpt2, tiny_llama

IDS = [2, 0, 1, 2]


def logits(model, task_ids=None, family="llama", **extra):
    inputs = make_inputs(family)
    with torch.no_grad():
        return model(**inputs, **({} if task_ids is None else {"task_ids": task_ids}), **extra).logits


# ---- several banks --------------------------------------------------------------------------------------------------


@pytest.fixture
def two():
    model = make_bank(tiny_llama())
    torch.manual_seed(200)
    model.add_adapter(
        "second", CoLoRAConfig(r=2, lora_alpha=8, tasks=["x", "y"], init_weights=False, target_modules=["q_proj"])
    )
    return model


def second_oracle(model, ids):
    with torch.no_grad():
        return dense_logits(tiny_llama(), factors(model, "second"), ids, make_inputs(), scaling=4.0)


def test_each_bank_has_its_own_tasks_rank_and_layers(two):
    first = logits(make_bank(tiny_llama()), IDS)
    assert torch.equal(logits(two, IDS), first)
    two.set_adapter("second")
    assert two.tasks == ["x", "y"]
    assert distance(logits(two, ["y", "x", "x", "y"]), second_oracle(two, [1, 0, 0, 1])) < 1e-4
    with pytest.raises(TaskIdError, match=r"unknown task 'ada'; this bank knows x, y"):
        logits(two, ["ada", "x", "x", "x"])
    with pytest.raises(TaskIdError, match="task id 2 is out of range"):
        logits(two, IDS)
    two.set_adapter("default")
    assert torch.equal(logits(two, IDS), first)


def test_set_task_is_kept_for_each_bank(two):
    two.set_task("bo")
    two.set_adapter("second")
    two.set_task("y")
    assert distance(logits(two), second_oracle(two, [1] * 4)) < 1e-4
    two.set_adapter("default")
    assert distance(logits(two), logits(two, [1] * 4)) < 1e-5


def test_two_active_banks_add_up(two):
    """They share the ids, so these must exist in both; what needs one bank says so."""
    two.base_model.set_adapter(["default", "second"])
    inputs, ids = make_inputs(), [1, 0, 0, 1]
    tensors = factors(two)
    for layer, extra in factors(two, "second").items():
        own = tensors[layer]
        tensors[layer] = {
            "A": torch.cat([own["A"], extra["A"]]),
            "B": torch.cat([2.0 * own["B"], 4.0 * extra["B"]], dim=1),
            "core": torch.stack([torch.block_diag(own["core"][k], extra["core"][k]) for k in range(2)]),
        }
    for layer, own in tensors.items():
        if "q_proj" not in layer:
            own["B"] = 2.0 * own["B"]
    with torch.no_grad():
        expected = dense_logits(tiny_llama(), tensors, ids, inputs, scaling=1.0)
    assert distance(logits(two, ids), expected) < 1e-4
    with pytest.raises(ConfigError, match="expected one active bank, found 2"):
        two.set_task("ada")


def requires_grad(model):
    return {name.rsplit(".", 1)[-1] for name, value in model.named_parameters() if value.requires_grad}


def test_only_the_active_bank_is_trained(two):
    assert requires_grad(two) == {"default"}
    two.set_adapter("second")
    assert requires_grad(two) == {"second"}
    two.set_adapter("default", inference_mode=True)
    assert requires_grad(two) == set()


@pytest.mark.parametrize("trainable_first", [True, False])
def test_loading_a_second_bank_leaves_the_first_as_trainable_as_it_was(tmp_path, trainable_first):
    make_bank(tiny_llama(), tasks=["x", "y"], r=2).save_pretrained(tmp_path / "second")
    make_bank(tiny_llama()).save_pretrained(tmp_path / "first")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "first", is_trainable=trainable_first)
    model.load_adapter(tmp_path / "second", "second", is_trainable=not trainable_first)
    assert requires_grad(model) == ({"default"} if trainable_first else {"second"})


def test_deleting_one_bank_leaves_the_other(two):
    expected = second_oracle(two, [1, 0, 0, 1])
    two.delete_adapter("default")
    two.set_adapter("second")
    assert distance(logits(two, [1, 0, 0, 1]), expected) < 1e-4
    assert not any(name.endswith(".default") for name, _ in two.named_parameters())


def test_a_deleted_bank_leaves_no_choice_of_task_to_the_next_of_its_name(two):
    two.set_task("bo")
    two.set_adapter("second")
    two.delete_adapter("default")
    two.add_adapter("default", CoLoRAConfig(r=2, tasks=["ada", "bo"], init_weights=False))
    two.set_adapter("default")
    with pytest.raises(TaskIdError, match="which task"):
        logits(two)


def test_both_banks_are_saved_and_load_by_themselves(two, tmp_path):
    two.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path), IDS), logits(two, IDS))
    second = PeftModel.from_pretrained(tiny_llama(), tmp_path / "second")
    two.set_adapter("second")
    assert torch.equal(logits(second, [1, 0, 0, 1]), logits(two, [1, 0, 0, 1]))


def test_merge_and_unload_of_a_named_bank_chooses_its_task(two):
    expected = second_oracle(two, [1] * 4)
    merged = two.merge_and_unload(adapter_names=["second"], task="y")
    assert distance(logits(merged), expected) < 1e-4


# ---- precision, copies, compilation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16_base_with_a_float32_bank(family):
    make = FAMILIES[family][0]
    model = make_bank(make(dtype=torch.bfloat16), task_type="CAUSAL_LM")
    assert {value.dtype for name, value in model.named_parameters() if "colora_" in name} == {torch.float32}
    found, exact = logits(model, IDS, family), logits(make_bank(make(), task_type="CAUSAL_LM"), IDS, family)
    assert found.dtype == torch.bfloat16
    update = distance(exact, logits(make(), family=family))
    assert distance(found.float(), exact) < 0.1 * update
    generated = model.generate(make_inputs()["input_ids"], task_ids=IDS, max_new_tokens=3, do_sample=False)
    assert generated.shape == (4, 9)


def test_bfloat16_bank_when_autocast_is_declined():
    base = tiny_llama(dtype=torch.bfloat16)
    torch.manual_seed(100)
    config = CoLoRAConfig(r=4, lora_alpha=8, tasks=TASKS, init_weights=False)
    model = get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    exact = logits(make_bank(tiny_llama()), IDS)
    assert distance(logits(model, IDS).float(), exact) < 0.1 * distance(exact, logits(tiny_llama()))


def test_autocast_routes_every_form_of_ids():
    model = make_bank(tiny_llama())
    exact = logits(model, IDS)
    for ids in (IDS, torch.tensor(IDS)[:, None].expand(4, 6)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = logits(model, ids)
        assert distance(found.float(), exact) < 0.1 * distance(exact, logits(tiny_llama()))


def test_copies_route_independently():
    model = make_bank(tiny_llama())
    mixed = logits(model, IDS)
    copied = copy.deepcopy(model)
    copied.set_task("bo")
    model.set_task("ada")
    assert distance(logits(copied), logits(model, [1] * 4)) < 1e-5
    assert distance(logits(model), logits(copied, [0] * 4)) < 1e-5
    copied.add_tasks(["dee"])
    assert model.tasks == TASKS
    assert torch.equal(logits(model, IDS), mixed)
    assert torch.equal(logits(copied, IDS), mixed)


def test_compiles_to_one_graph_for_every_mix_of_tasks():
    torch._dynamo.reset()
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for ids in ([2, 0, 1, 2], [0, 0, 0, 0], [1, 2, 2, 0], [2, 2, 1, 1]):
        assert torch.equal(logits(compiled, torch.tensor(ids)), logits(model, ids))
    assert len(graphs) == 1
    torch._dynamo.reset()


# ---- Trainer and PEFT's own ways ------------------------------------------------------------------------------------


def trainer(model, tmp_path, **arguments):
    ids = make_inputs(rows=8)["input_ids"]
    rows = [{"input_ids": row, "labels": row, "task_ids": index % 3} for index, row in enumerate(ids)]
    settings = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[], learning_rate=1e-2,
        disable_tqdm=True, **arguments,
    )  # fmt: skip
    return Trainer(model, settings, train_dataset=rows)


def test_stock_trainer_drops_the_ids_by_default_and_is_told_so(tmp_path):
    with pytest.raises(TaskIdError, match="remove_unused_columns=False"):
        trainer(make_bank(tiny_llama(), task_type="CAUSAL_LM"), tmp_path).train()


def test_stock_trainer_trains_a_bank_when_it_keeps_the_ids(tmp_path):
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    before = model.core("cy")
    trainer(model, tmp_path, remove_unused_columns=False, save_strategy="steps", save_steps=1).train()
    assert all(distance(core, before[name]) > 1e-3 for name, core in model.core("cy").items())
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "checkpoint-2")
    assert torch.equal(logits(loaded, IDS), logits(model.eval(), IDS))
    assert distance(logits(loaded, IDS), logits(tiny_llama())) > 1e-3


def test_adapter_names_are_refused():
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    with pytest.raises(TaskIdError, match=r"task_ids=.* instead of adapter_names"):
        logits(model, adapter_names=["ada"] * 4)
    with pytest.raises(TaskIdError, match=r"task_ids=.* instead of adapter_names"):
        model.generate(make_inputs()["input_ids"], adapter_names=["ada"] * 4, max_new_tokens=1)


def test_a_lora_beside_a_bank_is_refused_or_kept_apart():
    """PEFT's mixed models are another class; a PeftModel of a bank takes only banks."""
    model = make_bank(tiny_llama())
    mixed = logits(model, IDS)
    with pytest.raises(ValueError):
        model.add_adapter("lora", LoraConfig(r=2, target_modules=["q_proj"]))
    assert torch.equal(logits(model, IDS), mixed)


def test_status_of_peft_counts_the_bank():
    model = make_bank(tiny_gpt2())
    status = model.get_model_status()
    assert status.num_adapter_layers == 8
    assert status.active_adapters == ["default"]
    assert status.trainable_params == sum(value.numel() for t in factors(model).values() for value in t.values())
