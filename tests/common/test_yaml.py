"""YAML that people write: the same key twice is a fault with both lines, and no reader's limit ends in a traceback."""

import json

import pytest

from colora.bank.generate import read_requests
from colora.common.yaml import read_yaml
from colora.errors import ConfigError
from colora.experiments.load import load_experiment
from colora.serving.access import read_tenants
from colora.theory.experiments.config import load_recovery
from colora.training.config_file import load_config, load_federation
from tests.helpers.run_files import cli, refusal, run_file, save_base


def read(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, overrides, needs="'output'")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", (1, 3)),
        ("a: 1\n'a': 1\n", "a", (1, 2)),
        ("a: {b: 1,\n  c: 2, b: 3}\n", "b", (1, 2)),
        ("a:\n  - x: 1\n  - {y: 1, y: 1}\n", "y", (3, 3)),
        ("a: {b: {c: {d: 1}}}\ne: {b: {c: {d: 1,\nd: 2}}}\n", "d", (2, 3)),
        ("1: a\n0x1: b\n", "1", (1, 2)),
        ("no: a\nfalse: b\n", "False", (1, 2)),
        ("a: &x {b: 1}\nc: &y {b: 2}\nd: {<<: *x,\n <<: *y}\n", "<<", (3, 4)),
        ("a: &x\n  b: 1\n  b: 2\nc: {<<: *x}\n", "b", (2, 3)),
        ("a: &x [1]\nb: *x\nb: *x\n", "b", (2, 3)),
    ],
)
def test_a_key_that_stands_twice_is_a_fault_with_both_lines(tmp_path, text, key, lines):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    first, second = lines
    place = f"run.yaml:{second}: not YAML: the key {key!r} stands twice in one mapping, in lines {first} and {second}"
    assert place in str(caught.value)


def test_what_is_not_twice_in_one_mapping_is_read_as_before(tmp_path):
    text = "base: &b {r: 4, k: 1}\na: {<<: *b, r: 8}\nb: {r: 2, <<: *b}\nl: [{r: 1}, {r: 2}]\nm: {<<: [*b, {z: 1}]}\n"
    assert read(tmp_path, text) == {
        "base": {"r": 4, "k": 1}, "a": {"r": 8, "k": 1}, "b": {"r": 2, "k": 1}, "l": [{"r": 1}, {"r": 2}],
        "m": {"r": 4, "k": 1, "z": 1},
    }  # fmt: skip
    assert read(tmp_path, "a: &x {c: [1]}\nb: [*x, *x]\n")["b"] == [{"c": [1]}] * 2
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\n") == {"a": 1}


def test_an_override_that_says_a_key_twice_is_a_fault(tmp_path):
    with pytest.raises(ConfigError, match=r"override 'training=\{lr: 1, lr: 2\}': the key 'lr' stands twice"):
        read(tmp_path, "a: 1\n", "training={lr: 1, lr: 2}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: x\0y\n", "run.yaml:2: not YAML: the character #x0000"),
        ("a: " + "[" * 5000, "run.yaml: not YAML that can be read: nested too deeply"),
        ("a: " + "9" * 5000, "run.yaml: not YAML: a value that cannot be read"),
        ("a: 1\n".encode("utf-16"), "run.yaml: expected UTF-8 text, found byte 0xff"),
        ("a: 1\n---\na: 2\n", "not YAML: but found another document"),
        ("", "expected a mapping with at least 'output', found nothing"),
    ],
)
def test_limits_of_the_reader_are_told(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_what_is_no_yaml_file_by_its_name_is_told_what_is_expected(tmp_path):
    path = tmp_path / "red.txt"
    path.write_text('{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n')
    wanted = "expected a YAML file with at least 'output' and 'tasks'"
    assert f"red.txt:2: not YAML: expected '<document start>', but found '{{'; {wanted}" in refusal("check", path)


INDENTATION = "check the indentation of this line and of those before it"


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        (
            "a:\n  b: 1\n c: 2\n",
            3,
            f"expected <block end>, but found '<block mapping start>'; {INDENTATION}; use spaces",
        ),
        ("a:\n  - b: 1\n  c: 2\n", 3, f"but found '?'; {INDENTATION}; use spaces"),
        ("a:\n\t- b: 1\n", 2, r"found character '\t' that cannot start any token; indent with spaces, not with tabs"),
        ("a: 1\n b: 2\n", 2, f"mapping values are not allowed here; {INDENTATION}"),
        ("a: x: y\n", 1, "put a text that has ': ' in it in double quotes"),
        ("a: 1\nb\nc: 3\n", 3, "this line or one before it is no KEY: VALUE"),
    ],
)
def test_wrong_indentation_is_told_as_such(tmp_path, text, line, hint):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert f"run.yaml:{line}: not YAML: " in str(caught.value)
    assert hint in str(caught.value)


