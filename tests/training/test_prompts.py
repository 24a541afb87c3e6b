"""Prompts of run files: what may stand there, what training, measuring and checking make of it, and what is kept."""

import json

import pytest
import yaml

from colora.bank.layout import BankInfo, read_bank_info
from colora.errors import ConfigError
from colora.models.base import load_base
from colora.models.prompt_choice import LEFT_OUT, likeliest_template
from colora.tasks.encode import prompt_and_answer
from colora.tasks.prompting.templates import NAMED_TEMPLATES, parse_template
from colora.tasks.schema import Example, Task, task_template
from colora.training.check import check_run
from colora.training.config_file import load_config, load_federation
from colora.training.measure import evaluate_bank
from colora.training.resolve import resolve_run
from colora.training.run import train, train_and_evaluate
from tests.helpers.run_files import bank_tensors, cli, config_of, refusal, run_file, save_base, write_task
from tests.helpers.tiny import tiny_llama, tiny_t5

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QA = "Q: {input}\nA: {output}"
TRIED = [name for name in NAMED_TEMPLATES if name not in LEFT_OUT]
NAMED = "{instruction}\nQ: {input}\nA: {output}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def plain_base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("plain"), chat=False)


def two_tasks(folder, **first):
    return [{"path": write_task(folder, "red")} | first, {"path": write_task(folder, "blue")}]


def texts(result, base):
    """The first training row of each task as text, prompt and answer apart."""
    _, tokenizer = load_base(base)
    rows = [result.encoded.train[offset] for offset in result.encoded.train.offsets]
    return [tuple(map(tokenizer.decode, prompt_and_answer(row))) for row in rows]


def test_the_prompt_of_a_task_wins_and_both_are_kept(base, tmp_path):
    config = config_of(tmp_path, base, two_tasks(tmp_path, prompt="arrow"), prompt=QA, training={"steps": 1})
    result = train(config)
    (first, answer), (second, _) = texts(result, base)
    assert first.endswith(" ->")
    assert answer.startswith(" rot")
    assert answer.endswith("</s>")
    assert second.startswith("Q: blue ")
    assert second.endswith("\nA:")
    kept = json.loads((tmp_path / "out" / "bank" / "bank.json").read_text())
    assert (kept["prompt"], kept["prompts"]) == (QA, {"red": NAMED_TEMPLATES["arrow"].text})


def test_without_a_prompt_everything_is_as_it_was(base, tmp_path):
    result = train(config_of(tmp_path, base, training={"steps": 1}))
    assert texts(result, base)[0][0].startswith("<|user|>red ")
    kept = json.loads((tmp_path / "out" / "bank" / "bank.json").read_text())
    assert not {"prompt", "prompts"} & kept.keys()  # an earlier version can read it
    assert read_bank_info(tmp_path / "out" / "bank").template("red") is None


def test_measuring_a_saved_bank_gives_the_numbers_of_the_run(base, tmp_path):
    config = config_of(tmp_path, base, two_tasks(tmp_path, prompt="chat"), prompt=QA)
    _, measured = train_and_evaluate(config)
    again = evaluate_bank(tmp_path / "out", progress=False)
    assert [one.task for one in again.records] == [one.task for one in measured.records]
    values = [one.value for one in measured.records]
    assert [one.value for one in again.records] == pytest.approx(values, rel=1e-5)
    info = json.loads((tmp_path / "out" / "bank" / "bank.json").read_text())
    (tmp_path / "out" / "bank" / "bank.json").write_text(json.dumps(info | {"prompt": None, "prompts": {}}))
    other = evaluate_bank(tmp_path / "out", progress=False)
    assert other.records[0].value == pytest.approx(values[0], rel=1e-5)  # red's is the chat template either way
    assert other.records[1].value != pytest.approx(values[1], rel=1e-3)


