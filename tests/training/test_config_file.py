"""Run files: all faults at once, each with its place; overrides; the list of fields."""

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from colora.adapter.config import INIT_WORDS
from colora.errors import ConfigError
from colora.training.config import (
    SPECTRAL,
    AdapterSpec,
    EvaluationSpec,
    FederationSpec,
    RunConfig,
    TasksFromSpec,
    TaskSpec,
    TrainingSpec,
)
from colora.training.config_file import field_rows, load_config, load_federation
from colora.training.field_hints import OTHER_NAMES
from tests.helpers.run_files import cli

MINIMAL = "output: out\ntasks:\n  - path: data/red.jsonl\n  - path: data/blue.csv\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def faults_of(path, text):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    return caught.value.faults


def refused(path, content, *overrides):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_minimal_file_gets_every_default(file):
    config = load_config(file)
    assert config.training == TrainingSpec()
    assert config.adapter == AdapterSpec()
    assert config.evaluation == EvaluationSpec()
    assert (config.base, config.seed, config.chat_template) == ("smollm2", 0, True)


def test_task_paths_are_relative_to_the_file_and_the_output_is_not(file, monkeypatch):
    (file.parent / "elsewhere").mkdir()
    monkeypatch.chdir(file.parent / "elsewhere")
    config = load_config(Path("..") / "run.yaml")
    assert [task.path for task in config.tasks] == [
        str(file.parent / "data" / "red.jsonl"),
        str(file.parent / "data" / "blue.csv"),
    ]
    assert config.output == "out"


def test_absolute_paths_and_the_home_folder(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent / "somebody"))
    absolute = file.parent / "x.jsonl"
    file.write_text(f"output: o\ntasks: [{{path: {absolute}}}, {{path: ~/y.jsonl}}]", encoding="utf-8")
    assert [task.path for task in load_config(file).tasks] == [
        str(absolute),
        str(file.parent / "somebody" / "y.jsonl"),
    ]


def test_every_fault_is_listed_with_its_place(file):
    faults = faults_of(
        file,
        """
        seed: -1
        tasks:
          - path: a.jsonl
            dataset: glue
          - path: b.jsonl
            train: 0
            fields: {inputs: question, output: 3}
          - just text
          - {}
        adapter: {r: 0, target_modules: 3, exclude_modules: [1], lora_dropout: 1}
        training: {steps: 2.5, lr: fast, scheduler: sine}
        evaluation: []
        """,
    )
    places = [fault.split(": ")[0] for fault in faults]
    assert sorted(places) == sorted(
        [
            "seed", "output", "tasks.0", "tasks.1.train", "tasks.1.fields.inputs", "tasks.1.fields.output", "tasks.2",
            "tasks.3", "adapter.r", "adapter.target_modules", "adapter.exclude_modules", "adapter.lora_dropout",
            "training.steps", "training.lr", "training.scheduler", "evaluation",
        ]
    )  # fmt: skip
    by_place = dict(fault.split(": ", 1) for fault in faults)
    names = "a name, an expression or a list of names"
    assert by_place["seed"] == "expected greater than or equal to 0, found -1 (line 2)"
    assert by_place["output"] == "missing"
    assert by_place["tasks.0"] == "expected exactly one of 'path' and 'dataset' (line 4)"
    assert by_place["tasks.3"] == "expected exactly one of 'path' and 'dataset' (line 10)"
    assert by_place["tasks.2"] == "expected a mapping, found str 'just text'; write `- path: just text` (line 9)"
    assert by_place["tasks.1.fields.inputs"] == "expected 'input', 'output' or 'instruction', found 'inputs' (line 8)"
    assert by_place["adapter.target_modules"] == f"expected {names}, found 3 (line 11)"
    assert by_place["adapter.exclude_modules"] == f"expected {names}, found [1] (line 11)"
    assert by_place["training.scheduler"] == "expected 'cosine', 'linear' or 'constant', found 'sine' (line 12)"
    assert by_place["evaluation"] == "expected a mapping, found list [] (line 13)"


