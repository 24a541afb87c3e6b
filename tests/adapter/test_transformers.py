"""A bank through transformers alone: load_adapter, from_pretrained, pipeline."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM, pipeline

import colora
from colora import CoLoRAConfig
from colora.errors import ConfigError, TaskIdError
from tests.helpers.dense_oracle import TASKS, dense_logits, distance, factors, make_bank, make_inputs
from tests.helpers.tiny import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

IDS = [2, 0, 1, 2]
PROMPTS = ["hi", "hello there", "one more", "a"]
MORE = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model with its tokenizer, and a bank that names it."""
    folder = tmp_path_factory.mktemp("plain")
    tiny_llama().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "bank")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    make_bank(base, task_type="CAUSAL_LM").save_pretrained(folder / "bank")
    return folder


def reference(folders):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders / "base"), folders / "bank")


def loaded(folders):
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    base.load_adapter(folders / "bank")
    return base


def from_folder(folders):
    return AutoModelForCausalLM.from_pretrained(folders / "bank")


def added(folders):
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    base.add_adapter(CoLoRAConfig(r=4, tasks=TASKS), adapter_name="other")
    base.load_adapter(folders / "bank", adapter_name="bank")
    base.set_adapter("bank")
    return base


WAYS = {"load_adapter": loaded, "from_pretrained": from_folder, "beside another": added}


@pytest.mark.parametrize("ids", [IDS, ["cy", "ada", "bo", "cy"], torch.tensor(IDS)])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"return_dict_in_generate": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", WAYS)
def test_generate_is_that_of_the_peft_model(folders, way, more, ids):
    model, inputs = WAYS[way](folders), make_inputs()["input_ids"]
    expected = reference(folders).generate(input_ids=inputs, task_ids=IDS, **MORE, **more)
    for found in (
        model.generate(input_ids=inputs, task_ids=ids, **MORE, **more),
        model.generate(inputs, task_ids=ids, **MORE, **more),
    ):
        if more.get("return_dict_in_generate"):
            found = found.sequences
        assert torch.equal(found, expected.sequences if "return_dict_in_generate" in more else expected)


def test_each_row_is_that_of_its_task_alone(folders):
    """Rows of one length, so that alone and together are the same computation."""
    model, inputs = loaded(folders), make_inputs()["input_ids"]
    together = model.generate(input_ids=inputs, task_ids=IDS, **MORE)
    for row, task in enumerate(IDS):
        colora.set_task(model, TASKS[task])
        assert torch.equal(model.generate(input_ids=inputs[row : row + 1], **MORE)[0], together[row])
    other = model.generate(input_ids=inputs, task_ids=[0, 1, 2, 0], **MORE)
    assert not torch.equal(other, together)


@pytest.mark.parametrize("way", WAYS)
def test_a_set_task_holds(folders, way):
    model, inputs = WAYS[way](folders), make_inputs()
    with pytest.raises(TaskIdError, match="which task"):
        model.generate(**inputs, **MORE)
    for choose in (colora.set_task, type(model).set_task):
        for name in TASKS:
            choose(model, name)
            with torch.no_grad():
                expected = reference(folders)(**inputs, task_ids=[name] * 4).logits
                assert distance(model(**inputs).logits, expected) < 1e-5
        assert torch.equal(
            model.generate(**inputs, task_ids=IDS, **MORE), reference(folders).generate(**inputs, task_ids=IDS, **MORE)
        )
        choose(model, None)
        with pytest.raises(TaskIdError, match="which task"):
            model(**inputs)
    with pytest.raises(TaskIdError, match=r"unknown task 'eve'; this bank knows ada, bo, cy"):
        model.set_task("eve")


def test_faults_are_told(folders):
    model, inputs = loaded(folders), make_inputs()
    with pytest.raises(TaskIdError, match="task_ids name 3 rows, but the batch has 4"):
        model.generate(**inputs, task_ids=IDS[:3], **MORE)
    with pytest.raises(TaskIdError, match="task id 7 is out of range"):
        model.generate(**inputs, task_ids=[7] * 4, **MORE)
    with pytest.raises(TaskIdError, match="unknown task 'eve'"):
        model.generate(**inputs, task_ids=["eve"] * 4, **MORE)
    model.delete_adapter("default")
    with pytest.raises(TaskIdError, match="task_ids were given, but no bank is active"):
        model.generate(**inputs, task_ids=IDS, **MORE)
    with pytest.raises(TaskIdError, match="task_ids were given, but no bank is active"):
        model(**inputs, task_ids=IDS)
    with pytest.raises(ConfigError, match="expected one active bank, found 0"):
        model.set_task("ada")


