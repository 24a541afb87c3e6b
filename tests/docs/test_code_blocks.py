"""The code of the pages runs: Python on tiny models, in place of those that are named; YAML files are read and checked.

The tutorial, the README and the page on the theory have tests of their own.
"""

import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from torch.utils.data import DataLoader

import colora
from colora.experiments.load import load_experiment
from colora.theory.experiments.config import load_recovery
from colora.training.config_file import load_config
from tests.helpers.docs import ROOT, blocks, doc
from tests.helpers.run_files import save_base
from tests.helpers.servers import make_bank, serving
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

ELSEWHERE = {"tutorial.md": "test_tutorial.py", "theory.md": "../theory/test_page.py"}
RUN_HERE = {"large-bases.md", "many-tasks.md", "python.md", "serving.md", "trl.md"}
PAGES = [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
YAML = [(page, block.code) for page in PAGES for block in blocks(doc(page)) if block.language == "yaml"]


def python_blocks(page: str) -> list[str]:
    return [block.code for block in blocks(doc(page)) if block.language == "python"]


def run(page: str, code: str, names: dict[str, object]) -> None:
    """Run a block with what the page takes for granted; what it makes is in `names` afterwards."""
    exec(compile(code, page, "exec"), names)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_page_with_python_has_a_test():
    assert {page for page in PAGES if python_blocks(page)} == RUN_HERE | set(ELSEWHERE)


def test_python_page(here):
    code, pipeline = python_blocks("python.md")
    base = save_base(here / "base")
    row = torch.tensor([[5, 6, 7]])
    names = {
        "batch": {"input_ids": row.repeat(3, 1)},
        "prompts": {"input_ids": row.repeat(2, 1), "max_new_tokens": 2},
        "fresh_base": tiny_llama(),
    }
    run("python.md", code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", base), names)
    assert sorted(names["core"])  # of each layer
    assert type(names["merged"]).__name__ == "LlamaForCausalLM"
    tiny_tokenizer().save_pretrained(here / "bank")
    run("python.md", pipeline, {})


def test_many_tasks_page(here):
    loop, loading = python_blocks("many-tasks.md")
    model = get_peft_model(tiny_llama(), colora.CoLoRAConfig(r=2, tasks=["user"], task_type="CAUSAL_LM"))
    rows = [{"input_ids": torch.tensor([5, 6, n]), "labels": torch.tensor([5, 6, n])} for n in range(7, 11)]
    rows = [row | {"task_ids": torch.tensor(number)} for number, row in enumerate(rows)]
    names = {"colora": colora, "model": model, "loader": DataLoader(rows, batch_size=2)}
    small = loop.replace("1_000_000", "9").replace("% 100", "% 2")
    run("many-tasks.md", small, names)
    assert (here / "runs" / "x" / "checkpoint-2").is_dir()
    base = save_base(here / "base")
    colora.save_bank(model, here / "runs" / "users", colora.BankInfo(base=base))
    run("many-tasks.md", loading, names)
    assert list(names["model"].base_model.tasks) == ["user-7", "user-8"]
    assert sorted(names["core"])


def test_large_bases_page(here):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'colora[quantized]'")
    save_base(here / "a-large-model", tiny_llama(hidden=64))
    (code,) = python_blocks("large-bases.md")
    run("large-bases.md", code, {})
    assert (here / "a-large-model-4bit" / "config.json").is_file()


def test_serving_page(here):
    client, loras = python_blocks("serving.md")
    bank = make_bank(here / "made")
    names: dict[str, object] = {}
    with serving(bank) as server:
        run("serving.md", client.replace("http://127.0.0.1:8000", server.url), names)
    assert names["answer"].choices[0].message.role == "assistant"
    model, tokenizer, _ = colora.load_bank(bank)
    colora.export_loras(model, Path("loras"))
    from peft import PeftModel

    base, _ = colora.load_base(colora.SavedBank(bank).info.base)
    batch = tokenizer(["one", "two"], return_tensors="pt", padding=True)
    run("serving.md", loras, {"PeftModel": PeftModel, "base": base, "batch": batch | {"max_new_tokens": 2}})


def test_trl_page(here):
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'colora[recipes]'")
    from datasets import Dataset

    sft, packing = python_blocks("trl.md")
    tokenizer = tiny_tokenizer()
    model = get_peft_model(tiny_llama(), colora.CoLoRAConfig(r=2, tasks=["legal", "sales"], task_type="CAUSAL_LM"))
    rows = Dataset.from_dict({"text": ["one", "number two"], "task_ids": ["legal", "sales"]})
    few = "remove_unused_columns=False, use_cpu=True, bf16=False, max_steps=1, report_to=[], save_strategy='no'"
    names = {"model": model, "rows": rows, "tokenizer": tokenizer}
    run("trl.md", sft.replace("remove_unused_columns=False", few), names)
    assert names["trainer"].state.global_step == 1
    tokens = Dataset.from_dict({"input_ids": [[5, 6], [7]], "labels": [[5, 6], [7]], "task_ids": [0, 1]})
    run("trl.md", packing.replace("remove_unused_columns=False", few), names | {"rows": tokens})


@pytest.mark.parametrize(("page", "code"), YAML, ids=[page for page, _ in YAML])
def test_yaml_is_read_and_checked(page, code, here):
    """A part of a run file is completed by what every run file needs."""
    fields = yaml.safe_load(code)
    file = here / "file.yaml"
    if "methods" in fields:
        file.write_text(code, "utf-8")
        (load_recovery if "problem" in fields else load_experiment)(file)
        return
    needed = {"output": "runs/x"} | ({} if "tasks_from" in fields else {"tasks": [{"path": "a.jsonl"}]})
    file.write_text(yaml.safe_dump(needed | fields), "utf-8")
    config = load_config(file)
    assert config.output
    assert re.search(r"^\w+:", code, re.MULTILINE)