def test_a_fault_of_an_override_has_no_line_and_one_of_the_file_the_nearest(file):
    lines = ["output: o", "x: &x {path: a, train: -1}", "tasks: [*x, {<<: *x}, {path: b,", "  test: -1}]"]
    text = refused(
        file, "\n".join([*lines, "training:", "  rows: 3", "  steps: 0"]), "training.rows=0", "tasks.2.val=-1"
    )
    told = [line.removeprefix("  - ") for line in text.splitlines()[1:]]
    assert {fault.split(": ")[0]: fault.rpartition(" (line ")[2] for fault in told if fault.endswith(")")} == {
        "x": "2)", "tasks.0.train": "2)", "tasks.1.train": "2)", "tasks.2.test": "4)", "training.steps": "7)",
    }  # fmt: skip
    assert [fault.split(": ")[0] for fault in told if not fault.endswith(")")] == ["tasks.2.val", "training.rows"]


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ("training: {stepz: 5}", "training.stepz: no such field; did you mean 'steps'?"),
        ("taining: {steps: 5}", "taining: no such field; did you mean 'training'?"),
        ("adapter: {lora_alfa: 5}", "adapter.lora_alfa: no such field; did you mean 'lora_alpha'?"),
        ("evaluation: {metric: [nll]}", "evaluation.metric: no such field; did you mean 'metrics'?"),
        ("zzzz: 1", "zzzz: no such field"),
        ("1: x", "1: keys should be strings, found 1"),
    ],
)
def test_a_misspelt_key_is_a_fault_with_a_suggestion(file, section, fault):
    assert faults_of(file, MINIMAL + section) == [f"{fault} (line 5)"]


def test_a_misspelt_key_of_a_task(file):
    assert faults_of(file, "output: o\ntasks: [{path: a, nme: x}]") == [
        "tasks.0.nme: no such field; did you mean 'name'? (line 2)"
    ]


@pytest.mark.parametrize(
    ("section", "name", "told"),
    [
        ("training", "learning_rate", "'lr'?"),
        ("training", "lerning_rate", "'lr'?"),
        ("training", "learning-rate", "'lr'?"),
        ("training", "per_device_train_batch_size", "'rows'?"),
        ("training", "batchsize", "'rows'?"),
        ("training", "max_steps", "'steps'?"),
        ("training", "max_seq_length", "'max_length'?"),
        ("training", "num_train_epochs", "'steps'?; one epoch has (examples of all tasks) / rows steps"),
        ("training", "lora_r", "'adapter.r'?"),
        ("adapter", "rank", "'r'?"),
        ("adapter", "alpha", "'lora_alpha'?"),
        ("evaluation", "per_device_eval_batch_size", "'rows'?"),
        ("training", "lora_dropout", "'adapter.lora_dropout'?"),
    ],
)
def test_a_name_of_other_tools_is_told_ours(file, section, name, told):
    assert faults_of(file, f"{MINIMAL}{section}: {{{name}: 1}}") == [
        f"{section}.{name}: no such field; did you mean {told} (line 5)"
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [("lr", "'training.lr'?"), ("output_dir", "'output'?"), ("rows", "'training.rows' or 'evaluation.rows' or ")],
)
def test_a_field_outside_its_section_is_told_where_it_belongs(file, name, told):
    (fault,) = faults_of(file, f"{MINIMAL}{name}: 1")
    assert fault.startswith(f"{name}: no such field; did you mean {told}")


def test_every_name_of_other_tools_stands_for_a_field_and_is_none_itself():
    keys = {*RunConfig.model_fields, *(key for key, *_ in field_rows())}
    assert {*OTHER_NAMES.values()} <= keys
    assert not {key.rsplit(".", 1)[-1] for key in keys} & OTHER_NAMES.keys()


def test_tasks_that_are_no_list_of_mappings_are_told_how_to_write_them(file):
    assert faults_of(file, "output: o\ntasks:\n  - path: a.jsonl\n  - data/irony.jsonl\n") == [
        "tasks.1: expected a mapping, found str 'data/irony.jsonl'; write `- path: data/irony.jsonl` (line 4)"
    ]
    for tasks, shown, found in (
        ("a.jsonl", "a.jsonl", ", found 'a.jsonl'"),
        ("{path: a.jsonl}", "a.jsonl", ""),
        ("", "data/red.jsonl", ", found None"),
    ):
        assert faults_of(file, f"output: o\ntasks: {tasks}\n") == [
            f"tasks: expected a valid list{found}; below `tasks:`, write a line for each task, such as "
            f"`  - path: {shown}` (line 2)"
        ]


