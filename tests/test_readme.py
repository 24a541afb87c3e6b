"""What the README says is what happens: its example runs, its figures are those of the records."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.demo import summary_markdown
from benchmarks.step import summary_markdown as step_markdown
from colora.evaluation.records import read_records
from tiny import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    return README.split(f"<!-- from the records: {name} -->\n")[1].split("\n<!-- end -->")[0]


def test_the_example_runs_and_leaves_plain_loras(tmp_path, monkeypatch, capsys):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace('"smollm2"', '"base"'), "README.md", "exec"), {})
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == ["casual", "formal", "polite"]
    assert (tmp_path / "loras" / "polite" / "adapter_model.safetensors").is_file()
    assert capsys.readouterr().out.startswith("[")


def test_the_demo_table_is_that_of_the_records():
    assert between("benchmarks.demo") == summary_markdown(read_records(ROOT / "benchmarks" / "records" / "demo.jsonl"))


def test_the_cost_table_is_that_of_the_record():
    record = json.loads((ROOT / "benchmarks" / "records" / "step.json").read_text(encoding="utf-8"))
    assert between("benchmarks.step") == step_markdown(record)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
