"""Prompts in a saved bank: kept to the letter, used for outputs, carried by cores and sums, told by exports."""

import json
import re

import pytest
import torch
from peft import get_peft_model
from transformers import AutoTokenizer

import colora.bank.generate
from colora.adapter.config import CoLoRAConfig
from colora.bank.core_file import extract_core, read_core_header
from colora.bank.edit import forget_tasks, merge_tasks
from colora.bank.generate import Request, generate_texts
from colora.bank.importing.bank import import_loras
from colora.bank.layout import BankInfo, read_bank_info
from colora.bank.load import load_bank, save_bank
from colora.bank.tensors import SavedBank, write_bank
from colora.errors import BankFileError, ConfigError
from colora.models.base import load_base
from colora.tasks.encode import encode_causal, encode_seq2seq
from colora.tasks.prompting.templates import NAMED_TEMPLATES, parse_template
from colora.tasks.schema import Example, Task
from tests.helpers.lora_folders import save_lora
from tests.helpers.run_files import cli, refusal, save_base
from tests.helpers.tiny import tiny_t5

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QA = "Q: {input}\nA: {output}"
TASKS = ["legal", "billing", "sales"]
PROMPTS = {"prompt": QA, "prompts": {"billing": "arrow", "sales": None}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def bank(base, tmp_path):
    save(tmp_path / "b", base)
    return tmp_path / "b"


def save(folder, base, **changes):
    torch.manual_seed(1)
    model = load_base(base)[0]
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    config = CoLoRAConfig(r=2, tasks=TASKS, init_weights=False, task_type=kind)
    save_bank(get_peft_model(model, config), folder, BankInfo(base, max_length=96, **PROMPTS | changes))


# ---- kept -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_read_back_as_texts(bank, tmp_path):
    info = SavedBank(bank).info
    assert [info.template(name) for name in TASKS] == [parse_template(QA), NAMED_TEMPLATES["arrow"], None]
    assert (info.template(), info.prompts["billing"]) == (parse_template(QA), NAMED_TEMPLATES["arrow"].text)
    write_bank(SavedBank(bank).load(), tmp_path / "again")
    assert (tmp_path / "again" / "bank.json").read_bytes() == (bank / "bank.json").read_bytes()


def test_chat_is_no_prompt():
    assert BankInfo("x", prompt="chat").as_json() == BankInfo("x").as_json()
    assert "prompt" not in BankInfo("x").as_json()


@pytest.mark.parametrize("value", ["{input}", "qq", 3, ["qa"]])
def test_a_prompt_that_is_none_is_a_damaged_file(bank, value):
    fields = json.loads((bank / "bank.json").read_text())
    for name, wrong in (("prompt", value), ("prompts", {"legal": value})):
        (bank / "bank.json").write_text(json.dumps(fields | {name: wrong}))
        with pytest.raises(BankFileError, match=r"bank\.json .* damaged"):
            read_bank_info(bank)
    with pytest.raises(ConfigError, match="expected"):
        BankInfo("x", prompt="{input}")


def test_tasks_get_the_prompts_of_the_bank_unless_they_have_one():
    info = BankInfo("x", **PROMPTS)
    own = parse_template("{input}: {output}")
    tasks = [Task(name, {"train": (Example("a", ("b",)),)}, "memory", None) for name in (*TASKS, "new")]
    tasks.append(Task("legal", {"train": (Example("a", ("b",), template=own),)}, "memory", None))
    found = [task.splits["train"][0].template for task in info.prompted(tasks)]
    assert found == [parse_template(QA), NAMED_TEMPLATES["arrow"], None, parse_template(QA), own]


# ---- outputs --------------------------------------------------------------------------------------------------------


def trained_prompt(bank, task, text, instruction=None):
    """The prompt's ids as training makes them."""
    info, (_, tokenizer) = read_bank_info(bank), load_base(read_bank_info(bank).base)
    row = encode_causal(Example(text, ("x",), instruction, template=info.template(task)), tokenizer, 96)
    return row.input_ids[: row.labels.count(-100)]


def test_generate_gives_the_model_the_ids_of_training(bank, monkeypatch):
    seen = []
    real = colora.bank.generate.generate_outputs
    monkeypatch.setattr(
        colora.bank.generate, "generate_outputs", lambda *args, **more: seen.extend(args[2]) or real(*args, **more)
    )
    requests = [Request("legal", "one"), Request("billing", "two", "Say it."), Request("sales", "three", "Say it.")]
    generate_texts(bank, requests, 3)
    assert seen == [trained_prompt(bank, one.task, one.input, one.instruction) for one in requests]
    assert len({tuple(ids[:2]) for ids in seen}) == 3
    told = refusal("generate", bank, "one", "--task", "legal", "--instruction", "Say it.")
    assert f"the prompt {QA!r} has no {{instruction}}; found 'Say it.'" in told


# ---- cores, sums, what is left --------------------------------------------------------------------------------------


def test_a_core_file_has_the_prompt_of_its_task(bank, tmp_path):
    headers = {}
    for name in TASKS:
        extract_core(bank, name, tmp_path / name)
        headers[name] = read_core_header(tmp_path / name)
    assert [headers[name].prompt for name in TASKS] == [QA, NAMED_TEMPLATES["arrow"].text, None]
    assert b"prompt" not in (tmp_path / "sales").read_bytes()  # the file of earlier versions


def test_a_sum_has_the_prompt_of_its_parts(bank):
    merge_tasks(bank, "more", {"billing": 2.0})
    assert read_bank_info(bank).prompt_of("more") == NAMED_TEMPLATES["arrow"].text
    merge_tasks(bank, "less", {"legal": 0.5})
    assert "less" not in read_bank_info(bank).prompts  # that of the bank
    with pytest.raises(ConfigError) as caught:
        merge_tasks(bank, "both", {"legal": 1.0, "sales": 1.0})
    assert "prompt=..., --prompt" in str(caught.value)
    assert caught.value.faults == [f"legal: {QA!r}", "sales: chat"]
    done = cli("merge", bank, "both", "legal=1", "sales=1", "--prompt", "chat")
    assert done.exit_code == 0, done.stderr
    assert read_bank_info(bank).prompts["both"] is None
    assert "expected {output} once" in refusal("merge", bank, "all", "legal=1", "--prompt", "{input}")


def test_a_forgotten_task_leaves_no_prompt(bank, base, tmp_path):
    forget_tasks(bank, ["billing"])
    assert read_bank_info(bank).prompts == {"sales": None}


def test_imported_loras_get_the_prompt_that_is_named(base, tmp_path):
    loras = [save_lora(tmp_path / name, base, seed) for seed, name in enumerate(("a", "b"))]
    import_loras(loras, tmp_path / "none")
    assert read_bank_info(tmp_path / "none").prompt is None
    done = cli("import", *loras, "--output", tmp_path / "qa", "--prompt", r"Q: {input}\nA: {output}")  # as in a shell
    assert done.exit_code == 0, done.stderr
    assert read_bank_info(tmp_path / "qa").template("b") == parse_template(QA)
    with pytest.raises(ConfigError, match="or one of newline, qa, input-output, arrow, chat; found 'qq'"):
        import_loras(loras, tmp_path / "x", prompt="qq")
    assert not (tmp_path / "x").exists()


# ---- exports --------------------------------------------------------------------------------------------------------


def shown(folder):
    """The example that a README shows."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text, json.loads(re.search(r"```json\n(.*?)\n```", text, re.DOTALL)[1])


def test_the_readme_of_an_export_gives_the_ids_of_training(bank, base, tmp_path):
    assert cli("export", bank, tmp_path / "loras").exit_code == 0
    tokenizer = AutoTokenizer.from_pretrained(base)  # as whoever has no CoLoRA
    for task in TASKS:
        text, example = shown(tmp_path / "loras" / task)
        template = read_bank_info(bank).template(task)
        instruction = None if task == "legal" else re.search("the instruction `(.*?)`", text)[1]
        asked = re.search("the input `(.*?)`", text)[1]
        row = encode_causal(Example(asked, ("Blue",), instruction, template=template), load_base(base)[1], 96)
        assert example["prompt_ids"] + example["answer_ids"] == row.input_ids
        assert tokenizer(example["prompt"], add_special_tokens=task != "sales")["input_ids"] == example["prompt_ids"]
        assert tokenizer.decode(example["answer_ids"]) == example["answer"] + "</s>"
        assert (template is None) == ("/v1/chat/completions" in text)
        assert template is None or f"```text\n{template.text}\n```" in text
    assert shown(tmp_path / "loras" / "legal")[1]["answer"] == " Blue"


def test_merged_models_and_single_loras_have_a_readme_too(bank, base, tmp_path):
    assert cli("export", bank, tmp_path / "lora", "--task", "legal").exit_code == 0
    assert cli("export", bank, tmp_path / "lora", "--task", "legal").exit_code == 0  # in the place of the former
    assert cli("export", bank, tmp_path / "merged", "--task", "legal", "--merged").exit_code == 0
    assert shown(tmp_path / "lora")[1] == shown(tmp_path / "merged")[1]
    assert "has no place for an instruction" in shown(tmp_path / "lora")[0]


def test_the_readme_of_plain_prompts_and_of_encoder_decoders(tmp_path):
    plain = save_base(tmp_path / "plain", chat=False)
    save(tmp_path / "b", plain, prompt=None, prompts={})
    assert cli("export", tmp_path / "b", tmp_path / "lora", "--task", "legal").exit_code == 0
    text, example = shown(tmp_path / "lora")
    assert AutoTokenizer.from_pretrained(plain)(example["prompt"])["input_ids"] == example["prompt_ids"]
    assert "and a line break" in text
    t5 = save_base(tmp_path / "t5", tiny_t5())
    save(tmp_path / "e", t5)
    assert cli("export", tmp_path / "e", tmp_path / "elora", "--task", "legal").exit_code == 0
    _, example = shown(tmp_path / "elora")
    _, tokenizer = load_base(t5)
    row = encode_seq2seq(Example("Which colour has the sky?", ("Blue",), template=parse_template(QA)), tokenizer, 96)
    assert (example["prompt_ids"], example["answer_ids"]) == (row.input_ids, row.labels)
    assert example["answer"] == "Blue"


def test_a_bank_loads_with_its_prompts_and_lists_them(bank):
    _, _, info = load_bank(bank)
    assert info.template("billing") == NAMED_TEMPLATES["arrow"]
    listed = cli("tasks", bank).stdout
    assert f"prompt: {QA!r}\n" in listed
    assert "prompt of sales: chat\n" in listed