def test_a_misspelt_base_has_its_line_beside_the_other_faults(file):
    assert faults_of(file, MINIMAL + "base: smollm\nseed: -1\n") == [
        "base: 'smollm' is no folder and no model that is known here; did you mean 'smollm2'? (line 5)",
        "seed: expected greater than or equal to 0, found -1 (line 6)",
    ]
    (file.parent / "smollm").mkdir()
    assert load_config(file, [f"base={file.parent / 'smollm'}", "seed=0"]).base == str(file.parent / "smollm")
    assert load_config(file, ["base=org/smollm", "seed=0"]).base == "org/smollm"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("red.jsonl", b'{"input": "a", "output": "b"}\n' * 2),
        ("red.jsonl", b'{"input": "a", "output": "b"}\n'),
        ("red.csv", b"input,output\na,b\n"),
        ("red.json", b'[{"input": "a", "output": "b"}]'),
        ("red.parquet", b"PAR1\xff"),
        ("red.jsonl.gz", b"\x1f\x8b"),
    ],
)
def test_a_task_file_in_place_of_a_run_file_is_told_so(tmp_path, name, content):
    told = refused(tmp_path / name, content)
    assert told == (
        f"{tmp_path / name}: expected a run file, which is YAML with at least 'output' and 'tasks'; this looks like a "
        f"task file: list it under tasks in a run file, as `- path: {tmp_path / name}`"
    )
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "nowhere.jsonl")


def test_a_run_file_may_be_json(tmp_path):
    path = tmp_path / "run.json"
    assert "training.lr: expected greater than 0" in refused(
        path, json.dumps({"output": "o", "tasks": [{"path": "a.jsonl"}]}), "training.lr=0"
    )
    assert load_config(path, ["seed=3"]).seed == 3


def test_the_words_for_initial_weights_are_those_of_the_adapter():
    """Written twice, because the adapter's imports take seconds."""
    words = get_args(AdapterSpec.model_fields["init_weights"].annotation)
    assert {*words} == {"kaiming", *INIT_WORDS, *SPECTRAL}


def test_fields_that_contradict_each_other(file):
    (fault,) = faults_of(file, MINIMAL + "training: {rows: 5, accumulation: 2, patience: 3}")
    assert fault == "training: rows (5) must be a multiple of accumulation (2); patience needs eval_every (line 5)"


def test_tasks_and_output_may_not_be_empty(file):
    assert {fault.split(":")[0] for fault in faults_of(file, "output: ''\ntasks: []")} == {"output", "tasks"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a mapping with at least 'output' and 'tasks', found nothing"),
        ("# only a comment\n", "found nothing"),
        ("- a\n- b\n", "expected a mapping with at least 'output' and 'tasks', found list ['a', 'b']"),
        ("just words", "found str 'just words'"),
        ("output: o\ntasks: [\n  a: b: c\n", "run.yaml:3: not YAML: "),
        ("output: o\n\ttasks: 1\n", "run.yaml:2: not YAML: "),
        ("output: 2024-13-45\ntasks: [{path: a}]", "a value that cannot be read: month must be in 1..12"),
        (b"output: caf\xe9\n", "expected UTF-8 text, found byte 0xe9"),
        (b"output: o\x00\n", "not YAML: "),
    ],
)
def test_what_is_no_run_file_is_refused(file, content, message):
    told = refused(file, content)
    assert message in told
    assert str(file) in told


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml: no such file"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_byte_order_mark_is_no_fault(file):
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_config(file).output == "out"


def test_overrides_reach_every_level(file):
    config = load_config(
        file,
        [
            "training.lr=1e-3", "adapter.target_modules=[q_proj, v_proj]", "tasks.1.train=16", "tasks.0.fields.input=q",
            "output=there", "chat_template=false", "training.eval_every=", "tasks.0.path=other.jsonl",
            "tasks.0.instruction=a=b",
        ],
    )  # fmt: skip
    assert config.training.lr == 1e-3
    assert config.adapter.target_modules == ["q_proj", "v_proj"]
    assert (config.tasks[0].train, config.tasks[1].train) == (None, 16)
    assert config.tasks[0].fields == {"input": "q"}
    assert (config.output, config.chat_template, config.training.eval_every) == ("there", False, None)
    assert config.tasks[0].path == str(file.parent / "other.jsonl")
    assert config.tasks[0].instruction == "a=b"


