"""What PEFT and transformers users do with a bank, each time checked by values on re-seeded bases."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from test_adapter_oracle import FAMILIES, TASKS, dense_logits, distance, factors, make_bank, make_inputs
from transformers import Trainer, TrainingArguments

from colora import CoLoRAConfig
from colora.errors import ConfigError, TaskIdError
from tiny import tiny_bert, tiny_gpt2, tiny_llama

IDS = [2, 0, 1, 2]


def logits(model, task_ids=None, family="llama", **extra):
    inputs = make_inputs(family)
    with torch.no_grad():
        return model(**inputs, **({} if task_ids is None else {"task_ids": task_ids}), **extra).logits


def double(family="llama"):
    return FAMILIES[family][0](dtype=torch.float64)


# ---- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_logits_are_equal_to_the_last_bit(tmp_path, family, low_cpu_mem_usage):
    model = make_bank(FAMILIES[family][0](), task_type=FAMILIES[family][1], lora_alpha=6, use_rslora=True)
    model.save_pretrained(tmp_path)
    torch.manual_seed(77)  # what loading must not depend on
    loaded = PeftModel.from_pretrained(FAMILIES[family][0](), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert type(loaded) is type(model)
    assert loaded.tasks == TASKS
    assert torch.equal(logits(loaded, IDS, family), logits(model, IDS, family))
    assert distance(logits(loaded, IDS, family), logits(FAMILIES[family][0](), family=family)) > 1e-3
    assert not any(value.requires_grad for value in loaded.parameters())


def test_a_trained_head_is_saved_with_the_bank(tmp_path):
    model = make_bank(tiny_bert(), task_type="SEQ_CLS", modules_to_save=["classifier"])
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert torch.equal(logits(loaded, IDS, "bert"), logits(model, IDS, "bert"))
    head = loaded.base_model.model.classifier
    assert distance(head.modules_to_save["default"].weight, head.original_module.weight) > 0.9


def test_saved_files_are_safetensors_and_json_with_plain_keys(tmp_path):
    make_bank(tiny_llama(), target_modules=["q_proj"], layers_to_transform=[1]).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    stem = "base_model.model.model.layers.1.self_attn.q_proj.colora_"
    assert shapes == {f"{stem}A": (4, 32), f"{stem}B": (32, 4), f"{stem}core": (3, 4, 4)}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["tasks"], config["format_version"]) == ("COLORA", TASKS, 1)


def test_saving_again_after_a_change_records_the_new_tensors(tmp_path):
    model = make_bank(tiny_llama())
    model.save_pretrained(tmp_path)
    model.set_core("ada", {name: 2 * core for name, core in model.core("ada").items()})
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path), IDS), logits(model, IDS))


def test_an_earlier_checkpoint_loads_into_a_bank_that_was_saved_again_since(tmp_path):
    """What Trainer's load_best_model_at_end does: the live config knows the digest of the last save, not of this."""
    model = make_bank(tiny_llama())
    best = logits(model, IDS)
    model.save_pretrained(tmp_path / "best")
    model.set_core("ada", {name: 2 * core for name, core in model.core("ada").items()})
    model.save_pretrained(tmp_path / "last")
    assert distance(logits(model, IDS), best) > 1e-3
    model.load_adapter(tmp_path / "best", "default", is_trainable=True)
    assert torch.equal(logits(model, IDS), best)


def test_a_state_dict_goes_back_into_a_bank_that_has_changed():
    model = make_bank(tiny_llama())
    first = logits(model, IDS)
    state = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
    model.set_core("ada", {name: 2 * core for name, core in model.core("ada").items()})
    get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model, IDS), first)


def test_a_loaded_bank_goes_on_training_when_asked_to(tmp_path):
    make_bank(tiny_llama()).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert all(value.requires_grad == ("colora_" in name) for name, value in loaded.named_parameters())


# ---- transformers without PeftModel ---------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path):
    """A raw transformers model with a bank loaded by its own load_adapter, and the PeftModel that was saved."""
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path)
    torch.manual_seed(77)
    base = tiny_llama()
    info = base.load_adapter(tmp_path)
    assert not info.missing_keys
    assert not info.unexpected_keys
    return base, model