def test_other_faults_have_no_hint_at_indentation(tmp_path):
    with pytest.raises(ConfigError, match=r"but found another document$"):
        read(tmp_path, "a: 1\n---\na: 2\n")


@pytest.mark.parametrize("load", [load_config, load_experiment, load_recovery])
def test_faults_of_every_kind_of_file_have_their_lines(tmp_path, load):
    path = tmp_path / "file.yaml"
    path.write_text("output: a\nname: b\n\ndepht: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert any(fault.startswith("depht: no such field") and fault.endswith("(line 4)") for fault in caught.value.faults)


@pytest.mark.parametrize("load", [load_config, load_federation, load_experiment, load_recovery])
def test_every_kind_of_file_is_read_so(tmp_path, load):
    path = tmp_path / "file.yaml"
    path.write_text("name: a\noutput: out\nname: b\n")
    with pytest.raises(ConfigError, match=r"file\.yaml:3: .*'name' stands twice in one mapping, in lines 1 and 3"):
        load(path)


def test_the_command_line_says_so(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: out\ntasks: [{path: red.jsonl}]\ntasks: [{path: blue.jsonl}]\n")
    assert "run.yaml:3: not YAML: the key 'tasks' stands twice in one mapping, in lines 2 and 3" in refusal(
        "check", path
    )


def test_prompts_to_generate_too(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"task": "a", "input": "b"}\n{"task": "a", "task": "b", "input": "c"}\n')
    with pytest.raises(ConfigError, match=r'prompts\.jsonl:2: .* the key "task" twice in one object'):
        read_requests(path)


def test_keys_of_tenants_too(tmp_path):
    path, digest = tmp_path / "keys.json", "0" * 64
    lines = ('{"tenants": [{"name": "a",', f'"key_sha256": "{digest}",', '"tasks": ["a-*"],', '"tasks": ["*"]}]}')
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r'keys\.json:4: the key "tasks" twice in one object, in lines 3 and 4'):
        read_tenants(path)
    path.write_text(json.dumps({"tenants": [{"name": "a", "key_sha256": digest, "tasks": ["a-*"]}]}))
    assert read_tenants(path)[0].tasks == ("a-*",)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_run_left_behind_is_read_no_other_way(tmp_path):
    run = run_file(tmp_path, save_base(tmp_path / "base"))
    assert cli("train", run).exit_code == 0
    out = tmp_path / "out"
    for name, added, told in (
        ("run.yaml", "seed: 5\n", "the key 'seed' stands twice in one mapping, in lines"),
        ("tasks.json", '"red": {}}', 'the key "red" twice in one object, in lines'),
        ("bank/bank.json", '"base": "x"}', 'the key "base" twice in one object, in lines'),
        ("bank/adapter_config.json", '"r": 4}', 'the key "r" twice in one object, in lines'),
    ):
        text = (out / name).read_text()
        (out / name).write_text(text + added if name.endswith("yaml") else f"{text.rstrip()[:-1]},\n{added}")
        message = " ".join(refusal("evaluate", out).split())
        assert name.rpartition("/")[2] in message
        assert told in message
        (out / name).write_text(text)
    assert cli("evaluate", out).exit_code == 0
