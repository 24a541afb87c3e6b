"""Examples in the body of a request are checked when they arrive: faults are named by line, and no job begins."""

import json

import pytest

from colora.serving.examples import ExamplesError, check_readable
from tests.helpers.servers import make_bank, serving

GOOD = '{"input": "a", "output": "b"}'
FORMAT = "expected JSON Lines: on each line an object"
FAULTS = {
    "text": ("hello", [f"line 1: {FORMAT}"]),
    "table": ("input,output\na,b\n", [f"line 1: {FORMAT}"]),
    "empty lines, then a table": ("\n\ninput,output\na,b\n", [f"line 3: {FORMAT}"]),
    "list": (json.dumps([{"input": "a", "output": "b"}]), [f"line 1: {FORMAT}", "found a list of 1"]),
    "several lines": (json.dumps({"input": "a", "output": "b"}, indent=1), [f"line 1: {FORMAT}"]),
    "nothing": ("\n", [FORMAT, "found none"]),
    "fields": (f'{GOOD}\n{{"input": 3}}\n\n{{"output": "b"}}', ["line 2: ", "line 4: "]),
    "later line": (f"{GOOD}\n{GOOD}\nhello", ["line 3: expected a JSON object"]),
    "one name twice": ('{"input": "a", "input": "b", "output": "c"}', ["line 1: "]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_examples_that_cannot_be_read_are_refused_with_their_lines(case):
    content, told = FAULTS[case]
    with pytest.raises(ExamplesError) as caught:
        check_readable("new", content.encode())
    text = str(caught.value)
    assert all(part in text for part in told), text
    assert not any(part in text for part in ("/", "jsonl", ".csv")), text


@pytest.mark.parametrize("content", [GOOD, f"\ufeff{GOOD}\r\n\r\n{GOOD}\n", f"{GOOD}\r{GOOD}"])
def test_examples_that_can_be_read_are_taken(content):
    check_readable("new", content.encode())


def test_many_faults_are_counted():
    with pytest.raises(ExamplesError) as caught:
        check_readable("new", b'{"input": 3, "output": "b"}\n' * 100)
    assert len(caught.value.faults) == 21
    assert "line 20: " in str(caught.value)


def test_a_body_of_another_format_is_refused_and_makes_no_job(tmp_path):
    with serving(make_bank(tmp_path)) as server:
        for content in (b"hello", b"input,output\na,b\n", b"", b"\xff"):
            answer = server.http.post("/v1/tasks/new/examples", content=content)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "invalid_body"), error
        assert server.http.get("/v1/models/new").status_code == 404
