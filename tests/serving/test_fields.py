"""What requests may say: fields that ask for nothing pass, others are done or refused by name, and text is text."""

import json

import pytest

from tests.helpers.servers import ask

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def body(path, **fields):
    asked = ask("legal", "one", max_tokens=2)
    if path == PLAIN:
        del asked["messages"]
        asked["prompt"] = "one"
    return asked | fields


def sent(server, path, content, kind="application/json"):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return server.http.post(path, content=content, headers={"Content-Type": kind})


ASK_FOR_NOTHING = {
    "tools": [], "functions": [], "tool_choice": "none", "function_call": "none", "best_of": 1, "logit_bias": {},
    "top_logprobs": 0, "response_format": {"type": "text"}, "repetition_penalty": 1.0, "min_p": 0, "typical_p": 1,
    "length_penalty": 1.0, "min_tokens": 0, "ignore_eos": False, "use_beam_search": False, "stop_token_ids": [],
    "skip_special_tokens": True, "include_stop_str_in_output": False, "guided_json": None, "structured_outputs": None,
    "echo": False, "suffix": None, "presence_penalty": 0, "top_k": -1, "stream_options": None,
    "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True,
    "safety_identifier": "x", "prompt_cache_key": "y", "anything_at_all": None,
    "prediction": {"type": "content", "content": "one"}, "cache_prompt": True, "repeat_last_n": 64, "dry_base": 1.75,
    "mirostat": 0, "mirostat_tau": 5.0, "n_predict": -1, "grammar": "", "lora": [], "return_full_text": False,
    "spaces_between_special_tokens": True, "include_reasoning": True, "num_beam_groups": 1, "watermark": False,
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_fields_that_ask_for_nothing_are_let_through(server, path):
    plain = sent(server, path, body(path)).json()["choices"]
    answer = sent(server, path, body(path, **ASK_FOR_NOTHING))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain
    assert sent(server, path, body(path, n=3, best_of=3)).status_code == 200


def test_fields_of_one_path_that_ask_for_nothing_there(server):
    chat = {"logprobs": False, "chat_template_kwargs": {}, "add_generation_prompt": True, "modalities": ["text"]}
    assert sent(server, CHAT, body(CHAT, **chat)).status_code == 200
    plain = {"logprobs": None, "suffix": "", "add_special_tokens": True}
    assert sent(server, PLAIN, body(PLAIN, **plain)).status_code == 200


WOULD_CHANGE_THE_ANSWER = {
    "repetition_penalty": 1.3, "min_p": 0.1, "guided_json": {"type": "object"}, "guided_regex": "a*",
    "ignore_eos": True, "chat_template_kwargs": {"enable_thinking": False}, "logit_bias": {"5": 1}, "echo": True,
    "suffix": "x",
    "tools": [{"type": "function"}], "tool_choice": "required", "response_format": {"type": "json_object"},
    "reasoning_effort": "low", "max_new_tokens": 5, "stop_token_ids": [5], "bad_words": ["a"], "min_tokens": 4,
    "typical_p": 0.5, "best_of": 4, "length_penalty": 2, "structured_outputs": {"choice": ["a"]}, "num_beams": 4,
    "mirostat": 2, "n_predict": 4, "grammar": "root ::= x", "guidance_scale": 2, "watermark": True, "lora": [{"id": 0}],
    "never_heard_of": 0, "echo ": False, "repetition_penalty ": 1.0, "é\u2028": 1, "skip_special_tokens": False,
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, PLAIN])
@pytest.mark.parametrize("field", WOULD_CHANGE_THE_ANSWER)
def test_fields_that_are_not_understood_are_refused_by_name(server, path, field):
    answer = sent(server, path, body(path, **{field: WOULD_CHANGE_THE_ANSWER[field]}))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    shown = field.encode("ascii", "backslashreplace").decode()
    assert (error["param"], error["code"]) == (shown, "unsupported_parameter")
    assert error["message"].startswith(f"{shown}: not supported")


