"""Conversations in task files: the last answer is the output, all before it is the prompt, or it is a fault."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colora.errors import ConfigError
from colora.tasks.encode import IGNORED, encode_causal, encode_seq2seq
from colora.tasks.prompting.prompts import conversation_ids, fit_prompt, prompt_ids
from colora.tasks.schema import Example, Task, TaskSource
from colora.training.run_folder import task_manifest
from tests.helpers.run_files import cli, refusal, run_file, save_base
from tests.helpers.task_files import everything, faults_of, read, write
from tests.helpers.tiny import tiny_tokenizer


def turns(*texts, system=None):
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said] if system else said


CONVERSATIONS = [turns("a", "b"), turns("c", "d", "e", "f", system="Be kind."), turns("g", " h\n", system="Be brief.")]
SAID = {Example("a", ("b",)), Example("e", ("f",), "Be kind.", ("c", "d")), Example("g", (" h\n",), "Be brief.")}


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "trl"])
def test_the_last_answer_is_the_output_and_what_came_before_is_the_prompt(tmp_path, form):
    lines = [{"messages": conversation} for conversation in CONVERSATIONS]
    if form == "trl":
        lines = [{"prompt": conversation[:-1], "completion": conversation[-1:]} for conversation in CONVERSATIONS]
    path = tmp_path / f"t.{form.replace('trl', 'jsonl')}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    else:
        write(path, json.dumps(lines) if form == "json" else lines)
    assert everything(read(str(path))) == SAID
    assert {e.instruction for e in everything(read(str(path), instruction="Mine."))} == {"Mine."}


def test_content_parts_of_text_and_several_system_turns(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    conversation = [
        {"role": "system", "content": "One."}, {"role": "developer", "content": "Two."},
        {"role": "user", "content": parts, "name": "ann"}, {"role": "assistant", "content": "c", "weight": 1},
    ]  # fmt: skip
    path = write(tmp_path / "t.jsonl", [{"messages": conversation}])
    assert everything(read(path)) == {Example("ab", ("c",), "One.\n\nTwo.")}


WRONG = {
    "ends with the user": (turns("a", "b", "c"), "expected a conversation that ends with the assistant's turn in"),
    "no answer": (turns("a"), "expected a conversation that ends with the assistant's turn"),
    "begins with the assistant": (
        turns("a", "b")[1:],
        'expected a turn of system or user in "messages[0]", found one of assistant',
    ),
    "two users": ([*turns("a"), *turns("b", "c")], 'expected a turn of assistant in "messages[1]", found one of user'),
    "late system": ([*turns("a", "b"), {"role": "system", "content": "x"}], 'expected a turn of user in "messages[2]"'),
    "a tool": (
        [*turns("a"), {"role": "tool", "content": "x"}],
        'expected system, user or assistant in "messages[1].role", found "tool"',
    ),
    "tool calls": (
        [*turns("a"), {"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}],
        'expected nothing but text in "messages[1]", found "tool_calls"',
    ),
    "reasoning": (
        [*turns("a"), {"role": "assistant", "content": "x", "reasoning_content": "y"}],
        'found "reasoning_content"',
    ),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, *turns("a", "b")[1:]],
        'expected text in "messages[0].content", found a list of 1',
    ),
    "null": (
        [*turns("a"), {"role": "assistant", "content": None}],
        'expected text in "messages[1].content", found null',
    ),
    "empty": (turns("a", " "), 'expected text in "messages[1].content", found empty text'),
    "half a character": (
        turns("a", "\ud800"),
        'expected Unicode text in "messages[1].content", found a lone surrogate',
    ),
    "other names": (
        [{"from": "human", "value": "a"}],
        'expected an object with "role" and "content" in "messages[0]", found an object with "from", "value"',
    ),
    "no list": ("a", 'expected a list of turns in "messages", found text'),
    "empty list": ([], 'expected a list of turns in "messages", found an empty list'),
}


@pytest.mark.parametrize("case", WRONG)
def test_conversations_that_are_none_are_faults(tmp_path, case):
    conversation, expected = WRONG[case]
    good = {"messages": turns("a", "b")}
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(line) + "\n" for line in (good, {"messages": conversation})))
    (fault,) = faults_of(TaskSource(path=path))
    assert fault.startswith(f"{path}:2: ")
    assert expected in fault


def test_further_faults_of_conversations(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"messages": turns("a", "b"), "tools": [{"name": "x"}]}, {"other": 1}])
    assert faults_of(TaskSource(path=path)) == [
        f"{path}:1: expected a conversation without tools, for prompts cannot name them, found some",
        f'{path}:2: expected a field "messages", found "other"',
    ]
    path = write(tmp_path / "u.jsonl", [{"prompt": turns("a"), "completion": "b"}])
    assert faults_of(TaskSource(path=path)) == [
        f'{path}:1: expected a list of turns in "completion", as other rows have it, found text'
    ]
    path = write(tmp_path / "w.jsonl", [{"conversations": [{"from": "human", "value": "a"}]}])
    for fault in faults_of(TaskSource(path=path)):
        assert fault.endswith('found "conversations"; turns are read from "messages", each with "role" and "content"')
    path = write(tmp_path / "v.csv", 'messages\n"a"\n')
    assert faults_of(TaskSource(path=path)) == [f'{path}:2: expected a list of turns in "messages", found text']


def test_a_run_trains_on_conversations_and_refuses_them_without_a_template(tmp_path):
    base = save_base(tmp_path / "base")
    long = turns("a" * 300, "b", "c", "d")
    write(tmp_path / "t.jsonl", [{"messages": one} for one in [*CONVERSATIONS, long]])
    run = run_file(tmp_path, base, [{"path": str(tmp_path / "t.jsonl"), "val": 0, "test": 0}])
    found = cli("train", run)
    assert found.exit_code == 0, found.output
    told = refusal("check", run, "chat_template=false", "output=other").replace("\n", " ")
    assert 'task "t": train example 2: expected one message of the user\'s, found a conversation of 3 turns' in told


# Prompts


def test_a_row_is_what_the_template_makes_of_the_conversation_and_the_loss_sees_its_end():
    tokenizer = tiny_tokenizer()
    example = Example("e", ("f",), "Be kind.", ("c", "d"))
    said = turns("Be kind.\n\nc", "d", "e", "f")
    row = encode_causal(example, tokenizer, 99)
    assert row.input_ids == tokenizer.apply_chat_template(said, return_dict=False)
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "f</s>"
    # A server gives the model the same prompt.
    assert prompt_ids(example, tokenizer) == conversation_ids("Be kind.", ["c", "d", "e"], tokenizer)


def test_a_long_conversation_loses_its_oldest_turns_and_then_the_beginning_of_the_input():
    tokenizer = tiny_tokenizer()
    example = Example("0123456789", ("z",), "Do.", ("aaaa", "bbb", "cc", "d"))
    lengths = {}
    for room in range(60, 10, -1):
        ids, dropped = fit_prompt(example, tokenizer, room)
        lengths.setdefault(tokenizer.decode(ids), (room, dropped))
    texts = list(lengths)
    newer = "cc</s><|assistant|>d</s><|user|>0123456789</s><|assistant|>"
    assert texts[0] == "<|user|>Do.\n\naaaa</s><|assistant|>bbb</s><|user|>" + newer
    assert texts[1] == "<|user|>Do.\n\n" + newer
    assert texts[2] == "<|user|>Do.\n\n0123456789</s><|assistant|>"
    assert texts[3] == "<|user|>Do.\n\n123456789</s><|assistant|>"
    assert [lengths[text][1] for text in texts[:4]] == [0, 7, 10, 11]


def test_conversations_need_a_chat_template_and_a_decoder():
    example = Example("e", ("f",), None, ("c", "d"))
    with pytest.raises(ConfigError, match="a conversation of 3 turns: without a chat template a prompt is one text"):
        encode_causal(example, tiny_tokenizer(chat=False), 99)
    with pytest.raises(ConfigError, match="a conversation of 3 turns: an encoder-decoder reads one text"):
        encode_seq2seq(example, tiny_tokenizer(), 99)


def test_what_was_said_before_counts_for_digests_and_splits(tmp_path):
    def digest(example):
        manifest = task_manifest([Task("t", {"train": (example,), "val": (), "test": ()}, "here", None)])
        return manifest["t"]["splits"]["train"]["sha256"]

    assert digest(Example("a", ("b",), None, ("c", "d"))) != digest(Example("a", ("b",)))
    # "Go on." twenty times is not one text twenty times.
    lines = [{"messages": turns(f"story {n // 2}", "Once ...", "Go on.", f"{n}")} for n in range(40)]
    task = read(write(tmp_path / "t.jsonl", lines))
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [28, 4, 8]
    split_of = {}
    for split, examples in task.splits.items():
        for example in examples:
            assert split_of.setdefault(example.history, split) == split


def test_an_answer_that_is_not_to_be_trained_on_is_a_fault(tmp_path):
    talk = turns("a", "b", "c", "d")
    talk[1]["weight"] = 0  # earlier answers are not trained on anyway
    path = write(tmp_path / "t.jsonl", [{"messages": talk}])
    assert read(path, val=0, test=0).splits["train"][0].outputs == ("d",)
    talk[3]["weight"] = 0
    assert faults_of(TaskSource(path=write(tmp_path / "t.jsonl", [{"messages": talk}]))) == [
        f'{path}:1: expected an answer to train on in "messages[3]", found "weight": 0; leave the conversation out'
    ]