def test_models_without_a_bank_do_what_they_did(folders):
    from_folder(folders)  # the class is taught
    base, inputs = AutoModelForCausalLM.from_pretrained(folders / "base"), make_inputs()
    assert base.generate(**inputs, **MORE).shape == (4, 10)
    with pytest.raises(ValueError, match=r"not used by the model: \['task_ids'\]"):
        base.generate(**inputs, task_ids=IDS, **MORE)
    with pytest.raises(ConfigError, match="expected a model with one bank, found a LlamaForCausalLM with none"):
        colora.set_task(base, "ada")
    assert not hasattr(LlamaForCausalLM.generate.__wrapped__, "_colora_routed")


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_t5])
def test_other_families(make, tmp_path):
    kind = "SEQ_2_SEQ_LM" if make is tiny_t5 else "CAUSAL_LM"
    peft_model = make_bank(make(), task_type=kind)
    peft_model.save_pretrained(tmp_path)
    plain, inputs = make(), make_inputs()
    plain.load_adapter(tmp_path)
    for more in ({}, {"num_beams": 2}):
        expected = peft_model.generate(**inputs, task_ids=IDS, **MORE, **more)
        assert torch.equal(plain.generate(**inputs, task_ids=IDS, **MORE, **more), expected)


def test_copies_and_pickles(folders):
    model, inputs = loaded(folders), make_inputs()
    model.set_task("bo")
    expected = model.generate(**inputs, task_ids=IDS, **MORE)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        model.set_task("ada")
        assert torch.equal(other.generate(**inputs, task_ids=IDS, **MORE), expected)
        with torch.no_grad():
            assert distance(other(**inputs).logits, other(**inputs, task_ids=["bo"] * 4).logits) < 1e-5


def test_a_wrapped_model_is_found_inside(folders):
    model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
    wrapper = torch.nn.Sequential(model)
    colora.set_task(wrapper, "bo")
    inputs = make_inputs()
    with torch.no_grad():
        assert distance(model(**inputs).logits, model(**inputs, task_ids=[1] * 4).logits) < 1e-5
    with pytest.raises(ConfigError, match="expected a model with one bank, found a Sequential with 2"):
        colora.set_task(torch.nn.Sequential(model, make_bank(tiny_llama())), "bo")


# ---- beside and around other adapters --------------------------------------------------------------------------------


def lora():
    torch.manual_seed(3)
    return LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)


@pytest.mark.parametrize("first", ["lora", "bank"])
def test_a_lora_beside_a_bank_is_used_instead_of_it(folders, first):
    model, inputs = AutoModelForCausalLM.from_pretrained(folders / "base"), make_inputs()
    steps = [lambda: model.add_adapter(lora(), "lora"), lambda: model.load_adapter(folders / "bank", "bank")]
    for step in steps if first == "lora" else steps[::-1]:
        step()
    with torch.no_grad():
        model.set_adapter("bank")
        assert torch.equal(model(**inputs, task_ids=IDS).logits, reference(folders)(**inputs, task_ids=IDS).logits)
        model.set_adapter("lora")
        alone = get_peft_model(AutoModelForCausalLM.from_pretrained(folders / "base"), lora())
        assert torch.equal(model(**inputs).logits, alone(**inputs).logits)
    with pytest.raises(TaskIdError, match="no bank is active"):
        model(**inputs, task_ids=IDS)
    with pytest.raises(TaskIdError, match="no bank is active"):
        model.generate(**inputs, task_ids=IDS, **MORE)


def test_a_lora_on_a_bank_adds_up(folders):
    bank = reference(folders)
    tensors = factors(bank)
    model = get_peft_model(bank, lora())
    base = get_peft_model(AutoModelForCausalLM.from_pretrained(folders / "base"), lora()).merge_and_unload()
    with torch.no_grad():
        found = model(**make_inputs(), task_ids=IDS).logits
        assert distance(found, dense_logits(base, tensors, IDS, make_inputs())) < 1e-4


@pytest.mark.parametrize("below", ["bank", "lora"])
@pytest.mark.parametrize("how", ["get_peft_model", "from_pretrained", "twice on one base"])
def test_a_bank_on_a_wrapped_model_is_refused(folders, below, how):
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    kind = CoLoRAConfig(r=4, tasks=TASKS) if below == "bank" else lora()
    wrapped = get_peft_model(base, kind)
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    configs = dict(wrapped.peft_config)
    error = f"expected a base model, found a PeftModel with {'COLORA' if below == 'bank' else 'LORA'}"
    if how == "twice on one base":
        if below == "lora":
            pytest.skip("a bank beside a LoRA on one base is no fault")
        error, make = "has a bank 'default' already", lambda: get_peft_model(base, CoLoRAConfig(r=4, tasks=TASKS))
    elif how == "get_peft_model":
        error, make = error, lambda: get_peft_model(wrapped, CoLoRAConfig(r=4, tasks=TASKS))
    else:
        error, make = error, lambda: PeftModel.from_pretrained(wrapped, folders / "bank")
    with pytest.raises(ConfigError, match=error):
        make()
    after = wrapped.state_dict()
    assert before.keys() == after.keys()
    assert wrapped.peft_config == configs
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# ---- decoding with a helper ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["load_adapter", "peft"])
@pytest.mark.parametrize("helper", ["assistant", "assistant with a bank", "lookup"])
def test_a_draft_does_not_change_the_answer(folders, way, helper):
    model = loaded(folders) if way == "load_adapter" else reference(folders)
    inputs = make_inputs(rows=1)["input_ids"]
    more = {"max_new_tokens": 12, "do_sample": False}
    if helper == "lookup":
        draft = {"prompt_lookup_num_tokens": 2}
    else:
        assistant = AutoModelForCausalLM.from_pretrained(folders / "base")
        if helper == "assistant with a bank":
            assistant.load_adapter(folders / "bank")
            colora.set_task(assistant, "ada")
        draft = {"assistant_model": assistant}
    for task in TASKS:
        expected = model.generate(input_ids=inputs, task_ids=[task], **more)
        assert torch.equal(model.generate(input_ids=inputs, task_ids=[task], **more, **draft), expected)