def test_an_override_replaces_what_the_file_says_and_the_last_one_wins(file):
    file.write_text(MINIMAL + "training: {steps: 7, rows: 6}\n", encoding="utf-8")
    training = load_config(file, ["training.steps=8", "training.steps=9"]).training
    assert (training.steps, training.rows) == (9, 6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr", "expected key=value, such as training.lr=1e-3"),
        ("=3", "expected key=value"),
        ("training.lr=[1", "'[1' is not a YAML value"),
        ("seed=2024-13-45", "is not a YAML value"),
        ("prompt=Q: {input}\\nA: {output}", "write a text like this in double quotes, as in 'prompt=\"...\"'"),
        ("tasks.7.train=1", "expected a number from 0 to 1, found '7'"),
        ("tasks.first.train=1", "expected a number from 0 to 1, found 'first'"),
        ("tasks.-1.train=1", "expected a number from 0 to 1, found '-1'"),
        ("output.name=1", "'output' holds str 'out', which has no fields"),
        ("training.stepz=1", "training.stepz: no such field; did you mean 'steps'?"),
        ("training.steps=none", "training.steps: expected a valid integer"),
    ],
)
def test_a_bad_override_is_refused(file, override, message):
    told = refused(file, MINIMAL, override)
    assert message in told


def test_a_resolved_config_reads_back_as_itself(file):
    config = load_config(file, ["training.eval_every=5", "tasks.0.train=3"])
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(file) == config


def leaves(spec: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Dotted key to description, by another way than `field_rows`: from the models themselves."""
    found = {}
    for name, info in spec.model_fields.items():
        inner = {"tasks": TaskSpec, "adapter": AdapterSpec, "training": TrainingSpec, "evaluation": EvaluationSpec}
        inner |= {"federation": FederationSpec, "tasks_from": TasksFromSpec}
        if spec is RunConfig and name in inner:
            found |= leaves(inner[name], f"{name}.N." if name == "tasks" else f"{name}.")
        else:
            found[f"{prefix}{name}"] = info.description or ""
    return found


def test_every_field_has_a_description_and_a_row():
    expected = leaves(RunConfig)
    assert len(expected) > 50
    assert {key for key, text in expected.items() if not text.strip()} == set()
    rows = list(field_rows())
    assert {default for _, _, default, _ in rows} >= {"derived", "required", "none"}
    assert not [key for key, _, default, _ in rows if "Undefined" in default]
    assert {key: text for key, _, _, text in rows} == expected
    assert [key for key, kind, default, _ in rows if not kind or not default] == []
    by_key = {key: (kind, default) for key, kind, default, _ in rows}
    assert by_key["output"] == ("str", "required")
    assert by_key["training.lr"] == ("float", "0.001")
    assert by_key["training.scheduler"] == ("cosine | linear | constant", "cosine")
    assert by_key["adapter.exclude_modules"] == ("str | list of str | null", "none")
    assert by_key["chat_template"] == ("bool", "true")


def test_schema_shows_every_field_uncut():
    result = cli("schema")
    assert result.exit_code == 0
    for key in leaves(RunConfig):
        assert f" {key} " in result.stdout
    assert "…" not in result.stdout
    assert result.stderr == ""


def test_schema_json_is_a_json_schema_of_every_field():
    schema = json.loads(cli("schema", "--json").stdout)
    parts = {"": schema, **{name: schema["$defs"][name] for name in schema["$defs"]}}
    found = {(part, name): value for part, one in parts.items() for name, value in one["properties"].items()}
    assert {key.rsplit(".", 1)[-1] for key in leaves(RunConfig)} <= {name for _, name in found}
    for place, value in found.items():
        assert value["description"], place
        kinds = [one for one in [value, *value.get("anyOf", [])] if {"type", "$ref"} & one.keys()]
        assert kinds, place
        for target in [one["$ref"] for one in kinds if "$ref" in one]:
            assert target.removeprefix("#/$defs/") in schema["$defs"]
    # What an editor needs to mark a misspelt or a missing key.
    assert {part["additionalProperties"] for part in parts.values()} == {False}
    assert schema["required"] == ["output"]
    assert schema["oneOf"] == [{"required": ["tasks"]}, {"required": ["tasks_from"]}]
    assert found["TrainingSpec", "scheduler"]["enum"] == ["cosine", "linear", "constant"]
    assert found["TrainingSpec", "steps"]["minimum"] == 1


def test_whose_splits_are_shared_is_relative_to_the_file_and_needs_shared_splits(file):
    fields = ["shared_splits=true", "shared_with=[{path: other.jsonl}]"]
    assert load_config(file, fields).shared_with[0].path == str((file.parent / "other.jsonl").resolve())
    assert "shared_with: says whose splits are shared, and needs shared_splits: true" in refused(
        file, MINIMAL, fields[1]
    )


def test_what_is_of_tasks_alone_is_no_business_of_a_federation(file):
    fields = ["shared_splits=true", "shared_with=[{path: other.jsonl}]", "examples_a_task=[4]"]
    assert load_federation(file, fields).seed == 0
