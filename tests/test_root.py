"""The package's root: it imports nothing heavy, teaches PEFT the bank in every order, and lists what is public."""

import re
import subprocess
import sys

import pytest

import colora
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.after_import import after_import
from tests.helpers.dense_oracle import make_bank, make_inputs
from tests.helpers.docs import doc
from tests.helpers.import_graph import SOURCE
from tests.helpers.tiny import tiny_llama

HEAVY = {"torch", "peft", "transformers", "numpy", "pydantic", "rich", "asyncio"}


def python(code: str) -> str:
    """What a Python of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_root_imports_nothing_heavy():
    loaded = python("import sys, colora; print(*sys.modules)").split()
    assert "colora" in loaded
    assert not HEAVY & set(loaded)


def test_the_commands_import_nothing_heavy():
    loaded = python("import sys, colora.cli.main; print(*sys.modules)").split()
    assert "typer" in loaded
    assert not {"torch", "peft", "transformers", "numpy", "pydantic"} & set(loaded)
    assert not {name for name in loaded if name.startswith(("rich.markdown", "rich.table"))}


@pytest.mark.parametrize("order", ["import colora, peft", "import peft, colora"])
def test_peft_loads_a_bank_in_either_order(order, tmp_path):
    model = make_bank(tiny_llama(), ["red", "blue"], task_type="CAUSAL_LM")
    save_bank(model, tmp_path / "bank", BankInfo(base=""))
    tiny_llama().save_pretrained(tmp_path / "base")
    expected = model(**make_inputs(rows=2), task_ids=["blue", "red"]).logits.detach()
    code = (
        f"{order}\nimport torch\nfrom transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'base')!r})\n"
        f"model = peft.PeftModel.from_pretrained(base, {str(tmp_path / 'bank')!r})\n"
        f"ids = torch.tensor({make_inputs(rows=2)['input_ids'].tolist()})\n"
        "logits = model(input_ids=ids, task_ids=['blue', 'red']).logits\n"
        "print(float(logits.double().sum()), type(model.peft_config['default']) is colora.CoLoRAConfig)"
    )
    total, same = python(code).split()
    assert float(total) == pytest.approx(float(expected.double().sum()), rel=1e-4)
    assert same == "True"


def test_whichever_of_our_modules_comes_first_peft_learns_of_the_bank():
    # Those that import PEFT themselves before anything of ours, and one that is far above it.
    modules = sorted(
        f"colora.adapter.{path.stem}"
        for path in (SOURCE / "adapter").glob("*.py")
        if re.search(r"^(from|import) peft\b", path.read_text("utf-8"), flags=re.MULTILINE)
    )
    assert len(modules) > 3
    code = (
        "import os, sys, accelerate, torch\n"
        "from transformers import AutoModel, AutoTokenizer, PreTrainedModel\n"  # what takes long, once for all
        "from importlib import import_module\n"
        f"for name in {[*modules, 'colora.bank.tensors']}:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        import_module(name)\n"
        "        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known\n"
        "        os._exit(0 if known.get('COLORA').__name__ == 'CoLoRAModel' else 1)\n"
        "    if os.waitpid(child, 0)[1]: print(name)\n"
    )
    assert python(code) == ""


def test_what_is_to_be_done_after_an_import_is_done_once(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = []
    after_import("late_module", lambda: seen.append(sys.modules["late_module"].value))
    assert seen == []
    import late_module

    assert seen == [1]
    after_import("late_module", lambda: seen.append(2))
    assert seen == [1, 2]
    del sys.modules["late_module"]
    import late_module  # noqa: F811

    assert seen == [1, 2]
    assert late_module.__spec__.loader.get_source("late_module") == "value = 1\n"


def test_every_public_name_is_there_and_in_the_docs():
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", doc("api.md"), flags=re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(colora.__all__)
    assert all(text.strip() for _, text in listed)
    for name in colora.__all__:
        assert getattr(colora, name).__module__.startswith("colora.")
    assert set(colora.__all__) <= set(dir(colora))


def test_a_name_that_is_none_is_refused():
    with pytest.raises(AttributeError, match="CoLoRaConfig"):
        colora.CoLoRaConfig  # noqa: B018
