"""A run is resolved once: its tasks are read, hashed and encoded once, and the bank to start from is opened once."""

from collections import Counter

import pytest
import yaml

import colora.bank.tensors
import colora.evaluation.nll
import colora.training.encode
import colora.training.resolve
import colora.training.run_folder
from colora.adapter.config import CoLoRAConfig
from colora.errors import ConfigError
from colora.training.adapter_config import bank_config
from colora.training.arguments import weight_decay
from colora.training.check import check_run
from colora.training.config import AdapterSpec, RunConfig
from colora.training.resolve import resolve_run
from colora.training.run import train_and_evaluate
from colora.training.run_folder import as_begun
from colora.transfer.grouping import train_groups
from tests.helpers.run_files import config_of, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def counts(monkeypatch):
    """How often each split of a task is hashed and encoded, and task files are read."""
    found = Counter()

    def counting(module, name, key):
        function = getattr(module, name)

        def counted(*args, **kwargs):
            found[key(*args)] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    counting(colora.training.resolve, "read_tasks", lambda *args: "read")
    counting(colora.training.run_folder, "_digest", lambda task, split: f"hash {task.name} {split}")
    for module in (colora.training.encode, colora.evaluation.nll):
        counting(module, "encode_tasks", lambda tasks, tokenizer, split, *more: f"encode {split}")
    return found


def test_examples_are_read_hashed_and_encoded_once(base, tmp_path, counts):
    config = config_of(tmp_path, base, training={"eval_every": 2})
    train_and_evaluate(config)
    hashes = {f"hash {task} {split}": 1 for task in ("red", "blue") for split in ("train", "val", "test")}
    assert counts == hashes | {"read": 1, "encode train": 1, "encode val": 1, "encode test": 1}


def test_a_split_that_is_validated_and_measured_is_encoded_once(base, tmp_path, counts):
    config = config_of(tmp_path, base, training={"eval_every": 2}, evaluation={"split": "val"})
    train_and_evaluate(config)
    assert (counts["encode train"], counts["encode val"], counts["encode test"]) == (1, 1, 0)


def test_tasks_of_a_run_in_groups_are_read_and_hashed_once(base, tmp_path, counts):
    train_groups(config_of(tmp_path, base, grouping=[["red"], ["blue"]]))
    assert {key: count for key, count in counts.items() if key == "read" or key.startswith("hash")} == {
        "read": 1,
        **{f"hash {task} {split}": 1 for task in ("red", "blue") for split in ("train", "val", "test")},
    }


def test_the_bank_to_start_from_is_opened_once(base, tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    first = config_of(tmp_path / "first", base)
    train_and_evaluate(first)
    opened = []
    real = colora.bank.tensors.safe_open
    monkeypatch.setattr(colora.bank.tensors, "safe_open", lambda *args: opened.append(args) or real(*args))
    (tmp_path / "second").mkdir()
    config = config_of(tmp_path / "second", base, start_from=first.output)
    assert resolve_run(config).start is not None
    assert len(opened) == 1
    train_and_evaluate(config)
    assert len(opened) == 2
    assert resolve_run(config).start is None  # it has ended


def test_a_resolved_run_does_not_change(base, tmp_path):
    run = resolve_run(config_of(tmp_path, base))
    assert run.names == ["red", "blue"]
    assert run.adapter.tasks == ["red", "blue"]
    assert not run.has_ended
    with pytest.raises(AttributeError):
        run.config = None


def test_what_does_not_go_together_is_refused_before_anything_is_loaded(base, tmp_path):
    config = config_of(tmp_path, base, start_from=str(tmp_path / "bank"), adapter={"init_weights": "spectral"})
    with pytest.raises(ConfigError, match="spectral begins a new bank"):
        resolve_run(config)
    config = config_of(tmp_path, base, grouping=[["red"]])
    with pytest.raises(ConfigError, match="blue: in no group"):
        check_run(config)


def test_a_run_goes_on_with_the_defaults_that_it_began_with(tmp_path):
    output = tmp_path / "run"
    output.mkdir()

    def config(**sections):
        fields = {"output": str(output), "tasks": [{"path": "mine.jsonl"}]} | sections
        return RunConfig.model_validate(fields)

    earlier = config().model_dump(mode="json")
    del earlier["training"]["beta2"]
    earlier["training"] |= {"lr": 2e-3, "core_lr": 6e-2, "warmup_steps": 0, "weight_decay": 0.0}
    earlier["adapter"] |= {"r": 8, "lora_alpha": 8.0}
    del earlier["adapter"]["init_rotation"]
    (output / "run.yaml").write_text(yaml.safe_dump(earlier), encoding="utf-8")
    found = as_begun(config(training={"lr": 5e-4}))
    assert (found.training.beta2, found.training.warmup) == (0.999, 0)
    assert (found.training.lr, found.training.core_lr) == (5e-4, 6e-2)  # what the run file names is as it says
    assert weight_decay(found) == 0
    assert (found.adapter.r, found.adapter.lora_alpha, found.adapter.init_rotation) == (8, 8, 0)
    assert as_begun(config(adapter={"r": 4})).adapter.lora_alpha == 8  # the scale was no matter of the rank then
    now = as_begun(config(output=str(tmp_path / "new")))
    assert (now.adapter.r, now.adapter.lora_alpha, now.adapter.init_rotation) == (16, 16, 0.5)
    assert (now.training.beta2, now.training.warmup) == (0.95, 5)
    assert config(training={"steps": 20}).training.warmup == 2


def test_decay_takes_as_much_of_a_long_run_as_of_a_short_one():
    def decay(start_from=None, **training):
        fields = {"output": "run", "tasks": [{"path": "mine.jsonl"}], "training": training, "start_from": start_from}
        return weight_decay(RunConfig.model_validate(fields))

    assert decay(lr=1e-3, steps=60) == pytest.approx(10)
    assert decay(lr=2e-3, steps=600) == pytest.approx(0.5)
    assert decay("runs/first/bank", lr=1e-3, steps=60) == 0  # what was learnt before stays
    assert decay("runs/first/bank", weight_decay=0.1) == decay(weight_decay=0.1) == 0.1


def test_the_scale_is_one_where_nothing_is_said():
    assert AdapterSpec(r=4).lora_alpha == 4
    assert AdapterSpec(r=4, lora_alpha=8).lora_alpha == 8
    assert CoLoRAConfig(r=4).scaling == CoLoRAConfig().scaling == 1
    assert bank_config(AdapterSpec(), ["red"]).to_dict() == CoLoRAConfig(tasks=["red"]).to_dict()