def test_templates_of_the_examples_are_kept_too(base, tmp_path):
    template = parse_template(QA)
    examples = tuple(Example(f"red {number}", ("rot",), template=template) for number in range(4))
    task = Task("red", {"train": examples, "val": (), "test": examples[:1]}, "memory", None)
    config = config_of(tmp_path, base, ["red"], prompt="arrow", training={"steps": 1})
    assert texts(train(config, [task]), base)[0][0] == "Q: red 0\nA:"
    info = read_bank_info(tmp_path / "out" / "bank")
    assert (info.prompt, info.prompts) == (NAMED_TEMPLATES["arrow"].text, {"red": QA})
    mixed = Task("red", {"train": (examples[0], Example("a", ("b",))), "val": (), "test": ()}, "memory", None)
    with pytest.raises(ConfigError, match="task 'red': expected one prompt for all its examples"):
        train(config_of(tmp_path, base, ["red"], output=str(tmp_path / "x")), [mixed])


def test_a_prompt_that_all_tasks_have_is_that_of_tasks_to_come(base, tmp_path):
    tasks = two_tasks(tmp_path, prompt=QA)
    tasks[1]["prompt"] = QA
    train(config_of(tmp_path, base, tasks, training={"steps": 1}))
    info = read_bank_info(tmp_path / "out" / "bank")
    assert (info.prompt, info.prompts) == (QA, {})


# ---- auto ------------------------------------------------------------------------------------------------------------


def best(base, tasks, names):
    model, tokenizer = load_base(base)
    nats = {
        name: likeliest_template(model, tokenizer, tasks, 96, {name: NAMED_TEMPLATES.get(name)})[1][name]
        for name in names
    }
    return min(nats, key=nats.__getitem__), nats


def test_auto_takes_the_likeliest_and_tells_all(base, tmp_path):
    config = config_of(tmp_path, base, two_tasks(tmp_path, prompt=QA), prompt="auto", training={"steps": 1})
    lines = []
    result = train(config, log=lines.append)
    blue = [
        task for task in resolve_run(load_config(tmp_path / "run.yaml", ["prompt=null"])).tasks if task.name == "blue"
    ]
    wanted, nats = best(base, blue, [*TRIED, "chat"])
    expected = "chat" if wanted == "chat" else NAMED_TEMPLATES[wanted].text
    (line,) = [line for line in lines if line.startswith("prompt: auto takes")]
    assert repr(expected) in line
    assert all(f"{name} {value:.3f}" in line for name, value in nats.items())
    kept = json.loads((tmp_path / "out" / "prompt.json").read_text())
    assert kept["prompt"] == expected
    assert kept["nats"] == pytest.approx(nats)
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["prompt"] == "auto"
    assert [task_template(task) for task in result.tasks] == [parse_template(QA), NAMED_TEMPLATES.get(wanted)]


def test_auto_leaves_the_chat_template_out_where_it_is_switched_off(base, tmp_path):
    lines = []
    train(config_of(tmp_path, base, prompt="auto", chat_template=False, training={"steps": 1}), log=lines.append)
    assert "chat" not in lines[0]
    assert all(name in lines[0] for name in TRIED)
    assert not any(name in lines[0] for name in LEFT_OUT)


