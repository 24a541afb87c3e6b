"""Log probabilities: those of the model's plain forward pass, in OpenAI's forms, whole and streamed."""

import json

import openai
import pytest
import torch

from colora.bank.load import load_bank
from colora.models.decoding.logprobs import token_logprobs
from colora.serving.logprobs import CompletionLogprobs, TokenBytes
from tests.helpers.servers import ask
from tests.helpers.tiny import byte_fallback_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def likelihoods(bank):
    """A function: the log probabilities (tokens, vocabulary) of an output after a prompt, by a plain forward pass."""
    model, _, _ = load_bank(bank)

    def of(task, prompt, tokens):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.inference_mode():
            logits = model(input_ids=ids, task_ids=torch.tensor([["legal", "billing", "sales"].index(task)])).logits[0]
        return logits.log_softmax(-1)[len(prompt) - 1 : -1]

    return of


def asked(server, path, **fields):
    body = ask("billing", "two words", max_tokens=9, **fields)
    if path == PLAIN:
        del body["messages"]
        body["prompt"] = "two words"
    answer = server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def tokens_of(server, whole):
    """The ids of an output's tokens: in the tiny vocabulary each is one byte."""
    names = server.service.token_bytes
    by_bytes = {names[token]: token for token in range(6, 262)}
    return [by_bytes[one] for one in whole]


@pytest.mark.parametrize("temperature", [0, 1.4])
def test_chat_has_the_log_probabilities_of_the_model(server, likelihoods, temperature):
    choice = asked(server, CHAT, logprobs=True, top_logprobs=4, temperature=temperature, seed=3).json()["choices"][0]
    content = choice["logprobs"]["content"]
    tokens = tokens_of(server, [bytes(one["bytes"]) for one in content])
    expected = likelihoods("billing", server.service.chat_prompt("billing", None, ["two words"]), tokens)
    for place, token, of_place in zip(content, tokens, expected, strict=True):
        assert place["logprob"] == pytest.approx(float(of_place[token]), abs=1e-4)
        values, best = of_place.topk(4)
        assert [one["logprob"] for one in place["top_logprobs"]] == pytest.approx(values.tolist(), abs=1e-4)
        assert [tuple(one["bytes"]) for one in place["top_logprobs"]] == [
            tuple(server.service.token_bytes[token]) for token in best.tolist()
        ]
        assert place["token"] == bytes(place["bytes"]).decode(errors="replace")
    text = b"".join(bytes(one["bytes"]) for one in content).decode(errors="replace")
    assert text.strip() == choice["message"]["content"]
    assert choice["logprobs"]["refusal"] is None


def test_completions_have_the_log_probabilities_of_the_model(server, likelihoods):
    choice = asked(server, PLAIN, logprobs=3).json()["choices"][0]
    found = choice["logprobs"]
    assert found.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    several = asked(server, CHAT, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [one["top_logprobs"] for one in several] == [[]] * len(several)
    prompt, tokens = server.service.plain_prompt("two words"), []
    while len(tokens) < len(found["tokens"]):  # the likeliest, one after the other
        tokens.append(int(likelihoods("billing", prompt, [*tokens, 0])[-1].argmax()))
    assert found["tokens"] == [server.service.token_bytes.text(token) for token in tokens]
    expected = likelihoods("billing", prompt, tokens)
    own = [float(of_place[token]) for of_place, token in zip(expected, tokens, strict=True)]
    assert found["token_logprobs"] == pytest.approx(own, abs=1e-4)
    assert all(len(one) <= 3 for one in found["top_logprobs"])
    for place, text in zip(found["text_offset"], found["tokens"], strict=True):
        assert "\ufffd" in text or choice["text"][place : place + len(text)] == text


def numbers(value):
    """All log probabilities within."""
    if isinstance(value, float):
        return [value]
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for one in within for number in numbers(one)]


def shown(value):
    """The same without them."""
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, list) else None if isinstance(value, float) else value


