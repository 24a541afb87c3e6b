"""Answers of vLLM's server as training had them: without white space at their ends, whole or piece by piece."""

import json

import pytest

from colora.vllm.front.chat import StrippedEvents, stripped_answer


def events(*pieces, choice=0):
    bodies = [json.dumps({"choices": [{"index": choice, "delta": {"content": piece}}]}) for piece in pieces]
    return "".join(f"data: {body}\n\n" for body in bodies) + "data: [DONE]\n\n"


def text_of(content):
    found = ""
    for line in content.decode().split("\n\n"):
        if line.startswith("data: {"):
            found += json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"]
    return found


@pytest.mark.parametrize(
    "pieces",
    [
        ["line one", "\n\n", "line two", " ", "x"],
        [" ", "\n", " a", " ", "\n", "\t", "b ", " c", " \n"],
        ["\n", " "],
        ["a", " ", "", " ", "b"],
        ["ein Wort "],
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_white_space_goes_at_the_ends_alone(pieces, size):
    stripped, content, found = StrippedEvents(), events(*pieces).encode(), b""
    for start in range(0, len(content), size):
        found += stripped.feed(content[start : start + size])
    found += stripped.end()
    assert text_of(found) == "".join(pieces).strip()
    assert found.endswith(b"data: [DONE]\n\n")


def test_choices_of_one_stream_are_kept_apart():
    stripped = StrippedEvents()
    found = b""
    for choice, piece in [(0, "a"), (1, " x"), (0, " "), (1, " "), (0, "b"), (1, "y")]:
        found += stripped.feed(events(piece, choice=choice).removesuffix("data: [DONE]\n\n").encode())
    texts = {0: "", 1: ""}
    for line in found.decode().split("\n\n"):
        if line:
            (one,) = json.loads(line.removeprefix("data: "))["choices"]
            texts[one["index"]] += one["delta"]["content"]
    assert texts == {0: "a b", 1: "x y"}


def test_a_whole_answer_is_stripped_and_anything_else_left_alone():
    whole = {"choices": [{"message": {"content": " a \n b\n"}}, {"message": {"content": None}}]}
    texts = [one["message"]["content"] for one in json.loads(stripped_answer(json.dumps(whole).encode()))["choices"]]
    assert texts == ["a \n b", None]
    assert stripped_answer(b'{"error": {}}') == b'{"error": {}}'
    assert stripped_answer(b"rubbish") == b"rubbish"
