"""What both servers answer: in OpenAI's form, as `colora generate` has it, whatever else is in the batch."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from colora.bank.generate import Request, generate_texts
from tests.helpers.servers import TASKS, ask

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

INPUTS = ("one", "two words", "three words here", "ünï€ode")


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def chat(server, task, text, **fields):
    answer = server.http.post("/v1/chat/completions", json=ask(task, text, **{"max_tokens": 10} | fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


def test_answers_equal_generate_for_every_task(bank, server):
    requests = [Request(task, text) for task in TASKS for text in INPUTS]
    expected = generate_texts(bank, requests, 10)
    assert len(set(expected)) == len(requests)
    assert [text_of(chat(server, one.task, one.input)) for one in requests] == expected


def test_sixty_four_at_once_equal_generate_one_by_one(bank, server):
    draw = random.Random(0)
    asked = [(draw.choice(TASKS), draw.choice(INPUTS), draw.randrange(3, 30)) for _ in range(64)]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda one: text_of(chat(server, one[0], one[1], max_tokens=one[2])), asked))
    assert found == [generate_texts(bank, [Request(task, text)], tokens)[0] for task, text, tokens in asked]


def test_instruction_of_system_or_developer_equals_generate(bank, server):
    (expected,) = generate_texts(bank, [Request("legal", "one", "Translate.")], 9)
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Translate."}, {"role": "user", "content": "one"}]
        assert text_of(chat(server, "legal", "", messages=messages, max_tokens=9)) == expected


def test_turns_that_follow_each_other_are_one(server):
    def answer(*turns):
        found = chat(server, "legal", "", messages=[{"role": role, "content": text} for role, text in turns])
        return text_of(found), found["usage"]["prompt_tokens"]

    assert answer(("user", "one"), ("user", "two")) == answer(("user", "one\n\ntwo"))
    assert answer(("user", "a"), ("assistant", "b"), ("user", "c")) != answer(("user", "c"))


def test_stop_strings_end_an_answer_and_are_left_out(server):
    text = text_of(chat(server, "sales", "one", max_tokens=20))
    stop = text[3:5]
    for strings in (stop, ["never there", stop]):
        short = chat(server, "sales", "one", max_tokens=20, stop=strings)["choices"][0]
        assert (short["message"]["content"], short["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_answers_have_the_length_that_was_asked_for(server):
    for fields in ({"max_tokens": 7}, {"max_completion_tokens": 7, "max_tokens": None}):
        answer = chat(server, "legal", "one", **fields)
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (7, "length")


def test_completions_are_what_follows_the_prompt(server):
    asked = {"model": "legal", "temperature": 0, "max_tokens": 8}

    def texts(prompt):
        answer = server.http.post("/v1/completions", json=asked | {"prompt": prompt})
        assert answer.status_code == 200, answer.text
        return [choice["text"] for choice in answer.json()["choices"]]

    (alone,) = texts("one")
    assert texts(["one", "ünï€ode"])[0] == alone != texts("ünï€ode")[0]
    assert alone != text_of(chat(server, "legal", "one", max_tokens=8))  # which has the chat template


def test_openai_client_reads_the_answers(server, client):
    assert [model.id for model in client.models.list()] == list(TASKS)
    assert client.models.retrieve("legal").id == "legal"
    messages = [{"role": "user", "content": "one"}]
    asked = {"model": "legal", "messages": messages, "temperature": 0, "max_tokens": 9}
    answer = client.chat.completions.create(**asked)
    text = answer.choices[0].message.content
    assert text == text_of(chat(server, "legal", "one", max_tokens=9))
    assert (answer.usage.completion_tokens, answer.model) == (9, "legal")
    stream = client.chat.completions.create(**asked, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in stream) == text
    plain = {"model": "sales", "prompt": "one", "temperature": 0, "max_tokens": 5}
    whole = client.completions.create(**plain).choices[0].text
    assert "".join(event.choices[0].text for event in client.completions.create(**plain, stream=True)) == whole


def test_openai_client_recognises_the_errors(client):
    messages = [{"role": "user", "content": "one"}]
    with pytest.raises(openai.NotFoundError, match="'nobody' does not exist"):
        client.chat.completions.create(model="nobody", messages=messages)
    with pytest.raises(openai.APIStatusError, match="temperature") as caught:
        client.chat.completions.create(model="legal", messages=messages, temperature=-9)
    assert caught.value.status_code in (400, 422)


def test_models_come_page_by_page(server):
    def page(**query):
        answer = server.http.get("/v1/models", params=query)
        assert answer.status_code == 200, answer.text
        return [model["id"] for model in answer.json()["data"]], answer.json()["has_more"]

    assert page() == (list(TASKS), False)
    assert page(limit=2) == (list(TASKS[:2]), True)
    assert page(limit=2, after=TASKS[1]) == ([TASKS[2]], False)
    assert page(limit=1, after=TASKS[2]) == ([], False)
    assert page(search="L") == (list(TASKS), False)
    assert page(search="LL", limit=1) == (["billing"], False)
    assert page(search="l", limit=1, after="billing") == (["sales"], False)
    assert page(search="nobody") == ([], False)
    for query, status in (
        ({"search": "a" * 201}, 422),
        ({"limit": 0}, 422),
        ({"limit": "x"}, 422),
        ({"after": "nobody"}, 404),
        ({"first": 1}, 400),
    ):
        answer = server.http.get("/v1/models", params=query)
        (name, value), *_ = query.items()
        assert (answer.status_code, name in answer.text or str(value) in answer.text) == (status, True), answer.text


def test_a_prompt_that_is_too_long_is_refused(server):
    for length in (600, 5000):
        answer = server.http.post("/v1/chat/completions", json=ask("legal", "a" * length))
        assert answer.status_code == 400, answer.text
        assert "tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content", [b'{"model": "legal", ', b"[]", b'{"model": 3}', b'{"messages": []}', b"\xff", json.dumps([[]]).encode()]
)
def test_what_is_no_request_is_refused(server, content):
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["message"]


def test_unknown_paths_are_not_found(server):
    assert server.http.get("/v1/nothing").status_code == 404
    assert server.http.get("/v1/models/nobody").status_code == 404
    assert server.http.get("/health").status_code == 200


def test_what_is_too_much_is_refused(server):
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = server.http.post(path, json={"model": "legal", "prompt": "a" * 10**6})
        assert answer.status_code == 413
        packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert server.http.post(path, content=b"{}", headers=packed).status_code == 415


def test_there_are_no_web_sockets(server):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    for path in ("/v1/realtime", "/v1/chat/completions"):
        assert 400 <= server.http.get(path, headers=upgrade | key).status_code < 500


def test_a_streamed_answer_is_the_whole_one(server):
    """White space inside it included: the tiny model says much of that."""
    for seed in range(4):
        body = ask("legal", "one two", max_tokens=60, temperature=1, seed=seed)
        whole = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        streamed = ""
        with server.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    streamed += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
        assert streamed == whole