def test_a_run_goes_on_with_what_was_decided_at_its_start(base, tmp_path, monkeypatch):
    config = config_of(tmp_path, base, prompt="auto", training={"steps": 1})
    train(config)
    (tmp_path / "out" / "prompt.json").write_text(json.dumps({"prompt": QA}))

    def forbidden(*args):
        raise AssertionError("decided again")

    monkeypatch.setattr("colora.training.prompts.likeliest_template", forbidden)
    for file in (tmp_path / "out" / "bank").iterdir():
        file.unlink()
    (tmp_path / "out" / "bank").rmdir()
    result = train(load_config(tmp_path / "run.yaml"))
    assert {task_template(task) for task in result.tasks} == {parse_template(QA)}
    assert read_bank_info(tmp_path / "out" / "bank").prompt == QA
    (tmp_path / "out" / "prompt.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"prompt\.json: damaged"):
        check_run(load_config(tmp_path / "run.yaml"))


def test_another_prompt_is_another_run(base, tmp_path):
    train(config_of(tmp_path, base, prompt=QA, training={"steps": 1}))
    for prompt in ("auto", "arrow"):
        with pytest.raises(ConfigError, match="holds another run") as caught:
            train(load_config(tmp_path / "run.yaml", [f"prompt={prompt}"]))
        assert "prompt: it has" in str(caught.value)


def test_auto_with_nothing_to_compare_on(base, tmp_path):
    long = [{"input": "word " * 40, "output": "short"}] * 1 + [
        {"input": f"word {i} " * 40, "output": "b"} for i in range(9)
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    config = config_of(tmp_path, base, [{"path": "long.jsonl"}], prompt="auto")
    with pytest.raises(ConfigError, match=r"no training example fits into training\.max_length \(96 tokens\)"):
        train(config)
    assert not (tmp_path / "out").exists()


def test_auto_takes_the_chat_template_for_conversations(base, plain_base, tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    rows = [{"messages": [*turns[:3], {"role": "assistant", "content": f"b {number}"}]} for number in range(9)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = train(config_of(tmp_path, base, [{"path": "talk.jsonl"}], prompt="auto", training={"steps": 1}))
    assert result.run.prompt == "chat"
    with pytest.raises(ConfigError, match="without a chat template"):
        train(config_of(tmp_path, plain_base, [{"path": "talk.jsonl"}], prompt="auto", output=str(tmp_path / "x")))
    with pytest.raises(ConfigError, match=r"found a conversation, and .* has a place for one text: take chat"):
        resolve_run(config_of(tmp_path, base, [{"path": "talk.jsonl"}], prompt=QA, output=str(tmp_path / "x")))


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_with_their_places(base, tmp_path):
    path = run_file(tmp_path, base, two_tasks(tmp_path, prompt="{input}"), prompt="{input} {outputs}", seed=-1)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: 3 faults")
    assert [fault.partition(", found")[0] for fault in sorted(caught.value.faults)] == [
        "prompt: expected the fields {instruction}, {input} and {output}",
        "seed: expected greater than or equal to 0",
        "tasks.0.prompt: expected {output} once",
    ]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["prompt=qqa"],
            "prompt: expected a text with {input} and {output}, or one of newline, qa, input-output, arrow",
        ),
        (["prompt=chat", "chat_template=false"], "prompt: chat asks for what chat_template: false switches off"),
        (["tasks.0.prompt=chat", "chat_template=false"], "tasks: 0.prompt: chat asks for what chat_template: false"),
        (
            ["tasks.0.prompt=auto"],
            "tasks.0.prompt: auto is decided for the run as a whole: set prompt: auto at the top",
        ),
        (["prompt='Q: {input}\\nA: {output}'"], "prompt: found a backslash and an n"),
        (["prompt=7"], "prompt: expected a valid string, found 7"),
        (["prompt='{input} {output}.'"], "prompt: expected {output} at the end, found '.' after it"),
    ],
)
def test_prompts_that_cannot_be(base, tmp_path, overrides, told):
    path = run_file(tmp_path, base, two_tasks(tmp_path))
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert told in str(caught.value)


def test_texts_without_a_place_are_told_for_all_tasks_before_the_base_is_loaded(tmp_path):
    tasks = two_tasks(tmp_path, prompt=QA, instruction="Say it.")
    tasks[1] |= {"instruction": "Say that."}
    config = config_of(tmp_path, "nowhere", tasks, prompt="{input} {output}")
    with pytest.raises(ConfigError) as caught:
        check_run(config)
    assert caught.value.faults == [
        f"tasks.0.prompt: task 'red', train example 1: found the instruction 'Say it.', and {QA!r} has no "
        "{instruction}: add it",
        "prompt: task 'blue', train example 1: found the instruction 'Say that.', and '{input} {output}' has no "
        "{instruction}: add it",
    ]


def test_chat_needs_a_chat_template(plain_base, tmp_path):
    config = config_of(tmp_path, plain_base, two_tasks(tmp_path, prompt="chat"))
    for call in (check_run, train):
        with pytest.raises(ConfigError, match="prompt: chat: the tokenizer of the base has no chat template"):
            call(config)
    t5 = save_base(tmp_path / "t5", tiny_t5())
    with pytest.raises(ConfigError, match="prompt: chat: an encoder-decoder reads plain texts"):
        check_run(config_of(tmp_path, t5, prompt="chat"))


# ---- check -----------------------------------------------------------------------------------------------------------


def test_check_shows_an_example_of_each_task_in_tokens(base, tmp_path):
    tasks = two_tasks(tmp_path, prompt="arrow", test=5, val=0)
    result = cli("check", run_file(tmp_path, base, tasks))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    first = lines[lines.index(next(line for line in lines if line.startswith("red: "))) + 1]
    assert first.startswith("  [r][e][d][ ]")
    assert "[ ][-][>]{ }{r}{o}{t}" in first
    assert first.endswith("{</s>}")
    second = lines[lines.index(next(line for line in lines if line.startswith("blue: "))) + 1]
    assert second.startswith("  [<|user|>][b][l][u][e][ ]")
    assert "[</s>][<|assistant|>]{b}" in second


def test_check_tells_what_auto_would_take_and_writes_nothing(base, tmp_path):
    config = config_of(tmp_path, base, prompt="auto")
    plan = check_run(config)
    assert plan.notes[0].startswith("prompt: auto takes ")
    assert not (tmp_path / "out").exists()
    lines = []
    train(config, log=lines.append)
    assert lines[0] == plan.notes[0]


# ---- from a bank -----------------------------------------------------------------------------------------------------


def test_a_run_from_a_bank_keeps_its_prompts(base, tmp_path):
    train(config_of(tmp_path, base, two_tasks(tmp_path, prompt="arrow"), prompt=QA, training={"steps": 1}))
    tasks = [{"path": write_task(tmp_path, name)} for name in ("green", "red")]
    start = {"start_from": str(tmp_path / "out"), "training": {"steps": 1}}

    def run(name, **changes):
        path = run_file(tmp_path, base, tasks, output=str(tmp_path / name), **start, **changes)
        value = yaml.safe_load(path.read_text())
        del value["adapter"]
        path.write_text(yaml.safe_dump(value))
        return [prompt for prompt, _ in texts(train(load_config(path)), base)]

    green, red = run("on")
    assert green.startswith("Q: green")
    assert red.endswith(" ->")
    info = read_bank_info(tmp_path / "on" / "bank")
    assert (info.prompt, info.prompts) == (QA, {"red": NAMED_TEMPLATES["arrow"].text})
    green, red = run("other", prompt="chat")
    assert green.startswith("<|user|>green")
    assert red.startswith("<|user|>red")
    assert read_bank_info(tmp_path / "other" / "bank").prompts == {}


# ---- federations -----------------------------------------------------------------------------------------------------


def test_a_federation_names_one_prompt(base, tmp_path):
    path = run_file(tmp_path, base, two_tasks(tmp_path, prompt=QA), prompt="auto")
    with pytest.raises(ConfigError, match=r"prompt: auto compares prompts on training examples.*`colora check`"):
        load_federation(path)
    assert load_federation(path, ["prompt=qa"]).prompt == "qa"
    told = refusal("federate", "simulate", path)
    assert "prompt: auto compares prompts" in told
    assert "tasks.0.prompt: the clients of a federation agree on one prompt" in told


def test_the_same_prompt_gives_the_same_bank_by_name_and_by_text(base, tmp_path):
    for name, prompt in (("a", "qa"), ("b", NAMED)):
        train(config_of(tmp_path, base, prompt=prompt, output=str(tmp_path / name), training={"steps": 2}))
    one, other = bank_tensors(tmp_path / "a"), bank_tensors(tmp_path / "b")
    assert all((one[key] == other[key]).all() for key in one)
    assert BankInfo("x", prompt="qa").prompt == NAMED


def test_tiny_models_differ_under_prompts(base):
    """What the tests above rely on."""
    task = Task("red", {"train": (Example("red 1", ("rot",)),), "val": (), "test": ()}, "memory", None)
    _, nats = best(base, [task], [*NAMED_TEMPLATES, "chat"])
    assert len(set(nats.values())) == len(nats)
    assert tiny_llama().config.vocab_size < 300