def test_transformers_load_adapter_loads_every_value(raw):
    base, model = raw
    assert torch.equal(logits(base, IDS), logits(model, IDS))
    assert torch.equal(logits(base, [TASKS[i] for i in IDS]), logits(model, IDS))
    loaded, saved = factors(base), factors(model)
    assert all(torch.equal(loaded[layer][kind], saved[layer][kind]) for layer in saved for kind in ("A", "B", "core"))


def test_a_raw_model_with_several_tasks_asks_which(raw):
    base, _ = raw
    with pytest.raises(TaskIdError, match="which task"):
        logits(base)
    with pytest.raises(TaskIdError, match="which task"):
        base.generate(make_inputs()["input_ids"], max_new_tokens=2)


def test_transformers_disable_enable_and_set_adapter(raw, tmp_path):
    base, model = raw
    make_bank(tiny_llama(), tasks=["x", "y"], r=2, seed=5).save_pretrained(tmp_path / "second")
    second = PeftModel.from_pretrained(tiny_llama(), tmp_path / "second")
    base.load_adapter(tmp_path / "second", adapter_name="second")
    ids = [1, 0, 1, 1]
    base.set_adapter("second")
    assert torch.equal(logits(base, ids), logits(second, ids))
    base.set_adapter("default")
    assert torch.equal(logits(base, IDS), logits(model, IDS))
    base.disable_adapters()
    assert torch.equal(logits(base), logits(tiny_llama()))
    base.enable_adapters()
    assert torch.equal(logits(base, IDS), logits(model, IDS))
    base.delete_adapter("default")
    base.set_adapter("second")
    assert torch.equal(logits(base, ids), logits(second, ids))
    assert not any(".default" in name for name, _ in base.named_parameters())


def test_transformers_save_pretrained_writes_a_bank_that_peft_loads(raw, tmp_path):
    base, model = raw
    base.save_pretrained(tmp_path / "again")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "again")
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))


def test_transformers_add_adapter_makes_a_fresh_bank():
    base = tiny_llama()
    base.add_adapter(CoLoRAConfig(r=4, tasks=TASKS))
    assert torch.equal(logits(base, IDS), logits(tiny_llama()))
    assert {name.split("colora_")[1].split(".")[0] for name, p in base.named_parameters() if p.requires_grad} == {
        "A", "B", "core",
    }  # fmt: skip


# ---- several banks --------------------------------------------------------------------------------------------------


@pytest.fixture
def two():
    model = make_bank(tiny_llama())
    torch.manual_seed(200)
    model.add_adapter("second", CoLoRAConfig(r=2, tasks=["x", "y"], init_weights=False, target_modules=["q_proj"]))
    return model


def second_oracle(model, ids):
    with torch.no_grad():
        return dense_logits(tiny_llama(), factors(model, "second"), ids, make_inputs(), scaling=8.0)


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
            "B": torch.cat([4.0 * own["B"], 8.0 * extra["B"]], dim=1),
            "core": torch.stack([torch.block_diag(own["core"][k], extra["core"][k]) for k in range(2)]),
        }
    for layer, own in tensors.items():
        if "q_proj" not in layer:
            own["B"] = 4.0 * own["B"]
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


# ---- without the bank, and merged into the base ---------------------------------------------------------------------


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


def test_merge_and_unload_of_a_named_bank_chooses_its_task(two):
    expected = second_oracle(two, [1] * 4)
    merged = two.merge_and_unload(adapter_names=["second"], task="y")
    assert distance(logits(merged), expected) < 1e-4


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
    config = CoLoRAConfig(r=4, tasks=TASKS, init_weights=False)
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
    with pytest.raises(TaskIdError, match="task_ids=.* instead of adapter_names"):
        logits(model, adapter_names=["ada"] * 4)
    with pytest.raises(TaskIdError, match="task_ids=.* instead of adapter_names"):
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
