"""Chat templates of any make: the prompt holds every text whole and leads to the answer, or it is an error by name."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colora.errors import ConfigError
from colora.models.generate import fit_prompts
from colora.tasks.encode import encode_causal, encode_tasks
from colora.tasks.prompting.chat_template import chat_format, prompt_text
from colora.tasks.prompting.prompts import conversation_ids, end_token_id, prompt_ids
from colora.tasks.schema import Example, Task
from tests.helpers.run_files import cli, refusal, run_file
from tests.helpers.servers import ask, make_bank, serving
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

TURN = "{{%- for m in messages -%}}<|{{{{ m['role'] }}}}|>{0}</s>{{%- endfor -%}}"
START = "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
CONTENT = "{{ m['content'] }}"
PARTS = "{%- for part in m['content'] -%}{{ part['text'] }}{%- endfor -%}"
TRIM = "{{ m['content'] | trim }}"
HOW = "Set chat_template: false"
REFUSED = {
    "drops": (TURN.format("") + START, "loses or changes the user's text"),
    "upper case": (TURN.format("{{ m['content'] | upper }}") + START, "loses or changes the user's text"),
    "trims and upper case": (TURN.format("{{ m['content'] | trim | upper }}"), "loses or changes the user's text"),
    "cuts": (TURN.format("{{ m['content'][:500] }}") + START, "loses or changes the user's text"),
    "escapes": (TURN.format("{{ m['content'] | e }}") + START, "loses or changes the user's text"),
    "JSON": (TURN.format("{{ m['content'] | tojson }}") + START, "loses or changes the user's text"),
    "squeezes": (TURN.format("{{ m['content'].split() | join(' ') }}") + START, "loses or changes the user's text"),
    "prints parts": (TURN.format("{{ '' if m['content'] is string else m['content'] }}"), "user's text"),
    "no answer": (
        TURN.format("{{ m['content'] if m['role'] == 'user' }}") + START, "loses or changes the assistant's answer"
    ),
    "lower-case answers": (
        TURN.format("{{ m['content'] if m['role'] == 'user' else m['content'] | lower }}"), "assistant's answer"
    ),
    "last turn only": (
        "{% for m in messages[-1:] %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}" + START,
        "loses or changes the user's text where an answer follows it",
    ),
    "system first": (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        + TURN.format(CONTENT),
        "raises TemplateError: system first",
    ),
    "no generation": (
        TURN.format(CONTENT) + "{% if add_generation_prompt %}{{ raise_exception('no gen') }}{% endif %}", "no gen"
    ),
    "no assistant": (
        "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('users only') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}",
        "users only",
    ),
    "broken": ("{% for m in messages %}{{ m['content'] }", "raises TemplateSyntaxError"),
    "a Python error": ("{{ messages['x'] + 1 }}", "found one that raises"),
    "chance": ("{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}" * 20 + TURN.format(CONTENT), "another prompt at every"),
    "other beginning": (
        "{{ messages | length }}" + TURN.format(CONTENT) + START, "begins a prompt in another way"
    ),
}  # fmt: skip


def tokenizer_with(template):
    tokenizer = tiny_tokenizer()
    tokenizer.name_or_path = "acme/chat-7b"
    tokenizer.chat_template = template
    return tokenizer


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_loses_text_or_raises_is_refused_by_name(case):
    template, what = REFUSED[case]
    tokenizer = tokenizer_with(template)
    example = Example("What is 1 + 1?", ("Two",))
    for call in (
        lambda: encode_causal(example, tokenizer, 99),
        lambda: prompt_ids(example, tokenizer),
        lambda: end_token_id(tokenizer),
        lambda: conversation_ids(None, ["What?", "That.", "Why?"], tokenizer),
        lambda: fit_prompts([("a", example)], tiny_llama(), tokenizer, 99, 4),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert "the chat template of 'acme/chat-7b'" in str(caught.value)
        assert what in str(caught.value)
        assert HOW in str(caught.value)


@pytest.mark.parametrize("text", ["a", "Hello  World", " 12\n", "[{'type': 'text'}]"])
def test_content_parts_are_given_where_a_template_wants_them(text):
    tokenizer = tokenizer_with(TURN.format(PARTS) + START)
    assert decoded(tokenizer, prompt_ids(Example(text, ("b",)), tokenizer)) == f"<|user|>{text}</s><|assistant|>"
    strict = tokenizer_with("{% if messages[0]['content'] is string %}{{ raise_exception('parts') }}{% endif %}"
                            + TURN.format(PARTS) + START)  # fmt: skip
    several = decoded(strict, conversation_ids("Do.", ["a", "b", text], strict))
    assert several == f"<|user|>Do.\n\na</s><|assistant|>b</s><|user|>{text}</s><|assistant|>"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_a_template_that_trims_gets_the_text_whole(text, instruction):
    tokenizer = tokenizer_with(TURN.format(TRIM) + START)
    for turns in ([text], [instruction, text, text]):
        wanted = "".join(f"<|{('user', 'assistant')[i % 2]}|>{turn}</s>" for i, turn in enumerate(turns))
        assert prompt_text(turns, tokenizer) == wanted + "<|assistant|>"


def test_a_template_without_a_generation_prompt_gets_the_header_of_its_answers():
    tokenizer = tokenizer_with(TURN.format(CONTENT))
    turns = [{"role": "user", "content": "1 1"}, {"role": "assistant", "content": "2"}]
    row = encode_causal(Example("1 1", ("2",)), tokenizer, 99)
    assert row.input_ids == tokenizer.apply_chat_template(turns, return_dict=False)
    assert decoded(tokenizer, prompt_ids(Example("1 1", ("2",)), tokenizer)) == "<|user|>1 1</s><|assistant|>"
    assert "<|assistant|></s>" not in decoded(tokenizer, conversation_ids(None, ["a", "b", "c"], tokenizer))
    # One that always ends with the header has it already, and a space before an answer is the answer's own.
    always = tokenizer_with(
        "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}### assistant:"
    )
    assert prompt_text(["a"], always) == "### user: a\n\n### assistant:"
    # A generation prompt that opens the model's reasoning stays as it is.
    thinks = tokenizer_with(TURN.format(CONTENT) + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}")
    assert prompt_text(["a"], thinks) == "<|user|>a</s><|assistant|><think>\n"
    assert not chat_format(thinks).notes


def test_texts_that_a_template_loses_now_and_then_are_an_error():
    short = tokenizer_with(TURN.format("{{ m['content'] if m['content'] | length > 3 }}") + START)
    assert prompt_text(["long enough"], short) == "<|user|>long enough</s><|assistant|>"
    # "a" stands in <|assistant|> as well; that is no proof.
    for turns, whose in ((["a"], "user's turn 1"), (["long enough", "a", "long enough"], "assistant's turn 2")):
        with pytest.raises(ConfigError, match=f'loses text of the {whose}, "a"'):
            prompt_text(turns, short)
    task = Task("red", {"train": (Example("long enough", ("b",)), Example("a", ("b",)))}, "memory", None)
    with pytest.raises(ConfigError, match='task "red": train example 2: the chat template of'):
        encode_tasks([task], short, "train", 99)


def test_reasoning_of_earlier_turns_may_be_left_out_but_what_follows_may_not():
    last = "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}"
    tokenizer = tokenizer_with(TURN.format(last) + START)
    found = prompt_text(["a", "<think>hm</think>b", "c"], tokenizer)
    assert found == "<|user|>a</s><|assistant|>b</s><|user|>c</s><|assistant|>"


def test_several_templates_need_a_default():
    tokenizer = tokenizer_with({"default": TURN.format(CONTENT) + START, "tools": "x"})
    assert prompt_text(["a"], tokenizer) == "<|user|>a</s><|assistant|>"
    with pytest.raises(ConfigError, match=r"chat template of 'acme/chat-7b'.*cannot be chosen"):
        prompt_text(["a"], tokenizer_with({"rag": "x", "tools": "x"}))


def test_a_clock_stands_still_for_the_day_and_training_says_so():
    tokenizer = tokenizer_with("{{ strftime_now('%Y %H:%M:%S.%f') }}" + TURN.format(CONTENT) + START)
    first = prompt_ids(Example("a", ("b",)), tokenizer)
    assert "00:00:00.000000<|user|>a" in decoded(tokenizer, first)
    row = encode_causal(Example("a", ("b",)), tokenizer, 99)
    assert row.input_ids[: len(first)] == first
    task = Task("red", {"train": (Example("a", ("b",)),)}, "memory", None)
    with pytest.warns(UserWarning, match="'acme/chat-7b' writes today's date into every prompt"):
        encode_tasks([task], tokenizer, "train", 99)
    # One whose format is computed still goes; of one that prompts do not show, there is nothing to tell.
    for clock, told in (("{% set f = '%Y' %}{{ strftime_now(f) }}", True), ("{{ strftime_now('%Y')[:0] }}", False)):
        assert bool(chat_format(tokenizer_with(clock + TURN.format(CONTENT) + START)).notes) == told
    # A clock whose format is computed cannot be stopped.
    hidden = "{% set f = '%f' %}{{ strftime_now(f) }}"
    with pytest.raises(ConfigError, match="another prompt at every call"):
        prompt_text(["a"], tokenizer_with(hidden * 3 + TURN.format(CONTENT)))


def test_a_generation_prompt_unlike_the_header_of_answers_is_told():
    other = tokenizer_with(TURN.format(CONTENT) + "{% if add_generation_prompt %}<|system|>{% endif %}")
    task = Task("red", {"train": (Example("a", ("b",)),)}, "memory", None)
    with pytest.warns(UserWarning, match=r"ends a prompt with .*<\|system\|>', but puts .*<\|assistant\|>'"):
        encode_tasks([task], other, "train", 99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_tasks([task], tiny_tokenizer(), "train", 99)
        encode_tasks([task], tiny_tokenizer(), "train", 99, encoder_decoder=True)


def test_another_template_on_the_same_tokenizer_is_tried_anew():
    tokenizer = tokenizer_with(TURN.format(CONTENT) + START)
    assert prompt_text(["a"], tokenizer) == "<|user|>a</s><|assistant|>"
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ConfigError, match="no"):
        prompt_text(["a"], tokenizer)


# The whole way: the command line and the server


@pytest.mark.parametrize("case", ["drops", "system first", "broken"])
def test_check_and_train_refuse_the_base_in_one_line(tmp_path, case):
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    tokenizer_with(REFUSED[case][0]).save_pretrained(base)
    run = run_file(tmp_path, str(base))
    for command in ("check", "train"):
        assert "the chat template of" in refusal(command, run)
    assert cli("check", run, "chat_template=false").exit_code == 0


def test_a_message_that_the_template_loses_is_that_requests_error(tmp_path):
    bank = make_bank(tmp_path)
    with serving(bank) as server:
        server.service.tokenizer.chat_template = TURN.format("{{ m['content'] if 'x' not in m['content'] }}") + START
        lost = server.http.post("/v1/chat/completions", json=ask("legal", "xyz", max_tokens=2))
        kept = server.http.post("/v1/chat/completions", json=ask("legal", "abc", max_tokens=2))
    assert lost.status_code == 400
    assert 'loses text of the user\'s turn 1, "xyz"' in lost.json()["error"]["message"].replace("\\", "")
    assert kept.status_code == 200
