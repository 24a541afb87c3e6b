"""Chats with tasks that have prompts of their own: the tokens of training, and nothing dropped in silence."""

import json
import shutil

import pytest

from colora.bank.core_file import extract_core
from colora.bank.generate import Request, generate_texts
from colora.bank.layout import read_bank_info
from colora.models.base import load_base
from colora.serving.onboarding import write_start_bank
from colora.serving.store import CoreStore
from colora.tasks.encode import encode_causal
from colora.tasks.schema import Example
from tests.helpers.servers import ask, make_bank, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QA = "Q: {input}\nA: {output}"
NAMED = "{instruction}\nQ: {input}\nA: {output}"


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = make_bank(tmp_path_factory.mktemp("bank"))
    prompt(folder, prompt=QA, prompts={"billing": NAMED, "sales": None})
    return folder


@pytest.fixture(scope="module")
def server(bank):
    with serving(bank) as running:
        yield running


def prompt(folder, **fields):
    file = folder / "bank.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def trained_ids(bank, task, text, instruction=None):
    """The prompt's ids as training makes them."""
    info = read_bank_info(bank)
    row = encode_causal(Example(text, ("x",), instruction, template=info.template(task)), load_base(info.base)[1], 96)
    return row.input_ids[: row.labels.count(-100)]


def chat(server, task, *messages, **fields):
    turns = [{"role": role, "content": text} for role, text in messages]
    return server.http.post("/v1/chat/completions", json=ask(task, "") | {"messages": turns, "max_tokens": 6} | fields)


@pytest.mark.parametrize(
    ("task", "instruction"), [("legal", None), ("billing", None), ("billing", "Say it."), ("sales", "Say it.")]
)
def test_a_chat_has_the_ids_of_training_and_the_output_of_generate(bank, server, task, instruction):
    messages = [("system", instruction)] * (instruction is not None) + [("user", "one {input}")]
    answer = chat(server, task, *messages)
    assert answer.status_code == 200, answer.text
    ids = trained_ids(bank, task, "one {input}", instruction)
    assert server.service.chat_prompt(task, instruction, ["one {input}"]) == ids
    assert answer.json()["usage"]["prompt_tokens"] == len(ids)
    expected = generate_texts(bank, [Request(task, "one {input}", instruction)], 6)[0]
    assert answer.json()["choices"][0]["message"]["content"] == expected


def test_earlier_turns_are_refused_where_the_prompt_has_no_place_for_them(server):
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    answer = chat(server, "legal", *turns)
    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert "found a conversation of 3 turns" in told
    assert "give the last alone" in told
    assert chat(server, "sales", *turns).status_code == 200  # of the chat template
    # Messages of one role that follow each other are one turn.
    assert chat(server, "legal", ("user", "one"), ("user", "two")).status_code == 200


def test_a_system_message_is_refused_where_the_prompt_has_no_place_for_it(server):
    answer = chat(server, "legal", ("system", "Say it."), ("user", "one"))
    assert answer.status_code == 400
    assert f"the prompt {QA!r} has no {{instruction}}" in answer.json()["error"]["message"]


def test_plain_completions_are_left_alone(server):
    body = {"model": "legal", "prompt": "Q: one\nA:", "temperature": 0, "max_tokens": 6}
    answer = server.http.post("/v1/completions", json=body).json()
    text = chat(server, "legal", ("user", "one")).json()["choices"][0]["message"]["content"]
    assert answer["choices"][0]["text"].strip() == text
    alone = server.http.post("/v1/completions", json=body | {"prompt": "one"}).json()
    assert alone["usage"]["prompt_tokens"] == 3


def test_a_core_brings_its_prompt_and_keeps_it(bank, tmp_path):
    extract_core(bank, "billing", tmp_path / "core")
    content = (tmp_path / "core").read_bytes()
    with serving(bank, state=tmp_path / "state") as server:
        assert server.http.put("/v1/tasks/new/core", content=content).status_code == 201
        assert server.http.put("/v1/tasks/legal/core", content=content).status_code == 200
        for task in ("new", "legal"):
            assert server.service.chat_prompt(task, "Say it.", ["one"]) == trained_ids(
                bank, "billing", "one", "Say it."
            )
        assert server.http.get("/v1/tasks/new/core").content.count(b"instruction") == 1
    with serving(bank, state=tmp_path / "state") as server:  # after a restart
        assert server.service.chat_prompt("new", "Say it.", ["one"]) == trained_ids(bank, "billing", "one", "Say it.")
        assert server.http.delete("/v1/models/new").status_code == 200
        assert chat(server, "new", ("user", "one")).status_code == 404


def test_onboarding_on_a_server_begins_with_the_prompt_of_the_bank(bank, tmp_path):
    write_start_bank(CoreStore(bank), ["new"], tmp_path / "start")
    info = read_bank_info(tmp_path / "start")
    assert (info.prompt, info.prompts) == (QA, {})


def test_a_newer_bank_may_have_other_prompts(bank, tmp_path):
    shutil.copytree(bank, tmp_path / "bank")
    with serving(tmp_path / "bank") as server:
        prompt(tmp_path / "bank", prompt=NAMED)
        assert server.service.chat_prompt("legal", None, ["one"]) == trained_ids(bank, "legal", "one")
        server.service.reload()
        ids = server.service.chat_prompt("legal", "Say it.", ["one"])
        assert ids == trained_ids(tmp_path / "bank", "legal", "one", "Say it.")
