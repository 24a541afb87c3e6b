"""`colora check`: what a run would do, without doing it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from colora.bank.load import load_bank
from colora.bank.overview import bank_overview, task_sizes
from colora.training.check import check_run
from colora.training.config_file import load_config
from colora.training.measure import evaluate_bank
from colora.training.run import train, train_and_evaluate
from tests.helpers import odd_models
from tests.helpers.run_files import cli, config_of, content, refusal, run_file, save_base, write_task
from tests.helpers.tiny import tiny_gpt2, tiny_llama, tiny_t5

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

FAMILIES = {"llama": tiny_llama, "gpt2": tiny_gpt2, "t5": tiny_t5}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {name: save_base(tmp_path_factory.mktemp(name), make()) for name, make in FAMILIES.items()}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt2", {"adapter": {"init_weights": "gaussian"}}),
        ("t5", {"adapter": {"r": 2, "init_weights": "orthogonal"}}),
        ("llama", {"training": {"base_dtype": "fp64"}, "adapter": {"target_modules": ["q_proj", "up_proj"]}}),
        ("llama", {"training": {"base_dtype": "bf16"}, "adapter": {"modules_to_save": ["norm"]}}),
    ],
)
def test_its_sizes_are_those_of_the_bank_that_is_trained(bases, tmp_path, family, changes):
    changes = {"training": {"steps": 1}} | changes
    changes["training"] = {"steps": 1} | changes["training"]
    config = config_of(tmp_path, bases[family], **changes)
    plan = check_run(config)
    train(config)
    overview = bank_overview(tmp_path / "out")
    assert (plan.per_task, plan.shared) == (overview.per_task, overview.shared)
    tensors = load_file(tmp_path / "out" / "bank" / "adapter_model.safetensors")
    cores = [value for name, value in tensors.items() if "colora_core" in name]
    factors = [value for name, value in tensors.items() if "colora_A" in name or "colora_B" in name]
    assert plan.per_task.parameters == sum(value.numel() for value in cores) // 2
    assert plan.per_task.bytes == sum(value.nbytes for value in cores) // 2
    assert plan.shared.parameters == sum(value.numel() for value in factors)
    assert plan.shared.bytes == sum(value.nbytes for value in factors)
    assert plan.base_parameters == FAMILIES[family]().num_parameters()


def test_the_plan_of_a_loaded_bank(bases, tmp_path):
    config = config_of(tmp_path, bases["llama"], training={"steps": 1})
    train(config)
    plan = check_run(config)  # the folder is in use by the very same run
    model, _, _ = load_bank(tmp_path / "out")
    assert task_sizes(model) == (plan.per_task, plan.shared)


def test_it_writes_nothing_and_trains_nothing(bases, tmp_path, monkeypatch):
    file = run_file(tmp_path, bases["llama"])
    before = content(tmp_path), content(Path(bases["llama"]))

    def forbidden(*args, **kwargs):
        raise AssertionError("a forward or a backward pass")

    monkeypatch.setattr(torch.nn.Linear, "forward", forbidden)
    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.chdir(tmp_path)
    result = cli("check", file)
    assert result.exit_code == 0, result.stderr
    assert (content(tmp_path), content(Path(bases["llama"]))) == before


def test_it_counts_examples_and_tokens(bases, tmp_path):
    write_task(tmp_path, "lone", count=1)
    tasks = ["red", {"path": "lone.jsonl", "val": 0, "test": 0}]
    plan = check_run(config_of(tmp_path, bases["llama"], tasks, training={"rows": 6}))
    red, lone = plan.reports
    assert (red.name, red.examples, lone.examples) == ("red", 7, 1)
    # Bytes are tokens: <|user|>red 3</s><|assistant|> has 8, and an output ends with one more.
    assert lone.tokens == lone.max_tokens == 3 + len("lone 0") + len("lone") + 1
    assert plan.tokens_per_step == pytest.approx(6 * (red.tokens + lone.tokens) / 8)
    assert plan.manifest["red"]["split_seed"] == 0
    assert plan.manifest["lone"]["split_seed"] is None


def test_more_of_anything_needs_more_memory(bases, tmp_path):
    def memory(**training):
        return check_run(config_of(tmp_path, bases["llama"], training=training)).memory_bytes

    plain = memory()
    weights = sum(parameter.nbytes for parameter in tiny_llama().parameters())
    assert plain > weights
    assert memory(rows=8) > plain > memory(accumulation=2)
    assert memory(gradient_checkpointing=True) < plain < memory(base_dtype="fp64")


def test_the_size_of_a_task_does_not_depend_on_how_many_there_are(bases, tmp_path):
    write_task(tmp_path, "red")
    tasks = [{"path": "red.jsonl", "name": f"t{number}", "train": 2, "val": 0, "test": 1} for number in range(300)]
    config = config_of(tmp_path, bases["llama"], tasks)
    few = check_run(config_of(tmp_path, bases["llama"]))
    many = check_run(config)
    assert (many.per_task, many.shared) == (few.per_task, few.shared)
    assert len(many.reports) == 300


def test_what_is_printed(bases, tmp_path):
    name = "a rather long name of a task that no terminal has room for in one line"
    tasks = ["red", {"path": write_task(tmp_path, "blue"), "name": name, "test": 0, "val": 0}]
    result = cli("check", run_file(tmp_path, bases["llama"], tasks))
    plan = check_run(config_of(tmp_path, bases["llama"], tasks))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert cells[0][:4] == ["red", "7", "1", "2"]
    assert cells[0][-1] == "0"
    assert cells[1][-1] == "-"
    assert " ".join(row[0] for row in cells[1:]).replace(" ", "") == name.replace(" ", "")
    for line in (
        f"base: {plan.base_parameters:,} parameters, frozen",
        f"each task: {plan.per_task.parameters:,} parameters",
        f"shared A and B: {plan.shared.parameters:,} parameters",
        f"tokens per step: about {plan.tokens_per_step:,.0f}",
        "memory: about ",
    ):
        assert line in result.stdout
    assert result.stderr == ""


def test_layers_that_the_bank_does_not_have_are_told_once(tmp_path):
    base = save_base(tmp_path / "base", odd_models.qwen2_moe(), chat=False)
    file = run_file(tmp_path, base, adapter={"r": 8})
    told = "'all-linear' leaves out 2 linear layers (model.layers.*.mlp.shared_expert_gate): smaller than r=8"
    (note,) = [note for note in check_run(load_config(file)).notes if "all-linear" in note]
    assert note.startswith(told)
    for command in ("check", "train"):
        result = cli(command, str(file))
        assert result.exit_code == 0
        assert (result.stdout + result.stderr).replace("\n", " ").count("leaves out 2 linear layers") == 1


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"target_modules": ["q_proj", "v_porj"]}, "target_modules: 'v_porj' is not found"),
        ({"exclude_modules": ["v_porj"]}, "exclude_modules: 'v_porj' is not found"),
        ({"layers_to_transform": [2]}, "'layers_to_transform': [2] not found"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save: 'lm_haed' is not found"),
    ],
)
def test_a_name_that_matches_nothing(bases, tmp_path, adapter, message):
    file = str(run_file(tmp_path, bases["llama"], adapter=adapter))
    for command in ("check", "train"):
        assert message in refusal(command, file)
    assert not (tmp_path / "out").exists()


def test_texts_that_another_task_trains_on_are_told_in_check_and_log(tmp_path):
    base = save_base(tmp_path / "base")
    write_task(tmp_path, "red")
    (tmp_path / "rot.jsonl").write_text((tmp_path / "red.jsonl").read_text("utf-8"), "utf-8")
    tasks = [{"path": "red.jsonl"}, {"path": "rot.jsonl"}]
    note = "of 4 test inputs are training or validation inputs of other tasks"
    config = config_of(tmp_path, base, tasks, training={"steps": 1})
    assert any(note in line for line in check_run(config).notes)
    lines = []
    train(config, log=lines.append)
    assert any(note in line for line in lines)
    apart = config_of(tmp_path, base, tasks, training={"steps": 1}, shared_splits=True, output=str(tmp_path / "apart"))
    assert not any("test inputs" in line for line in check_run(apart).notes)
    lines.clear()
    train_and_evaluate(apart, log=lines.append)
    assert not any("test inputs" in line for line in lines)
    assert "shared_splits: true" in (tmp_path / "apart" / "run.yaml").read_text("utf-8")
    evaluate_bank(tmp_path / "apart" / "bank")  # whose tasks are read again, and are the same


def test_an_output_folder_of_another_run_is_a_fault_as_it_is_when_training(bases, tmp_path):
    run = run_file(tmp_path, bases["llama"])
    assert cli("check", run).exit_code == 0
    assert cli("train", run).exit_code == 0
    assert cli("check", run).exit_code == 0  # its own
    before = content(tmp_path / "out")
    assert refusal("check", run, "adapter.r=3") == refusal("train", run, "adapter.r=3")
    assert "out holds another run" in refusal("check", run, "adapter.r=3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "mine is not empty and holds no run" in refusal("check", run, f"output={tmp_path / 'mine'}")
    assert content(tmp_path / "out") == before