def test_a_misspelt_field_is_refused_with_the_right_one(server):
    for field, right in [("temprature", "temperature"), ("max_token", "max_tokens"), ("Seed", None)]:
        message = sent(server, CHAT, body(CHAT, **{field: 1})).json()["error"]["message"]
        assert message == f"{field}: not supported by this server" + (f"; did you mean {right}?" if right else "")


def test_what_stands_behind_a_question_mark_is_refused(server):
    examples = b'{"input": "a", "output": "b"}'
    for path, content in [(CHAT, body(CHAT)), ("/v1/tasks/new/examples", examples), ("/v1/reload", b"")]:
        answer = sent(server, f"{path}?epochs=3", content)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "?epochs")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "a", "name": "bob"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "bold": True}]}]},
         "messages.0.content.0.bold"),
        ({"stream_options": {"include_usage": True, "chunk": 5}}, "stream_options.chunk"),
    ],
)  # fmt: skip
def test_fields_within_are_refused_by_their_place(server, fields, param):
    answer = sent(server, CHAT, body(CHAT, **fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_answers_of_clients_come_back_as_turns(server):
    """As `message.model_dump()` of OpenAI's client gives them: with all fields, most of them null."""
    empty = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls"))
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": text} for role, text in turns]
    plain = sent(server, CHAT, body(CHAT, messages=messages)).json()["choices"]
    messages[1] |= empty
    assert sent(server, CHAT, body(CHAT, messages=messages)).json()["choices"] == plain
    messages[1] |= {"tool_calls": [], "annotations": []}
    assert sent(server, CHAT, body(CHAT, messages=messages)).json()["choices"] == plain


# ---- text ------------------------------------------------------------------------------------------------------------

HALVES = [b"\\ud83d", b"\\udc4d", b"x\\ud83d\\ud83d\\udc4d", b"\\uD83D text"]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("path", "content", "field"),
    [
        (CHAT, b'{"model": "legal", "messages": [{"role": "user", "content": "HALF"}]}', "messages.0.content"),
        (CHAT, b'{"model": "HALF", "messages": [{"role": "user", "content": "a"}]}', "model"),
        (CHAT, b'{"model": "legal", "messages": [{"role": "user", "content": [{"type": "text", "text": "HALF"}]}]}',
         "messages.0.content.0.text"),
        (CHAT, b'{"model": "legal", "messages": [{"role": "system", "content": "HALF"}, '
               b'{"role": "user", "content": "a"}]}',
         "messages.0.content"),
        (CHAT, b'{"model": "legal", "user": "HALF", "messages": [{"role": "user", "content": "a"}]}', "user"),
        (PLAIN, b'{"model": "legal", "prompt": "HALF"}', "prompt"),
        (PLAIN, b'{"model": "legal", "prompt": ["a", "HALF"]}', "prompt.1"),
        (PLAIN, b'{"model": "legal", "prompt": "a", "stop": ["HALF"]}', "stop.0"),
        (PLAIN, b'{"model": "legal", "prompt": "a", "HALF": 1}', None),
        ("/v1/tasks/new/examples", b'{"input": "a", "output": "b"}\n{"input": "a", "output": "HALF"}',
         "line 2: output"),
    ],
)  # fmt: skip
def test_halves_of_surrogate_pairs_are_refused_by_name(server, half, path, content, field):
    answer = sent(server, path, content.replace(b"HALF", half))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert "half of a surrogate pair, \\ud" in error["message"]
    assert error["param"] == field if field else "\\ud" in error["param"]


def test_whole_pairs_are_text(server):
    found = [sent(server, PLAIN, b'{"model": "legal", "temperature": 0, "max_tokens": 4, "prompt": "%s"}' % prompt)
             for prompt in (b"\\ud83d\\udc4d", "👍".encode())]  # fmt: skip
    assert found[0].status_code == 200
    assert found[0].json()["choices"] == found[1].json()["choices"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model": "legal", "prompt": "a", "prompt": "b"}', 'the key "prompt" twice in one object'),
        (b'{"model": "legal", "prompt": "a", "temperature": NaN}', "temperature: expected a number, found nan"),
        (b'{"model": "legal", "prompt": "a", "temperature": -Infinity}', "temperature: expected a number, found -inf"),
        (b'{"model": "legal", "prompt": "\xe9"}', "expected UTF-8, found the byte 0xe9"),
        (b'{"model": "legal", "prompt": ' + b"[" * 20000 + b"]" * 20000 + b"}", "nested too deeply"),
        (b'{"model": "legal", "prompt": "a", "seed": ' + b"9" * 9000 + b"}", "a number of 9000 digits"),
    ],
)
def test_bodies_that_are_no_clear_json_are_refused(server, content, message):
    answer = sent(server, PLAIN, content)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_values_of_another_type_are_not_guessed_at(server):
    for field, value in [("max_tokens", True), ("max_tokens", "5"), ("n", 1.5), ("prompt", [True]), ("stream", "yes")]:
        assert sent(server, PLAIN, body(PLAIN, **{field: value})).status_code == 422
    assert sent(server, PLAIN, b"\xef\xbb\xbf" + json.dumps(body(PLAIN)).encode()).status_code == 200
    assert "found text/plain" in sent(server, PLAIN, body(PLAIN), "text/plain").json()["error"]["message"]