@pytest.mark.parametrize(("path", "fields"), [(CHAT, {"logprobs": True, "top_logprobs": 2}), (PLAIN, {"logprobs": 2})])
def test_a_stream_has_the_same_log_probabilities(server, path, fields):
    fields |= {"n": 2, "temperature": 1, "seed": 5}
    whole = asked(server, path, **fields).json()["choices"]
    streamed = [{} for _ in whole]
    for line in asked(server, path, stream=True, **fields).text.split("\n\n")[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            for key, value in (choice["logprobs"] or {}).items():
                if value is not None:
                    streamed[choice["index"]].setdefault(key, []).extend(value)
    for choice, found in zip(whole, streamed, strict=True):
        expected = {key: value for key, value in choice["logprobs"].items() if value is not None}
        assert shown(found) == shown(expected)
        assert numbers(found) == pytest.approx(numbers(expected), abs=1e-4)  # both rows may have been read in one pass


def test_without_being_asked_for_there_are_none(server):
    for path in (CHAT, PLAIN):
        assert asked(server, path).json()["choices"][0]["logprobs"] is None
        assert asked(server, path, logprobs=False).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"top_logprobs": 2}, None),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (PLAIN, {"logprobs": True}, "logprobs"),
        (PLAIN, {"logprobs": 21}, "logprobs"),
    ],
)
def test_what_cannot_be_is_refused(server, path, fields, param):
    body = (
        {"model": "legal", "messages": [{"role": "user", "content": "a"}]}
        if path == CHAT
        else {"model": "legal", "prompt": "a"}
    )
    answer = server.http.post(path, json=body | fields)
    assert answer.status_code == 422
    assert (answer.json()["error"]["param"] or "").startswith(param or "")
    assert "logprobs" in answer.json()["error"]["message"]


def test_openai_client_reads_them(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "one"}]
        chat = client.chat.completions.create(
            model="legal", messages=messages, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
        )
        places = chat.choices[0].logprobs.content
        assert len(places) == chat.usage.completion_tokens
        assert all(one.logprob == max(each.logprob for each in one.top_logprobs) for one in places)
        plain = client.completions.create(model="legal", prompt="one", max_tokens=3, temperature=0, logprobs=1)
        assert len(plain.choices[0].logprobs.tokens) == 3


def test_impossible_tokens_have_a_number_too():
    found = token_logprobs(torch.tensor([0.0, -torch.inf, -1.0]), 1, 5)
    assert found.logprob == -9999
    assert [token for token, _ in found.top] == [0, 2, 1]
    assert json.dumps(found.top, allow_nan=False)


def test_bytes_of_tokens_make_up_the_text():
    tokenizer = byte_fallback_tokenizer()
    names = TokenBytes(tokenizer)
    tokens = [
        tokenizer.convert_tokens_to_ids(one) for one in ("▁a", "<0xE0>", "<0xA4>", "<0x95>", "b", "<0x0A>", "»", "</s>")
    ]
    assert b"".join(names[token] for token in tokens) == " aकb\n»</s>".encode()
    form = CompletionLogprobs(names)
    offsets = form.of([token_logprobs(torch.zeros(268), token, 0) for token in tokens[:4]])["text_offset"]
    assert offsets == [0, 2, 2, 2]
    assert form.of([token_logprobs(torch.zeros(268), tokens[4], 0)])["text_offset"] == [3]


def test_a_character_that_is_never_ended_has_a_place_of_its_own():
    tokenizer = byte_fallback_tokenizer()
    tokens = [tokenizer.convert_tokens_to_ids(one) for one in ("<0xE0>", "<0xA4>", "b", "<0xE0>", "<0xE0>", "b")]
    places = [token_logprobs(torch.zeros(268), token, 0) for token in tokens]
    assert CompletionLogprobs(TokenBytes(tokenizer)).of(places)["text_offset"] == [0, 0, 1, 2, 3, 4]
    assert b"\xe0\xa4b\xe0\xe0b".decode(errors="replace") == "\ufffdb\ufffd\ufffdb"