# ---- pipelines -------------------------------------------------------------------------------------------------------


def said(model, prompt, task, **more):
    tokens = tiny_tokenizer()(prompt, return_tensors="pt")
    made = model.generate(**tokens, task_ids=[task], **MORE, **more)
    return tiny_tokenizer().decode(made[0], skip_special_tokens=True)


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("made_of", ["folder", "plain", "peft"])
def test_a_pipeline_gives_each_input_its_task(folders, made_of, batch):
    model = {"folder": str(folders / "bank"), "plain": loaded(folders), "peft": reference(folders)}[made_of]
    pipe = pipeline("text-generation", model=model, tokenizer=tiny_tokenizer())
    names = [TASKS[task] for task in IDS]
    more = {} if batch is None else {"batch_size": batch}
    expected = [said(reference(folders), prompt, task) for prompt, task in zip(PROMPTS, names, strict=True)]
    for ids in (names, IDS, torch.tensor(IDS), tuple(names)):
        found = pipe(PROMPTS, task_ids=ids, **MORE, **more)
        assert [one[0]["generated_text"] for one in found] == expected
    assert pipe(PROMPTS[1], task_ids="ada", **MORE)[0]["generated_text"] == expected[1]
    assert pipe(PROMPTS[1], task_ids=["ada"], **MORE)[0]["generated_text"] == expected[1]


def test_a_pipeline_made_with_a_batch_size_and_beams(folders):
    pipe = pipeline("text-generation", model=loaded(folders), tokenizer=tiny_tokenizer(), batch_size=2)
    found = pipe(PROMPTS, task_ids=IDS, num_beams=2, **MORE)
    expected = [said(reference(folders), p, TASKS[k], num_beams=2) for p, k in zip(PROMPTS, IDS, strict=True)]
    assert [one[0]["generated_text"] for one in found] == expected


def test_chats_in_a_pipeline(folders):
    pipe = pipeline("text-generation", model=loaded(folders), tokenizer=tiny_tokenizer())
    chats = [[{"role": "user", "content": prompt}, {"role": "user", "content": "!"}] for prompt in PROMPTS]
    alone = [pipe(chat, task_ids=[task], **MORE)[0]["generated_text"] for chat, task in zip(chats, IDS, strict=True)]
    together = [one[0]["generated_text"] for one in pipe(chats, task_ids=IDS, **MORE)]
    assert together == alone
    assert [pipe(chat, task_ids=["ada"], **MORE)[0]["generated_text"] for chat in chats] != alone


def test_a_pipeline_with_a_set_task(folders):
    model = loaded(folders)
    pipe = pipeline("text-generation", model=model, tokenizer=tiny_tokenizer())
    model.set_task("bo")
    assert pipe(PROMPTS[0], **MORE)[0]["generated_text"] == said(reference(folders), PROMPTS[0], "bo")


def test_a_pipeline_says_what_does_not_fit(folders):
    pipe = pipeline("text-generation", model=loaded(folders), tokenizer=tiny_tokenizer())
    with pytest.raises(TaskIdError, match="task_ids name 2 rows, but the pipeline got 4 inputs"):
        pipe(PROMPTS, task_ids=["ada", "bo"], **MORE)
    with pytest.raises(TaskIdError, match="takes a list of inputs, found a generator"):
        pipe((prompt for prompt in PROMPTS), task_ids=IDS, **MORE)
    with pytest.raises(TaskIdError, match="which task"):
        pipe(PROMPTS, **MORE)
    plain = pipeline("text-generation", model=tiny_llama(), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match=r"not used by the model: \['task_ids'\]"):
        plain("hi", task_ids=["ada"], **MORE)


def test_a_classifier_s_pipeline_routes_as_well(tmp_path):
    torch.manual_seed(0)
    peft_model = make_bank(tiny_bert(), task_type="SEQ_CLS", modules_to_save=None)
    pipe = pipeline("text-classification", model=peft_model, tokenizer=tiny_tokenizer(), top_k=None)
    alone = []
    for prompt, task in zip(PROMPTS, IDS, strict=True):
        peft_model.set_task(TASKS[task])
        alone.append({one["label"]: one["score"] for one in pipe([prompt])[0]})
    peft_model.set_task("ada")
    for batch in (1, 3):
        found = [{one["label"]: one["score"] for one in row} for row in pipe(PROMPTS, task_ids=IDS, batch_size=batch)]
        for one, other in zip(found, alone, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
