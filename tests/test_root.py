"""The package's root: it imports nothing heavy, teaches PEFT the bank in every order, and lists what is public."""

import ast
import re
import subprocess
import sys
import zipfile
from importlib.util import spec_from_file_location

import pytest

import colora
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.after_import import after_import
from colora.common.stub import stub_names
from tests.helpers.dense_oracle import make_bank, make_inputs
from tests.helpers.docs import doc
from tests.helpers.import_graph import SOURCE, imported, imports_of, modules
from tests.helpers.tiny import tiny_llama

HEAVY = {"torch", "peft", "transformers", "numpy", "pydantic", "rich", "asyncio"}


def outside(module: str) -> set[str]:
    """What a module of ours imports, libraries included."""
    (path,) = (path for path, name, _ in modules() if name == module)
    return {name for _, name in imported(ast.parse(path.read_text("utf-8")), module)}


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


@pytest.mark.parametrize(
    "command",
    [
        ["schema"],
        ["schema", "--json"],
        ["schema", "--experiment"],
        *(
            [*command, name]
            for command in (["check"], ["train"], ["compare"], ["federate", "simulate"])
            for name in ("nowhere.yaml", "wrong.yaml", "misspelt.yaml")
        ),
    ],
    ids=" ".join,
)
def test_a_faulty_run_file_and_the_schema_wait_for_nothing_heavy(command, tmp_path, monkeypatch):
    """What is wrong is told at once: torch, transformers and PEFT are imported for a run that can begin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("output: o\ntasks: [{path: a.jsonl}]\ntraining: {lerning_rate: 1}\n")
    (tmp_path / "misspelt.yaml").write_text("base: smollm\noutput: o\ntasks: [{path: a.jsonl}]\n")
    code = f"import sys\nfrom colora.cli.main import app\ntry: app({command})\n"
    *_, result = python(f"{code}except SystemExit as end: print(end.code, *sys.modules)").splitlines()
    code, *loaded = result.split()
    assert code == ("0" if command[0] == "schema" else "2")
    assert "pydantic" in loaded or "nowhere.yaml" in command  # so the file was held to its schema
    assert not {"torch", "peft", "transformers"} & set(loaded)


@pytest.mark.parametrize("command", ["evaluate BANK", "generate BANK hi", "export BANK out", "onboard BANK new.jsonl"])
def test_a_bank_that_is_not_there_is_told_of_before_the_imports_that_take_long(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = f"import sys\nfrom colora.cli.main import app\ntry: app({command.split()})\n"
    *_, result = python(f"{code}except SystemExit as end: print(end.code, *sys.modules)").splitlines()
    code, *loaded = result.split()
    assert code == "2"
    assert not {"torch", "peft", "transformers"} & set(loaded)


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


def test_peft_learns_of_the_bank_after_reloads_and_beside_other_threads(tmp_path):
    save_bank(make_bank(tiny_llama(), ["red", "blue"]), tmp_path / "bank", BankInfo(base=""))
    code = (
        "import copy, importlib, importlib.util, sys, threading, colora\n"
        "importlib.reload(colora)\n"
        "for name in [name for name in sys.modules if name.split('.')[0] == 'colora']: del sys.modules[name]\n"
        "import colora\n"
        "copy.deepcopy(importlib.util.find_spec('peft').loader)\n"
        "told = []\n"
        "def ask(name):\n"
        "    try: getattr(colora, name)\n"
        "    except BaseException as error: told.append(repr(error))\n"
        "names = ['CoLoRAConfig', 'load_bank', 'SavedBank', 'onboard']\n"
        "threads = [threading.Thread(target=ask, args=(name,)) for name in names]\n"
        "for thread in threads: thread.start()\n"
        "from peft import PeftConfig\n"
        f"found = PeftConfig.from_pretrained({str(tmp_path / 'bank')!r})\n"
        "for thread in threads: thread.join()\n"
        "print(told, type(found).__name__, found.tasks)"
    )
    assert python(code).strip() == "[] CoLoRAConfig ['red', 'blue']"


def test_packages_of_the_root_are_there_as_attributes():
    code = (
        "import colora\n"
        "try: raise colora.errors.BankFileError('x')\n"
        "except colora.ColoraError: pass\n"
        "colora.theory, colora.tasks, colora.algebra\n"
        "import sys\n"
        "print('peft' in sys.modules, '__version__' in dir(colora))"
    )
    assert python(code).split() == ["False", "True"]


def test_a_package_without_its_stub_says_so(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "__init__.py").write_text("")
    with pytest.raises(ImportError, match=r"__init__.pyi: missing; it belongs to bare: install or bundle .pyi files"):
        stub_names("bare", spec_from_file_location("bare", tmp_path / "bare" / "__init__.py"))


def test_the_root_is_imported_from_a_zip_file_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "colora.zip", "w") as file:
        for path in SOURCE.rglob("*.py*"):
            if path.suffix in (".py", ".pyi"):
                file.write(path, f"colora/{path.relative_to(SOURCE).as_posix()}")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'colora.zip')!r}); import colora\n"
    code += "print('colora.zip' in colora.__file__, colora.ColoraError.__name__, len(colora.__all__))"
    assert python(code).split() == ["True", "ColoraError", str(len(colora.__all__))]


def test_names_that_need_no_peft_do_not_import_it():
    """`_WITHOUT_PEFT` says which packages these are."""
    tops = {module.split(".")[1] for _, module, _ in modules() if "." in module}
    assert tops == {*colora._PACKAGES, "__main__"}
    for module, names in imports_of().items():
        if module.split(".")[1:2] and module.split(".")[1] in colora._WITHOUT_PEFT:
            packages = {name.split(".")[1] for name in names if "." in name}
            assert packages <= {*colora._WITHOUT_PEFT}, module
            assert "peft" not in {name.split(".")[0] for name in outside(module)}, module


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
