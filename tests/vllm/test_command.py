"""What `colora serve --engine vllm` starts."""

import importlib.util
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from colora.cli.main import app
from colora.errors import ConfigError
from colora.serving.access import add_tenant
from colora.serving.server import Listen
from colora.vllm.command import VllmOptions, vllm_command
from colora.vllm.settings import PluginSettings
from tests.helpers.servers import make_bank

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_bank(tmp_path_factory.mktemp("bank"))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_is_said_what_to_install(bank):
    result = RUNNER.invoke(app, ["serve", str(bank), "--engine", "vllm"])
    assert result.exit_code == 2
    assert "make install-vllm" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "sglang"], "expected colora or vllm, found sglang"),
        (["--engine", "vllm", "--threads", "2"], "--threads: not available with --engine vllm"),
        (["--tensor-parallel-size", "2"], "need --engine vllm"),
    ],
)
def test_options_of_the_other_engine_are_refused(bank, arguments, message):
    result = RUNNER.invoke(app, ["serve", str(bank), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.fixture
def installed(monkeypatch):
    """As if vLLM were here: the command is made, and not run."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("torch" if name == "vllm" else name))


def test_the_command_has_what_the_options_say(installed, bank, tmp_path):
    add_tenant(tmp_path / "keys.json", "acme", ["*"])
    options = VllmOptions(bank, state=tmp_path / "state", resident=7, max_tokens=9, own=("--seed", "3"), rows=5)
    command, environment = vllm_command(options, Listen(port=1234, keys=tmp_path / "keys.json"), {"HOME": "/home"})
    said = dict(pairwise(command))
    assert (said["--max-loras"], said["--max-lora-rank"], said["--port"], said["--seed"]) == ("7", "8", "1234", "3")
    assert (said["--max-num-seqs"], "--max-model-len" in said, "--dtype" in said) == ("5", False, False)
    assert '"max_new_tokens": 9' in said["--override-generation-config"]
    assert environment["COLORA_BANK"] == str(bank.resolve())
    assert environment["COLORA_PAGE"] == "on"
    assert environment["COLORA_STATE"] == str((tmp_path / "state").resolve())
    assert environment["COLORA_KEYS"] == str((tmp_path / "keys.json").resolve())
    assert environment["HOME"] == "/home"


def test_a_damaged_file_of_keys_is_told_at_the_start(installed, bank, tmp_path):
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigError, match=r"keys\.json"):
        vllm_command(VllmOptions(bank), Listen(port=1, keys=tmp_path / "keys.json"))


@pytest.mark.parametrize(
    "own", [("--max-loras", "3"), ("--max_loras=3",), ("--model=x",), ("--enable-lora",), ("--root-path", "/x")]
)
def test_what_colora_sets_cannot_be_set_again(installed, bank, own):
    with pytest.raises(ConfigError, match="colora serve sets"):
        vllm_command(VllmOptions(bank, own=own), Listen(port=1))


def test_a_task_with_the_name_of_the_base_is_told_at_the_start(installed, tmp_path):
    bank = make_bank(tmp_path, ("legal", "smollm2"))
    with pytest.raises(ConfigError, match="which is the name of the base"):
        vllm_command(VllmOptions(bank, base="smollm2"), Listen(port=1234), {})
    command, _ = vllm_command(VllmOptions(bank), Listen(port=1234), {})
    assert dict(pairwise(command))["--served-model-name"] == str(tmp_path / "base-0")


@pytest.mark.parametrize("page", [True, False])
def test_whether_there_is_a_page_reaches_the_gate_by_the_environment(installed, bank, page):
    _, environment = vllm_command(VllmOptions(bank), Listen(port=1234, page=page), {})
    assert PluginSettings.from_environment(environment).page is page


def test_a_page_that_is_neither_on_nor_off_is_refused():
    with pytest.raises(ConfigError, match="COLORA_PAGE: expected on or off, found 'no'"):
        PluginSettings.from_environment({"COLORA_BANK": "bank", "COLORA_PAGE": "no"})
