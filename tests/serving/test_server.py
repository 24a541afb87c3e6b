"""The server's answers: in OpenAI's form, and equal to those of `colora generate` whatever else is in the batch."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from colora.bank.generate import Request, generate_texts
from colora.models.decoding.sampling import Sampling
from tests.helpers.servers import TASKS, ask, make_bank, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

INPUTS = ("one", "two words", "three words here", "ünï€ode")


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def chat(server, *arguments, **fields):
    answer = server.http.post("/v1/chat/completions", json=ask(*arguments, **fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


def stripped(text):
    """Without half a character at the end: `generate` shows it as a replacement character, a stream leaves it out."""
    return text.rstrip("\ufffd ")


def events(server, path, body):
    """The events of a stream before the last, which must be [DONE]."""
    with server.http.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_other_requests_in_the_batch_change_no_answer(bank, server):
    """Many at once, of all tasks, greedy and sampled: each answer is that of the same request to `generate`, alone."""
    draw = random.Random(0)
    asked = [
        (draw.choice(TASKS), draw.choice(INPUTS), draw.choice([0.0, 0.8, 1.4]), draw.choice([1.0, 0.7]), number)
        for number in range(24)
    ]

    def answer(request):
        task, text, temperature, top_p, seed = request
        fields = {"temperature": temperature, "top_p": top_p, "seed": seed, "max_tokens": 3 + seed}
        return text_of(chat(server, task, text, **fields))

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(answer, asked))
    for (task, text, temperature, top_p, seed), output in zip(asked, found, strict=True):
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        assert generate_texts(bank, [Request(task, text)], 3 + seed, sampling=sampling) == [output]


def test_response_has_the_openai_form(server):
    whole = chat(server, "legal", "one", max_tokens=5, n=2, temperature=1, seed=3)
    assert (whole["object"], whole["model"]) == ("chat.completion", "legal")
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert {choice["finish_reason"] for choice in whole["choices"]} <= {"stop", "length"}
    first, second = (choice["message"]["content"] for choice in whole["choices"])
    assert first != second  # each choice has another seed
    again = chat(server, "legal", "one", max_tokens=5, temperature=1, seed=4)
    assert text_of(again) == second
    usage = whole["usage"]
    assert usage["completion_tokens"] <= 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("n", [1, 3])
def test_stream_adds_up_to_the_whole_answer(server, n):
    body = ask("billing", "two words", max_tokens=14, n=n, temperature=0.9, seed=1)
    whole = chat(
        server, "billing", "two words", **{key: body[key] for key in ("max_tokens", "n", "temperature", "seed")}
    )
    found = events(server, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    last = found.pop()
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len({event["id"] for event in found}) == 1
    for choice in whole["choices"]:
        streamed = [event["choices"][0] for event in found]
        chunks = [chunk for chunk in streamed if chunk["index"] == choice["index"]]
        assert chunks[0]["delta"]["role"] == "assistant"
        assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == choice["message"]["content"]
        assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [choice["finish_reason"]]


def test_stop_strings_end_an_answer_and_are_left_out(server):
    text = text_of(chat(server, "sales", "one", max_tokens=20))
    assert len(text) > 3
    stop = text[2]
    for strings in (stop, ["never there", stop]):
        short = chat(server, "sales", "one", max_tokens=20, stop=strings)["choices"][0]
        assert (short["message"]["content"], short["finish_reason"]) == (text[: text.index(stop)].strip(), "stop")


def test_completions_do_not_change_the_prompt(server):
    tokens = server.service.plain_prompt("one")
    assert tokens == server.service.tokenizer("one")["input_ids"]
    asked = {"model": "legal", "temperature": 0, "max_tokens": 8}
    found = {
        json.dumps(prompt, ensure_ascii=False): server.http.post(
            "/v1/completions", json=asked | {"prompt": prompt}
        ).json()
        for prompt in ("one", tokens, ["one", "ünï€ode"], [tokens, tokens])
    }
    texts = {prompt: [choice["text"] for choice in answer["choices"]] for prompt, answer in found.items()}
    (alone,) = texts['"one"']
    assert texts[json.dumps(tokens)] == [alone]
    assert texts[json.dumps([tokens, tokens])] == [alone, alone]
    assert texts['["one", "ünï€ode"]'][0] == alone != texts['["one", "ünï€ode"]'][1]
    streamed = events(server, "/v1/completions", asked | {"prompt": "one"})
    assert "".join(event["choices"][0]["text"] for event in streamed) == alone


def test_several_turns_follow_the_chat_template(server):
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = [{"role": role, "content": text} for role, text in turns]
    expected = server.service.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert server.service.chat_prompt("legal", None, [text for _, text in turns]) == expected
    found = chat(server, "legal", "", messages=messages)
    assert found["usage"]["prompt_tokens"] == len(expected)
    parts = [{"type": "text", "text": "thr"}, {"type": "text", "text": "ee"}]
    messages[-1]["content"] = parts
    assert chat(server, "legal", "", messages=messages)["choices"] == found["choices"]


def test_messages_of_one_role_that_follow_each_other_are_one_turn(server):
    def answer(*turns):
        messages = [{"role": role, "content": text} for role, text in turns]
        found = chat(server, "legal", "", messages=messages, max_tokens=9)
        return found["choices"], found["usage"]["prompt_tokens"]

    assert answer(("user", "one"), ("user", "two")) == answer(("user", "one\n\ntwo"))
    several = answer(("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d"), ("user", "e"))
    assert several == answer(("user", "a"), ("assistant", "b\n\nc"), ("user", "d\n\ne"))
    between = answer(("user", "one"), ("system", "Translate."), ("user", "two"))
    assert between == answer(("system", "Translate."), ("user", "one\n\ntwo"))


def test_without_a_chat_template_several_turns_are_refused(tmp_path):
    bank = make_bank(tmp_path, chat=False)
    (expected,) = generate_texts(bank, [Request("legal", "one")], 9)
    with serving(bank) as server:
        found = chat(server, "legal", "one", max_tokens=9)
        assert stripped(text_of(found)) == stripped(expected)
        messages = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
        answer = server.http.post("/v1/chat/completions", json=ask("legal", "", messages=messages))
    assert answer.status_code == 400
    assert "without a chat template" in answer.json()["error"]["message"]


# ---- the official client ---------------------------------------------------------------------------------------------


def test_openai_client_recognises_the_errors(client):
    messages = [{"role": "user", "content": "one"}]
    with pytest.raises(openai.NotFoundError, match="'nobody' does not exist"):
        client.chat.completions.create(model="nobody", messages=messages)
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        client.chat.completions.create(model="legal", messages=messages, temperature=9)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tools: not supported") as caught:
        client.chat.completions.create(model="legal", messages=messages, tools=[tool])
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(server, body, status, path="/v1/chat/completions"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_invalid_body_names_its_field(server):
    for body, field in [
        ({"messages": [{"role": "user", "content": "secret"}]}, "model"),
        ({"model": "legal"}, "messages"),
        (ask("legal", "secret", max_tokens="many"), "max_tokens"),
        (ask("legal", "secret", n=99), "n"),
        (ask("legal", "secret", stop=[""]), "stop"),
        ({"model": "legal", "messages": [{"role": "robot", "content": "secret"}]}, "messages.0.role"),
    ]:
        error = refused(server, body, 422)
        assert error["param"] == field
        assert field in error["message"]
        assert "secret" not in json.dumps(error)  # the error does not repeat what was sent
    assert "JSON" in refused(server, b'{"model": "legal", ', 422)["message"]
    for roles in (["assistant"], ["user", "assistant"], ["assistant", "user"], ["system"]):
        messages = [{"role": role, "content": "secret"} for role in roles]
        found = ", ".join(role for role in roles if role != "system") or "none of them"
        assert f"found {found}" in refused(server, ask("legal", "", messages=messages), 422)["message"]


def test_unsupported_fields_are_named(server):
    for field, value in [("echo", True), ("response_format", {"type": "json_object"}), ("logit_bias", {"5": 1})]:
        assert refused(server, ask("legal", "a", **{field: value}), 400)["param"] == field
    assert chat(server, "legal", "a", response_format={"type": "text"}, logprobs=False, user="me", max_tokens=1)


def test_too_long_prompt_is_refused_before_the_model_reads_it(server):
    before = server.metric("prompt_tokens")
    error = refused(server, ask("legal", "a" * server.service.positions), 400)
    assert error["code"] == "context_length_exceeded"
    assert f"at most {server.service.positions - 1} tokens" in error["message"]
    assert refused(server, {"model": "legal", "prompt": [5] * 600}, 400, "/v1/completions")["code"] == error["code"]
    assert refused(server, ask("legal", "a" * 2**20), 413)  # not even read
    in_parts = server.http.post("/v1/completions", content=iter([b"[" * 2**16] * 9))  # without a content length
    assert (in_parts.status_code, "at most" in in_parts.json()["error"]["message"]) == (413, True)
    assert server.metric("prompt_tokens") == before
    assert (
        "token ids from 0" in refused(server, {"model": "legal", "prompt": [10**6]}, 400, "/v1/completions")["message"]
    )
    assert "at least one token" in refused(server, {"model": "legal", "prompt": []}, 400, "/v1/completions")["message"]


def test_unknown_paths_methods_and_models(server):
    assert server.http.get("/v1/nothing").status_code == 404
    assert server.http.get("/v1/chat/completions").status_code == 405
    assert refused(server, ask("nobody", "a"), 404)["code"] == "model_not_found"
    assert server.http.get("/health").json() == {"status": "ok"}