def test_many_prompts_that_are_refused_leave_no_queue_behind(server):
    for _ in range(3):
        assert sent(server, PLAIN, body(PLAIN) | {"prompt": ["a"] * 400}).status_code == 429
        assert sent(server, CHAT, body(CHAT)).status_code == 200


# ---- white space -----------------------------------------------------------------------------------------------------

OUTPUT = "  if x:\n\n    return ü \n "


@pytest.fixture
def scripted(server):
    """Every output's tokens are those of OUTPUT, then the end token."""
    tokens = [*server.service.tokenizer(OUTPUT, add_special_tokens=False)["input_ids"], 2]
    lengths = {"tokens": 0}

    def force(model, arguments, named, output):
        ids, logits = named["input_ids"], output.logits
        first = ids.shape[1] > 1
        lengths["tokens"] = ids.shape[1] if first else lengths["tokens"]
        places = [0] * len(ids) if first else (named["position_ids"][:, 0] - lengths["tokens"] + 1).tolist()
        logits.fill_(-1e9)
        for row, place in enumerate(places):
            logits[row, :, tokens[place]] = 0
        return output

    hook = server.service.scheduler.engine.batch.model.register_forward_hook(force, with_kwargs=True)
    yield
    hook.remove()


def texts(server, path, **fields):
    """The texts of an answer, whole and streamed."""
    asked = body(path, max_tokens=99, **fields)
    choices = sent(server, path, asked).json()["choices"]
    whole = [choice["message"]["content"] if path == CHAT else choice["text"] for choice in choices]
    streamed = [""] * len(whole)
    for line in sent(server, path, asked | {"stream": True}).text.split("\n\n")[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            streamed[choice["index"]] += choice.get("text", choice.get("delta", {}).get("content", ""))
    return whole, streamed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [OUTPUT]),
        ({"n": 3}, [OUTPUT] * 3),
        ({"stop": "\n\n"}, ["  if x:"]),
        ({"stop": "return"}, ["  if x:\n\n    "]),
        ({"stop": ["ü \n x", " ü"]}, ["  if x:\n\n    return"]),
        ({"stop": "\n x"}, [OUTPUT]),
        ({"stop": " "}, [""]),
    ],
)
@pytest.mark.usefixtures("scripted")
def test_completions_are_what_follows_the_prompt_byte_for_byte(server, fields, expected):
    assert texts(server, PLAIN, **fields) == (expected, expected)


@pytest.mark.usefixtures("scripted")
def test_chats_have_no_white_space_at_either_end(server):
    assert texts(server, CHAT) == ([OUTPUT.strip()],) * 2
