"""Banks and exported LoRAs on the hub, by the hub's own client against a stand-in on loopback."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model
from safetensors.torch import load

from colora import CoLoRAConfig
from colora.bank.card import write_card
from colora.bank.card_text import Figure
from colora.bank.hub import fetched, is_hub_name
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError
from colora.models.base import load_base
from tests.helpers.docs import ROOT
from tests.helpers.hub_program import MARK
from tests.helpers.hub_stand_in import hub
from tests.helpers.run_files import save_base

TASKS = ["legal", "billing", "sales"]


def run(server, folder, *arguments):
    """The JSON that a program printed, whose hub the stand-in is."""
    environment = os.environ | server.environment(folder / "home")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.hub_program", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=280, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    return json.loads(line.removeprefix(MARK))


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """What a program found that pushed a bank and fetched it, the hub's files, and the bank's folder."""
    folder = tmp_path_factory.mktemp("hub")
    base = save_base(folder / "base")
    torch.manual_seed(1)
    config = CoLoRAConfig(r=3, tasks=TASKS, init_weights=False, task_type="CAUSAL_LM")
    info = BankInfo(base=base, examples=dict.fromkeys(TASKS, 5), seen=dict.fromkeys(TASKS, 7), prompt="qa")
    bank = folder / "support" / "bank"
    save_bank(get_peft_model(load_base(base)[0], config), bank, info)
    write_card(bank, [Figure("legal", "rougeL", "test", 61.5, 8)])
    with hub() as server:
        found = run(server, folder, base, bank, folder)
        return found, {repo: server.files(repo) for repo in server.repos}, bank, server.requests


def card(files):
    return ModelCard(files["README.md"].decode())


def test_a_pushed_bank_gives_the_same_outputs(pushed):
    """By stock PEFT and an id on the hub, and by `load_bank`, to the bit."""
    found, repos, bank, requests = pushed
    assert found["same by PEFT"]
    assert found["same by load_bank"]
    assert repos["org/bank"].keys() - {".gitattributes"} == {path.name for path in bank.iterdir()}
    own, sent = SavedBank(bank), load(repos["org/bank"]["adapter_model.safetensors"])
    assert all(torch.equal(own[key], value) for key, value in sent.items())
    assert json.loads(repos["org/bank"]["adapter_config.json"])["weights_sha256"] == own.config.weights_sha256
    assert any(line.startswith("PUT /lfs/") for line in requests)


def test_prompts_and_quality_go_along_with_the_same_bank_alone(pushed):
    found, repos, bank, _ = pushed
    assert found["same info"]
    assert repos["org/bank"]["bank.json"] == (bank / "bank.json").read_bytes()
    (result,) = card(repos["org/bank"]).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("legal", "rougeL", 61.5)
    assert card(repos["org/bank"]).text.lstrip().startswith("# Support, by my own words\n\n<!-- colora")
    assert "bank.json" not in repos["org/changed"]
    assert card(repos["org/changed"]).data.eval_results is None
    assert "is not beside this file" in card(repos["org/changed"]).text


def test_an_exported_lora_is_loaded_from_the_hub_by_stock_peft(pushed):
    """Its card says of which bank and task it is, and its rank."""
    found, repos, bank, _ = pushed
    assert found["lora differs by"] < 1e-4
    for name in ("org/lora", "org/lora-again"):
        assert json.loads(repos[name]["adapter_config.json"])["peft_type"] == "LORA"
    text = card(repos["org/lora"]).text
    digest = SavedBank(bank).shared_sha256[:16]
    assert "Task `legal` of the CoLoRA bank `org/bank` with 3 tasks on `base`, as a plain LoRA of rank 3" in text
    assert f"have the digest `{digest}`" in text


def test_commands_take_a_bank_on_the_hub(pushed):
    found, _, bank, _ = pushed
    for command in ("tasks", "generate", "export", "merge"):
        assert found[command]["code"] == 0, found[command]
    assert all(task in found["tasks"]["out"] for task in TASKS)
    assert SavedBank(bank.parents[1] / "merged").tasks == [*TASKS, "new"]


@pytest.mark.parametrize("command", ["merge in place", "forget"])
def test_a_bank_on_the_hub_is_not_changed_in_place(pushed, command):
    told = pushed[0][command]
    assert told["code"] == 2
    assert "hf://org/bank: a bank on the hub is not changed in place" in told["err"].replace("\n", " ")
    assert "hf download org/bank --local-dir bank" in told["err"].replace("\n", " ")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no prefix", "no such folder; expected a bank, or a run that has ended; a bank on the Hugging Face hub is "
         "named hf://org/bank"),
        ("unknown", "hf://org/nobody: cannot be downloaded from the hub"),
        ("revision", "hf://org/bank: cannot be downloaded from the hub"),
    ],
)  # fmt: skip
def test_what_is_not_on_the_hub_is_refused_by_name(pushed, command, words):
    told = pushed[0][command]
    assert told["code"] == 2
    assert words in " ".join(told["err"].split())


def test_a_folder_that_looks_like_an_id_is_asked_of_nobody(pushed):
    """The stand-in was asked for org/bank by push and fetch alone; a bare name never leaves this machine."""
    assert not is_hub_name("org/bank")
    assert is_hub_name("hf://org/bank")


@pytest.mark.parametrize("name", ["hf://bank", "hf://org/bank/adapter_model.safetensors", "hf://"])
def test_what_is_no_name_of_a_bank_on_the_hub_is_refused(name):
    with pytest.raises(BankFileError, match="expected hf://ORG/BANK"):
        fetched(name)
