"""Runs from a file: what they leave behind, going on after every kind of end, and refusing what cannot be done."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import colora.bank.load
from colora.adapter.model import bank_layers
from colora.bank.layout import read_bank_info
from colora.bank.load import load_bank
from colora.errors import (
    BankFileError,
    BaseMismatchError,
    BaseModelError,
    ConfigError,
    InterruptedRunError,
    TaskFileError,
    TrainingDivergedError,
)
from colora.evaluation.records import read_records
from colora.training.loop import trainer as trainer_module
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.measure import evaluate_bank
from colora.training.run import train, train_and_evaluate
from tests.helpers.real_data import real_data
from tests.helpers.run_files import bank_tensors, cli, config_of, content, refusal, run_file, save_base, write_task
from tests.helpers.tiny import tiny_gpt2, tiny_llama, tiny_t5

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"), tiny_llama(positions=4096))


@pytest.fixture(scope="module")
def ended(tmp_path_factory, base):
    """The folder of a run that has ended, for tests that only look; (its config, what was logged)."""
    folder, lines = tmp_path_factory.mktemp("ended"), []
    config = config_of(folder, base, evaluation={"metrics": ["rougeL", "exact_match", "nll"]})
    result, evaluation = train_and_evaluate(config, log=lines.append)
    assert (result.steps, result.reused) == (4, False)
    return config, evaluation, lines


@pytest.fixture
def copy(ended, tmp_path):
    """A copy of the ended run that a test may break, and its run file."""
    config, _, _ = ended
    folder = Path(config.output).parent
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "run.yaml").read_text().replace(str(folder), str(tmp_path))
    (tmp_path / "run.yaml").write_text(text)
    run = tmp_path / "out" / "run.yaml"
    run.write_text(run.read_text().replace(str(folder), str(tmp_path)))
    return tmp_path


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def cores(tensors):
    return {name: value for name, value in tensors.items() if "colora_core" in name}


# ---- what a run leaves behind ------------------------------------------------------------------------------------


def test_a_run_leaves_bank_records_tasks_and_environment(ended):
    config, evaluation, _ = ended
    out = Path(config.output)
    names = {path.name for path in out.iterdir()}
    assert names == {"run.yaml", "tasks.json", "bank", "checkpoints", "records.jsonl", "environment.json"}
    records = read_records(out / "records.jsonl")
    assert records == evaluation.records
    assert {(one.task, one.metric) for one in records} == {
        (task, metric) for task in ("red", "blue") for metric in ("rougeL", "exact_match", "token_nll")
    }
    assert {(one.run, one.method, one.split, one.seed) for one in records} == {("out", "colora", "test", 0)}
    assert {"torch", "peft", "threads", "date"} <= json.loads((out / "environment.json").read_text()).keys()


def test_the_split_seed_and_the_digests_are_recorded(ended, base, tmp_path):
    tasks = json.loads((Path(ended[0].output) / "tasks.json").read_text())
    assert list(tasks) == ["red", "blue"]
    assert tasks["red"]["split_seed"] == 0
    assert {split: one["examples"] for split, one in tasks["red"]["splits"].items()} == {
        "train": 7,
        "val": 1,
        "test": 2,
    }
    other = config_of(tmp_path, base, seed=5)
    train(other)
    drawn = json.loads((tmp_path / "out" / "tasks.json").read_text())["red"]
    assert drawn["split_seed"] == 5
    assert drawn["splits"]["train"]["sha256"] != tasks["red"]["splits"]["train"]["sha256"]
    assert read_bank_info(tmp_path / "out" / "bank").sources["red"] == {"split_seed": 5}


def test_the_bank_says_how_it_came_to_be(ended, base):
    info = read_bank_info(Path(ended[0].output) / "bank")
    assert (info.base, info.max_length, info.chat_template) == (base, 96, True)
    assert info.examples == {"red": 7, "blue": 7}
    assert info.seen == {"red": 8, "blue": 8}  # 4 steps of 4 rows


def test_training_moved_the_bank_and_the_tasks_apart(ended):
    tensors = bank_tensors(Path(ended[0].output))
    for name, value in cores(tensors).items():
        assert not torch.equal(value[0], value[1]), name
    assert all(value.abs().max() > 0 for name, value in tensors.items() if "colora_B" in name)


def test_the_loaded_bank_is_the_trained_one(ended):
    model, _, _ = load_bank(ended[0].output)
    saved = bank_tensors(Path(ended[0].output))
    for name, layer in bank_layers(model, "default").items():
        assert torch.equal(layer.colora_core["default"], saved[f"base_model.model.{name}.colora_core"])


# ---- the same command again --------------------------------------------------------------------------------------


def test_a_run_that_has_ended_is_not_run_again(ended):
    config, evaluation, _ = ended
    before, lines = content(Path(config.output)), []
    result, again = train_and_evaluate(config, log=lines.append)
    assert result.reused
    assert lines == [f"{config.output} has ended before; nothing to train"]
    assert content(Path(config.output)) == before
    assert again.records == evaluation.records
    told = cli("train", Path(config.output).parent / "run.yaml")
    assert told.exit_code == 0
    assert "nothing to train" in told.stderr
    assert content(Path(config.output)) == before


def test_it_is_measured_if_it_had_not_been(copy):
    (copy / "out" / "records.jsonl").unlink()
    assert cli("train", copy / "run.yaml").exit_code == 0
    assert len(read_records(copy / "out" / "records.jsonl")) == 6


def test_it_can_be_run_again_after_other_splits_were_measured(copy):
    evaluate_bank(copy / "out", overrides={"split": "train", "metrics": ["nll"]}, progress=False)
    told = cli("train", copy / "run.yaml")
    assert told.exit_code == 0, told.stderr
    assert "token_nll" in told.stdout


def test_what_the_bank_does_not_depend_on_may_change(copy):
    told = cli("train", copy / "run.yaml", "training.save_every=1", "training.log_every=1", "evaluation.rows=3")
    assert told.exit_code == 0
    assert "nothing to train" in told.stderr


def test_another_run_in_the_same_folder_is_refused(copy):
    before = content(copy / "out")
    told = refusal("train", copy / "run.yaml", "training.lr=0.5", "adapter.r=2", "seed=3", "evaluation.rows=3")
    assert "holds another run" in told
    for line in ("training.lr: it has 0.001, this run 0.5", "adapter.r: it has 4, this run 2", "seed: it has 0"):
        assert line in told
    assert "evaluation" not in told
    assert content(copy / "out") == before


def test_changed_task_files_are_refused(copy):
    write_task(copy, "blue", count=12)
    for command in (["train", copy / "run.yaml"], ["evaluate", copy / "out"]):
        told = refusal(*command)
        assert "the task files are no longer those of the run" in told
        assert "task 'blue', split train: 7 examples then, 9 now" in told
        assert "red" not in told


@pytest.mark.parametrize("name", ["tasks.json", "run.yaml"])
@pytest.mark.parametrize("damage", ["", "[1", "{}", "- 3"])
def test_damaged_files_of_the_run_are_named(copy, name, damage):
    if name == "tasks.json" and damage == "{}":
        expected = "task 'red': not in that run"
    elif name == "run.yaml" and damage == "{}":
        expected = "run.yaml: 2 faults"
    else:
        expected = f"{name}: damaged"
    (copy / "out" / name).write_text(damage)
    assert expected in refusal("train", copy / "run.yaml")


def test_a_foreign_folder_is_refused_and_left_alone(base, tmp_path):
    file = run_file(tmp_path, base)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "is not empty and holds no run; choose another output" in refusal("train", file)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    assert "is a file; choose another output" in refusal("train", file, f"output={tmp_path / 'file'}")
    assert "could not write" in refusal("train", file, f"output={tmp_path / 'file' / 'out'}")


def test_a_folder_with_only_logs_or_half_written_files_is_free(base, tmp_path):
    config = config_of(tmp_path, base, training={"steps": 1})
    (tmp_path / "out" / "logs").mkdir(parents=True)
    (tmp_path / "out" / ".writing-run.yaml").write_text("half")
    assert train(config).steps == 1


# ---- going on after an end ---------------------------------------------------------------------------------------

LONG = {"steps": 120, "save_every": 10, "rows": 4}


def start(file):
    command = [sys.executable, "-m", "colora", "train", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_checkpoint(run):
    return max((int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("checkpoint-*")), default=0)


def wait_for_step(step, run, process):
    until = time.monotonic() + 90
    while last_checkpoint(run) < step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_then_interrupted_a_run_ends_with_the_same_bank(base, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    train(config_of(whole, base, training=LONG))
    file = run_file(broken, base, training=LONG)

    process = start(file)
    wait_for_step(20, broken / "out", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (broken / "out" / "bank").exists()
    told = refusal("tasks", broken / "out")
    assert "this run has checkpoints but has not ended: run `colora train` again to go on" in told

    reached = last_checkpoint(broken / "out")
    process = start(file)
    wait_for_step(reached + 10, broken / "out", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert f"going on from {broken / 'out' / 'checkpoints' / f'checkpoint-{reached}'}" in err
    assert "run the same command again to go on from there" in err
    assert "Traceback" not in err
    stopped = int(err.split("interrupted at step ")[1].split(";")[0])
    assert (broken / "out" / "checkpoints" / f"checkpoint-{stopped}").is_dir()
    assert not (broken / "out" / "bank").exists()

    result = cli("train", file)
    assert result.exit_code == 0, result.stderr
    name = Path("out", "bank", "adapter_model.safetensors")
    assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert read_bank_info(whole / "out" / "bank") == read_bank_info(broken / "out" / "bank")


def test_a_run_that_died_before_its_bank_was_written(base, tmp_path, copy):
    bank = (copy / "out" / "bank" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(copy / "out" / "bank")
    (copy / "out" / "records.jsonl").unlink()
    assert cli("train", copy / "run.yaml").exit_code == 0
    assert (copy / "out" / "bank" / "adapter_model.safetensors").read_bytes() == bank


def test_ctrl_c_inside_a_step(base, tmp_path, monkeypatch):
    config = config_of(tmp_path, base)
    real, calls = CoLoRATrainer.compute_loss, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(CoLoRATrainer, "compute_loss", interrupted)
    with pytest.raises(InterruptedRunError, match="interrupted at step 3"):
        train(config)
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-3").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_nan_stops_the_run(base, tmp_path):
    told = refusal("train", run_file(tmp_path, base, training={"save_every": 1}), "training.lr=1e30")
    assert "became NaN or infinite in step" in told
    assert "try a smaller learning rate (lr, core_lr)" in told
    assert "checkpoint" in told
    assert not (tmp_path / "out" / "bank").exists()


def test_the_message_of_a_nan_names_task_step_and_checkpoint(base, tmp_path, monkeypatch):
    calls, row_nll = [], trainer_module.row_nll

    def poisoned(model, inputs, labels):
        calls.append(1)
        losses = row_nll(model, inputs, labels)
        return losses.masked_fill(inputs["task_ids"] == 1, float("nan")) if len(calls) == 4 else losses

    monkeypatch.setattr(trainer_module, "row_nll", poisoned)
    with pytest.raises(TrainingDivergedError) as caught:
        train(config_of(tmp_path, base))
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    assert f"in step 4, in task blue. The last good checkpoint is {checkpoint};" in str(caught.value)
    monkeypatch.setattr(trainer_module, "row_nll", row_nll)
    assert train(config_of(tmp_path, base)).steps == 4


# ---- measuring ---------------------------------------------------------------------------------------------------


def test_a_bank_is_measured_again_and_the_records_added(copy, ended):
    for path in (copy / "out", copy / "out" / "bank"):
        before = read_records(copy / "out" / "records.jsonl")
        result = evaluate_bank(path, overrides={"metrics": ["nll"]}, progress=False)
        assert read_records(copy / "out" / "records.jsonl") == [*before, *result.records]
        assert [(one.task, one.metric) for one in result.records] == [("red", "token_nll"), ("blue", "token_nll")]
    trained = {one.task: one.value for one in ended[1].records if one.metric == "token_nll"}
    assert {one.task: one.value for one in result.records} == pytest.approx(trained, rel=1e-6)


def test_another_split_and_a_limit(copy):
    result = evaluate_bank(copy / "out", overrides={"split": "train", "limit": 3, "metrics": ["exact_match"]})
    assert {(one.split, one.n) for one in result.records} == {("train", 3)}
    assert len(result.predictions) == 6


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_saved_bank_is_measured_where_it_would_be_trained(copy, monkeypatch, device):
    used, real = [], colora.bank.load.load_base
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cpu"))
    monkeypatch.setattr(
        colora.bank.load, "load_base", lambda *args, **more: used.append(more["device"]) or real(*args, **more)
    )
    file = copy / "out" / "run.yaml"
    file.write_text(file.read_text().replace("device: auto", f"device: {device}"))
    evaluate_bank(copy / "out", overrides={"metrics": ["nll"]})
    assert used == [torch.device("cpu") if device == "auto" else None]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"split": "dev"}, "evaluation.split: expected 'train', 'val' or 'test', found 'dev'"),
        ({"limit": 0}, "evaluation.limit: expected greater than or equal to 1, found 0"),
        ({"metric": ["nll"]}, "evaluation.metric: no such field; did you mean 'metrics'?"),
    ],
)
def test_what_cannot_be_measured_is_refused(copy, overrides, message):
    before = content(copy)
    with pytest.raises(ConfigError) as caught:
        evaluate_bank(copy / "out", overrides=overrides)
    assert message in str(caught.value)
    assert content(copy) == before


def test_a_bank_without_its_run(copy, tmp_path):
    shutil.copytree(copy / "out" / "bank", tmp_path / "alone" / "bank")
    with pytest.raises(ConfigError, match=r"run.yaml: missing; a bank is measured on the tasks of its run"):
        evaluate_bank(tmp_path / "alone" / "bank")


def test_the_base_may_lie_elsewhere(copy, base, tmp_path):
    shutil.copytree(base, tmp_path / "moved")
    text = (copy / "out" / "bank" / "bank.json").read_text()
    (copy / "out" / "bank" / "bank.json").write_text(text.replace(base, "/nowhere/base"))
    with pytest.raises(BaseModelError, match="nowhere"):
        evaluate_bank(copy / "out")
    result = evaluate_bank(copy / "out", base=str(tmp_path / "moved"), overrides={"metrics": ["nll"]})
    assert len(result.records) == 2


def test_a_task_without_test_examples_is_skipped_with_the_reason(base, tmp_path):
    write_task(tmp_path, "lone", count=1)
    lone = {"path": "lone.jsonl", "test": 0, "val": 0}
    result = cli("train", run_file(tmp_path, base, ["red", lone]))
    assert result.exit_code == 0
    assert "not measured: lone: no examples in split 'test'; splits with examples: train" in result.stderr
    assert {one.task for one in read_records(tmp_path / "out" / "records.jsonl")} == {"red"}
    assert read_bank_info(tmp_path / "out" / "bank").examples == {"red": 7, "lone": 1}


# ---- ways of training --------------------------------------------------------------------------------------------


def test_alternating_trains_the_shared_factors_first(base, tmp_path):
    adapter = {"r": 4, "init_rotation": 0.0}
    train(config_of(tmp_path, base, adapter=adapter, training={"schedule": "alternating", "turn": 2, "steps": 2}))
    tensors = bank_tensors(tmp_path / "out")
    assert all(value.abs().max() > 0 for name, value in tensors.items() if "colora_B" in name)
    for value in cores(tensors).values():
        assert torch.equal(value, torch.eye(4).expand(2, 4, 4))  # as they started


def test_alternating_and_joint_end_differently(base, ended, tmp_path):
    train(config_of(tmp_path, base, training={"schedule": "alternating", "turn": 2}))
    tensors = bank_tensors(tmp_path / "out")
    assert all(not torch.equal(value[0], value[1]) for value in cores(tensors).values())
    assert not equal(tensors, bank_tensors(Path(ended[0].output)))


def test_patience_ends_a_run_that_no_longer_improves(base, tmp_path):
    still = {"lr": 1e-30, "core_lr": 1e-30, "eval_every": 1, "patience": 1, "steps": 8}
    assert train(config_of(tmp_path, base, training=still)).steps == 2


def test_patience_without_validation_examples_is_refused_before_anything_is_written(base, tmp_path):
    tasks = [{"path": write_task(tmp_path, "red"), "val": 0}]
    file = run_file(tmp_path, base, tasks, training={"eval_every": 1})
    assert "training.eval_every needs validation examples" in refusal("train", file)
    assert "training.eval_every needs validation examples" in refusal("check", file)
    assert not (tmp_path / "out").exists()


def test_accumulated_micro_batches_give_the_same_bank(ended, base, tmp_path):
    train(config_of(tmp_path, base, training={"accumulation": 2}))
    one, other = bank_tensors(Path(ended[0].output)), bank_tensors(tmp_path / "out")
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


def test_gradient_checkpointing_gives_the_same_bank(ended, base, tmp_path):
    train(config_of(tmp_path, base, training={"gradient_checkpointing": True}))
    one, other = bank_tensors(Path(ended[0].output)), bank_tensors(tmp_path / "out")
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("training", [{"precision": "bf16"}, {"base_dtype": "bf16"}])
def test_bf16_trains_a_bank_in_fp32(ended, base, tmp_path, training):
    _, evaluation = train_and_evaluate(config_of(tmp_path, base, training=training))
    tensors = bank_tensors(tmp_path / "out")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert not equal(tensors, bank_tensors(Path(ended[0].output)))
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert len(evaluation.records) == 2
    assert evaluate_bank(tmp_path / "out", progress=False).records[0].value == pytest.approx(
        evaluation.records[0].value, rel=0.02
    )


def test_float64_all_the_way(base, tmp_path):
    _, evaluation = train_and_evaluate(config_of(tmp_path, base, training={"base_dtype": "fp64"}))
    assert {value.dtype for value in bank_tensors(tmp_path / "out").values()} == {torch.float64}
    again = evaluate_bank(tmp_path / "out", progress=False)
    assert [one.value for one in again.records] == [one.value for one in evaluation.records]


def test_an_encoder_decoder_trains_and_is_measured(tmp_path):
    base = save_base(tmp_path / "t5", tiny_t5())
    result = cli("train", run_file(tmp_path, base, evaluation={"metrics": ["rougeL", "nll"]}))
    assert result.exit_code == 0, result.stderr
    tensors = bank_tensors(tmp_path / "out")
    assert any("decoder" in name and "EncDecAttention" in name for name in tensors)
    assert all(value.abs().max() > 0 for name, value in tensors.items() if "colora_B" in name)
    written = cli("generate", tmp_path / "out", "red 3", "--task", "red", "--max-new-tokens", 3)
    assert written.exit_code == 0
    assert json.loads((tmp_path / "out" / "bank" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"


def test_every_adapter_field_reaches_the_bank(base, tmp_path):
    adapter = {
        "r": 3, "lora_alpha": 7.5, "use_rslora": True, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": ["v_proj"], "layers_to_transform": [1], "modules_to_save": ["norm"],
        "init_weights": "orthogonal",
    }  # fmt: skip
    train(config_of(tmp_path, base, adapter=adapter))
    saved = json.loads((tmp_path / "out" / "bank" / "adapter_config.json").read_text())
    assert {key: saved[key] for key in adapter} == adapter
    names = bank_tensors(tmp_path / "out").keys()
    assert {name.split(".")[4] for name in names if "colora" in name} == {"1"}
    assert {name.split(".")[6] for name in names if "colora" in name} == {"q_proj"}
    assert "base_model.model.model.norm.weight" in names


def test_tensorboard_events(base, tmp_path):
    pytest.importorskip("tensorboard")
    train(config_of(tmp_path, base, training={"tensorboard": True, "steps": 2}))
    assert list((tmp_path / "out" / "logs").rglob("events.out.tfevents*"))


# ---- kinds of task files -----------------------------------------------------------------------------------------


def test_a_dataset_saved_to_disk_is_a_task(base, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"red {number}", "answer": "rot"} for number in range(6)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    task = {"path": "saved", "fields": {"input": "question", "output": "answer"}, "instruction": "Translate."}
    result = train(config_of(tmp_path, base, [task]))
    assert result.tasks[0].splits["train"][0].instruction == "Translate."
    assert read_bank_info(tmp_path / "out" / "bank").examples == {"saved": 5}


def test_several_right_outputs(base, tmp_path):
    rows = [{"input": f"red {number}", "output": ["rot", "rouge"]} for number in range(6)]
    (tmp_path / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(tmp_path, base, [{"path": "several.jsonl"}], evaluation={"metrics": ["exact_match"]})
    _, evaluation = train_and_evaluate(config)
    assert [one.outputs for one in evaluation.predictions] == [("rot", "rouge")]


def test_natural_instructions_files_are_tasks(base, tmp_path):
    files = sorted(real_data("natural_instructions").glob("task*.json"))[:2]
    tasks = [
        {"path": str(file), "name": f"ni-{number}", "train": 4, "val": 0, "test": 2}
        for number, file in enumerate(files)
    ]
    training = {"steps": 2, "max_length": 2000}  # a byte is a token here
    result, evaluation = train_and_evaluate(config_of(tmp_path, base, tasks, training=training))
    assert (len(files), result.steps) == (2, 2)
    assert [(one.task, one.metric) for one in evaluation.records] == [("ni-0", "token_nll"), ("ni-1", "token_nll")]


# ---- what cannot be done -----------------------------------------------------------------------------------------


def test_all_faults_of_all_task_files_and_nothing_written(base, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"input": "a"}\n')
    red = write_task(tmp_path, "red")
    tasks = [{"path": path} for path in ("empty.jsonl", "bad.jsonl", "missing.jsonl")]
    file = run_file(tmp_path, base, [*tasks, {"path": red}, {"path": red, "name": "Red"}])
    for command in ("train", "check"):
        told = refusal(command, file)
        assert "4 faults in the task files; nothing was trained" in told
        for line in ("empty.jsonl: expected at least one example", "bad.jsonl:1: ", "missing.jsonl: expected a file"):
            assert line in told
        assert "expected task names that differ" in told
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("adapter.r=64", "r=64 is larger than layer"),
        ("adapter.target_modules=[nothing]", "Linear layers of this model"),
        ("base=nowhere/at/all", "nowhere/at/all"),
        ("training.max_length=8", "expected at most 8 tokens"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_folder_and_can_be_mended(base, tmp_path, change, message):
    file = run_file(tmp_path, base, training={"steps": 1})
    assert message in refusal("train", file, change)
    assert message in refusal("check", file, change)
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_spread_over_processes(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"rows \(4\) must be a multiple of accumulation × processes \(1 × 3\)"):
        train(config_of(tmp_path, base))
    assert not (tmp_path / "out").exists()


def damage_truncate(bank):
    file = bank / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_header(bank):
    (bank / "adapter_model.safetensors").write_bytes(b"no tensors at all")


def damage_edit(bank):
    file = bank / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(name for name in tensors if "core" in name)][0, 0, 0] += 1
    save_file(tensors, file)


def damage_missing(bank):
    (bank / "adapter_model.safetensors").unlink()


def damage_version(bank):
    config = json.loads((bank / "adapter_config.json").read_text())
    (bank / "adapter_config.json").write_text(json.dumps(config | {"format_version": 99}))


def damage_json(bank):
    (bank / "adapter_config.json").write_text("{")


def damage_info(bank):
    (bank / "bank.json").write_text('["x"]')


@pytest.mark.parametrize(
    ("damage", "message", "seen_by"),
    [
        (damage_truncate, "deserializing header", "tasks evaluate train"),
        (damage_header, "deserializing header", "tasks evaluate train"),
        (damage_edit, "weights_sha256", "evaluate train"),
        (damage_missing, "bank: expected a bank, but adapter_model.safetensors is missing", "tasks evaluate train"),
        (damage_version, "format version 99, but this CoLoRA reads up to 2; upgrade colora", "tasks evaluate train"),
        (damage_json, "damaged", "tasks evaluate train"),
        (damage_info, "bank.json", "tasks evaluate"),
    ],
)
def test_a_damaged_bank_is_named_and_refused(copy, damage, message, seen_by):
    damage(copy / "out" / "bank")
    before = content(copy)
    for command in seen_by.split():
        told = refusal(command, copy / "run.yaml" if command == "train" else copy / "out")
        assert message in told
        assert str(copy / "out") in told
    assert content(copy) == before


@pytest.mark.parametrize("other", [lambda: tiny_llama(seed=9), lambda: tiny_llama(hidden=64), tiny_gpt2])
def test_another_base_in_the_same_folder_is_refused(tmp_path, other):
    file = run_file(tmp_path, save_base(tmp_path / "base"), training={"steps": 1})
    assert cli("train", file).exit_code == 0
    shutil.rmtree(tmp_path / "base")
    save_base(tmp_path / "base", other())
    for command in (["evaluate", tmp_path / "out"], ["train", file], ["export", tmp_path / "out", tmp_path / "x"]):
        assert "this bank was trained on another base model" in refusal(*command)
    assert not (tmp_path / "x").exists()
    with pytest.raises(BaseMismatchError):
        load_bank(tmp_path / "out")


def test_what_is_no_bank(tmp_path):
    with pytest.raises(BankFileError, match="no such folder; expected a bank, or a run that has ended"):
        load_bank(tmp_path / "nothing")
    with pytest.raises(BankFileError, match=r"adapter_config.json and adapter_model.safetensors are missing$"):
        load_bank(tmp_path)


def test_an_answer_too_long_to_be_measured_is_found_before_training(base, tmp_path):
    rows = [{"input": str(number), "output": "x" * (5 if number < 9 else 400)} for number in range(12)]
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    (tmp_path / "long" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[9:]))
    config = config_of(tmp_path, base, [{"path": "long", "val": 0}], training={"max_length": 64})
    with pytest.raises(TaskFileError, match="expected at most 64 tokens"):
        train_and_evaluate(config)
    assert not (tmp_path / "out").exists()


def test_rows_longer_than_the_model_are_refused_before_training(base, tmp_path):
    config = config_of(tmp_path, base, training={"max_length": 5000})
    with pytest.raises(ConfigError, match=r"training.max_length is 5000, but .* has 4096 positions"):
        train_and_evaluate(config)


def test_a_part_of_the_split_is_recorded_as_a_part(copy):
    evaluate_bank(copy / "out", overrides={"limit": 1}, progress=False)
    methods = {record.method for record in read_records(copy / "out" / "records.jsonl")}
    assert methods == {"colora", "colora, first 1"}


def test_task_files_may_move(base, tmp_path):
    file = run_file(tmp_path, base)
    cli("train", file)
    (tmp_path / "elsewhere").mkdir()
    for path in tmp_path.glob("*.jsonl"):
        path.rename(tmp_path / "elsewhere" / path.name)
    file.write_text(re.sub(r"path: (.*jsonl)", r"path: elsewhere/\1", file.read_text()))
    assert "has ended before" in cli("train", file).stderr


@pytest.mark.slow
def test_two_processes_of_colora_train_leave_the_bank_of_one(base, tmp_path):
    """`torchrun -m colora train`: the first process writes everything, and the rows of a step are the same."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    on_cpu = {"device": "cpu"}  # two processes cannot share one accelerator
    train(config_of(one, base, training=on_cpu))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1",
        "-m", "colora", "train", str(run_file(two, base, training=on_cpu)),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = launcher.communicate(timeout=120)
    finally:
        launcher.terminate()  # it ends its two processes, also after a time-out
        launcher.wait(timeout=60)
    assert launcher.returncode == 0, err[-3000:]
    expected, found = bank_tensors(one / "out"), bank_tensors(two / "out")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    assert out.count("token_nll") == 1
    assert read_records(two / "out" / "records.jsonl")


def test_a_task_that_came_after_the_run_is_told_as_not_measured(base, tmp_path):
    run = run_file(tmp_path, base)
    assert cli("train", run).exit_code == 0
    assert cli("merge", tmp_path / "out", "half", "red=0.5", "blue=0.5").exit_code == 0
    told = " ".join(cli("evaluate", tmp_path / "out").output.split())
    assert "not measured: half: added after the run, which has no examples of it" in told
    assert "not measured: red" not in told
