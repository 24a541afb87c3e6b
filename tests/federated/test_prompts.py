"""One prompt for all clients of a federation: it travels with what they agree on, and is kept in every bank."""

import pytest

pytest.importorskip("flwr")

import tomllib

from colora.bank.layout import read_bank_info
from colora.errors import ConfigError
from colora.federated.client import Client
from colora.federated.launch import write_app
from colora.federated.protocol import broadcast, init
from colora.federated.simulate import simulate
from colora.models.base import load_base
from colora.tasks.encode import prompt_and_answer
from colora.tasks.schema import TaskSource
from colora.training.config import FederationConfig
from colora.training.config_file import load_config, load_federation
from colora.training.measure import evaluate_bank
from tests.helpers.run_files import run_file, save_base, write_task

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QA = 'Q: "{input}"\nA: {output}'
FAST = {"rounds": 1, "rows": 2, "finish_steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def test_a_simulated_federation_trains_and_measures_with_its_prompt(base, tmp_path):
    config = load_config(run_file(tmp_path, base, prompt=QA, federation=FAST))
    measured = simulate(config)
    assert read_bank_info(tmp_path / "out" / "bank").prompt == QA
    again = evaluate_bank(tmp_path / "out", progress=False)
    assert [one.value for one in again.records] == [one.value for one in measured.records]
    plain = simulate(load_config(tmp_path / "run.yaml", ["prompt=null", f"output={tmp_path / 'plain'}"]))
    assert [one.value for one in plain.records] != [one.value for one in measured.records]


def test_what_is_agreed_on_arrives_as_it_was_written(base, tmp_path):
    config = load_federation(run_file(tmp_path, base, prompt=QA))
    write_app(tmp_path / "app", {"colora": config.model_dump_json(), "folder": "x"})
    sent = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]["colora"]
    assert FederationConfig.model_validate_json(sent).prompt == QA


def test_a_client_trains_with_the_prompt_of_the_federation_and_keeps_it(base, tmp_path):
    config = load_federation(run_file(tmp_path, base, prompt=QA, federation=FAST))
    source = TaskSource(path=str(tmp_path / write_task(tmp_path, "red")), val=0, test=0)
    client = Client(config, source, tmp_path / "state")
    prompt, answer = map(load_base(base)[1].decode, prompt_and_answer(client.data.rows[0]))
    assert (prompt, answer) == ('Q: "red 0"\nA:', " rot</s>")
    state = init("0" * 32, client.local)
    folder = client.finish(broadcast(state, "client", client.local.start_digests))
    assert read_bank_info(folder).template("red").text == QA


def test_a_client_whose_texts_have_no_place_says_so(base, tmp_path):
    config = load_federation(run_file(tmp_path, base, prompt=QA))
    file = tmp_path / write_task(tmp_path, "red", instruction="Say it.")
    with pytest.raises(ConfigError, match=r"prompt: task 'red', train example 1: found the instruction 'Say it.'"):
        Client(config, TaskSource(path=str(file), val=0, test=0), tmp_path / "state")


def test_a_federation_cannot_ask_for_a_chat_template_that_there_is_not(tmp_path):
    base = save_base(tmp_path / "base", chat=False)
    path = run_file(tmp_path, base, prompt="chat", federation=FAST)
    with pytest.raises(ConfigError, match="prompt: chat: the tokenizer of the base has no chat template"):
        simulate(load_config(path))
    with pytest.raises(ConfigError, match="prompt: chat asks for what chat_template: false switches off"):
        load_federation(path, ["chat_template=false"])
