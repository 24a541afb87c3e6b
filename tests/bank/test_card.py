"""The model card of a bank: what it says is what the files say, it follows every change, and it costs nothing else."""

import contextlib
import io
import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from colora import CoLoRAConfig, SavedBank, forget_tasks, load_bank, merge_tasks, read_records, save_bank
from colora.bank.card import read_figures, with_means, write_card
from colora.bank.card_text import Figure
from colora.bank.layout import BankInfo
from colora.bank.tensors import write_bank
from colora.errors import BankFileError
from colora.models.base import load_base
from tests.helpers.run_files import cli, content, run_file, save_base
from tests.helpers.tiny import tiny_llama

TASKS = ["legal", "billing", "sales"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def make_bank(folder, base, tasks=TASKS, **changes):
    torch.manual_seed(1)
    config = CoLoRAConfig(r=3, tasks=list(tasks), init_weights=False, task_type="CAUSAL_LM")
    info = {"base": base, "examples": dict.fromkeys(tasks, 5), "seen": dict.fromkeys(tasks, 7), "prompt": "qa"}
    save_bank(get_peft_model(load_base(base)[0], config), folder, BankInfo(**info | changes))
    return folder


@pytest.fixture
def bank(base, tmp_path):
    """A bank of three tasks, each measured by two metrics."""
    figures = [
        Figure(task, metric, "test", 10.0 + len(task), 8) for task in TASKS for metric in ("rougeL", "token_nll")
    ]
    write_card(make_bank(tmp_path / "bank", base), with_means(figures))
    return tmp_path / "bank"


def text(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def measured(folder):
    """The tasks that the card has figures of."""
    return {one.task for one in read_figures(folder)}


def rows(folder):
    """The cells of the table of tasks."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text(folder).splitlines() if line[:2] == "| "]


def test_a_run_s_bank_tells_what_its_records_say(base, tmp_path):
    file = run_file(tmp_path, base, prompt="Q: {input}\nA: {output}", evaluation={"metrics": ["nll", "rougeL"]})
    assert cli("train", file).exit_code == 0
    folder = tmp_path / "out" / "bank"
    records = {(one.task, one.metric): one for one in read_records(tmp_path / "out" / "records.jsonl")}
    assert {(one.task, one.metric): one.value for one in read_figures(folder) if one.task in ("red", "blue")} == {
        place: record.value for place, record in records.items()
    }
    head, _, *tasks = rows(folder)
    assert head == ["task", "examples", "token_nll", "rougeL"]
    nll = records["red", "token_nll"]
    assert tasks[0] == ["red", "7", f"{nll.value:.4g} ({nll.n})", "0 (2)"]
    assert "`'Q: {input}\\nA: {output}'`" in text(folder)
    assert "A and B, of rank 4," in text(folder)
    card = ModelCard(text(folder))
    assert (card.data.library_name, card.data.pipeline_tag, card.data.tags) == (
        "peft", "text-generation", ["colora", "multi-task"],
    )  # fmt: skip
    before = text(folder)
    for options in (["--split", "val"], ["--limit", "1"], ["--split", "train"]):
        assert cli("evaluate", tmp_path / "out", *options).exit_code == 0
        assert text(folder) == before  # neither a part of the test split nor another tells as much


def test_the_card_s_code_loads_the_bank(bank, base, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", text(bank), flags=re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace("PATH/OF/THE/BASE", base).replace("ORG/BANK", str(bank)), {})
    assert "A prompt, made as above" in printed.getvalue()


def test_a_base_on_the_hub_is_named_and_a_folder_s_path_is_not(bank, base, tmp_path):
    assert base not in text(bank)
    assert "base_model" not in ModelCard(text(bank)).data.to_dict()
    model = tiny_llama()
    model.name_or_path = model.config._name_or_path = "org/base"
    get_peft_model(model, CoLoRAConfig(tasks=["one"], r=2)).save_pretrained(tmp_path / "hub")
    assert ModelCard(text(tmp_path / "hub")).data.base_model == "org/base"
    assert 'from_pretrained("org/base")' in text(tmp_path / "hub")
    assert text(tmp_path / "hub").count("One task shared by one adapter on `org/base`") == 1


def test_the_card_is_none_of_the_digest_s_business(bank):
    before = {path.name: path.read_bytes() for path in bank.iterdir()}
    write_card(bank, [Figure("legal", "exact_match", "test", 1.0, 3)])
    after = {path.name: path.read_bytes() for path in bank.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    SavedBank(bank).check()


# ---- changes ---------------------------------------------------------------------------------------------------------


def test_a_forgotten_task_s_name_goes_and_the_others_figures_stay(bank):
    done = forget_tasks(bank, ["billing"])
    assert "billing" not in text(bank)
    assert measured(bank) == {"legal", "sales"}  # the mean over three, billing among them, has gone too
    assert [row[0] for row in rows(bank)[2:]] == ["legal", "sales"]
    assert done.names_left == []


def test_a_task_that_is_added_is_listed_without_figures(bank):
    merge_tasks(bank, "both", {"legal": 0.5, "sales": 0.5})
    assert rows(bank)[-2][:3] == ["both", "–", "–"]
    assert measured(bank) == {*TASKS, "*mean*"}
    assert "4 tasks shared" in text(bank)


def test_a_task_that_was_trained_further_has_no_figures_any_more(bank):
    files = SavedBank(bank).load()
    files.info.seen["legal"] += 4
    write_bank(files, bank)
    assert measured(bank) == {"billing", "sales"}


def test_a_bank_saved_from_memory_keeps_its_quality_only_as_it_was(bank, tmp_path):
    model, _, _ = load_bank(bank)
    model.save_pretrained(tmp_path / "same", save_embedding_layers=False)
    assert text(tmp_path / "same") == text(bank)
    assert (tmp_path / "same" / "bank.json").read_bytes() == (bank / "bank.json").read_bytes()
    model.add_tasks(["new"])
    model.save_pretrained(tmp_path / "more", save_embedding_layers=False)
    assert measured(tmp_path / "more") == set()
    assert not (tmp_path / "more" / "bank.json").exists()
    assert [row[0] for row in rows(tmp_path / "more")[2:]] == [*TASKS, "new"]
    model.save_pretrained(bank, save_embedding_layers=False)  # where it came from: other tensors now
    assert measured(bank) == set()


def test_a_user_s_words_and_metadata_stay(bank):
    card = ModelCard(text(bank))
    card.data.license, card.data.tags = "mit", [*card.data.tags, "support"]
    card.text = card.text.replace("# CoLoRA bank", "# Support\n\nAsk billing first.") + "\nThanks to all.\n"
    card.save(bank / "README.md")
    done = forget_tasks(bank, ["billing"])
    again = ModelCard(text(bank))
    assert (again.data.license, again.data.tags) == ("mit", ["colora", "multi-task", "support"])
    assert again.text.lstrip().startswith("# Support\n\nAsk billing first.\n\n<!-- colora")
    assert again.text.endswith("\nThanks to all.\n")
    assert done.names_left == [bank / "README.md"]
    model, _, info = load_bank(bank)
    save_bank(model, bank, info)
    assert ModelCard(text(bank)).text == again.text


def test_the_blank_form_of_an_earlier_save_goes_unless_it_was_filled_in(base, bank):
    """PEFT writes a long form; earlier versions left it in every bank."""
    model = get_peft_model(load_base(base)[0], LoraConfig(r=2, task_type="CAUSAL_LM"))
    for filled in (False, True):
        model.create_or_update_model_card(str(bank.parent))
        form = (bank.parent / "README.md").read_text(encoding="utf-8")
        form = form.replace("[More Information Needed]", "for the front desk", 1) if filled else form
        (bank / "README.md").write_text(form, encoding="utf-8")
        write_card(bank)
        assert ("[More Information Needed]" in text(bank)) is filled
        assert ("for the front desk" in text(bank)) is filled
        assert "3 tasks shared by one adapter" in text(bank)


def test_metadata_that_cannot_be_read_is_refused_and_nothing_changes(bank):
    (bank / "README.md").write_text("---\ntags: [a\n---\nmine\n", encoding="utf-8")
    before = content(bank)
    with pytest.raises(BankFileError, match=r"README.md: the metadata of this model card.*mend it, or remove the file"):
        merge_tasks(bank, "both", {"legal": 1})
    assert content(bank) == before


def test_a_long_list_of_tasks_is_cut(base, tmp_path):
    names = [f"user-{number}" for number in range(25)]
    folder = make_bank(tmp_path / "b", base, names)
    figures = [Figure(name, "rougeL", "test", float(number), 4) for number, name in enumerate(names)]
    write_card(folder, with_means(figures))
    assert [row[0] for row in rows(folder)[2:-1]] == names[:20]
    assert "and 5 more, which `colora tasks` lists." in text(folder)
    assert rows(folder)[-1][2] == "12 (100)"  # the mean is over all that were measured
    assert "user-20" not in text(folder)


def test_another_prompt_of_a_task_is_told(base, tmp_path):
    folder = make_bank(
        tmp_path / "b", base, prompts={"sales": None, "legal": "{input} -> {output}"}, chat_template=True
    )
    assert "A prompt is made with the template `'{instruction}\\nQ: {input}\\nA: {output}'`." in text(folder)
    assert "- legal: made with the template `'{input} -> {output}'`" in text(folder)
    assert "- sales: the tokenizer's chat template around one user turn" in text(folder)
